// Files: read whole, write atomically, map read-only; and where Millrace keeps its own.
#pragma once
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>

#include "base/status.h"

namespace millrace {

// A file mapped read-only and shared: N processes that map it hold one copy in the page cache. Movable; unmaps when
// destroyed. Reading a page that a truncated file no longer has raises SIGBUS: files that others may shorten are
// copied, not mapped (packed models are immutable once renamed into place).
class MappedFile {
 public:
  static Expected<MappedFile> open(const std::filesystem::path& path);
  MappedFile() = default;
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  ~MappedFile();

  std::span<const std::byte> bytes() const { return {data_, size_}; }
  const std::filesystem::path& path() const { return path_; }
  void advise_sequential() const;  // the whole will be read soon: start reading ahead
  // The whole will be read again and again: what is not in the page cache yet comes there, and into this map, in huge pages
  // where the file system can (ext4 and xfs of recent kernels). Call it before the first byte is read.
  void advise_huge_pages() const;
  // All of it is in memory when this returns, unless it is larger than the memory that is left. A file of at most
  // `own_at_most` bytes is copied into this process's own memory, which stands at the same addresses from then on, in
  // huge pages on every file system; a second call changes nothing. Others stay in the page cache, in huge pages as above; parts
  // that it had in small ones are read anew where the kernel can tell which (Linux 6.7) and nobody else maps them.
  // Nobody may read the map meanwhile.
  enum class Place { nowhere, cache, own };
  Place bring_into_memory(size_t own_at_most = 0) const;

 private:
  void move_small_pages() const;
  bool copy_to_own() const;
  const std::byte* data_ = nullptr;
  size_t size_ = 0;
  uint64_t device_ = 0, inode_ = 0;
  mutable bool own_ = false;  // a copy of our own stands there, which is no longer the file's
  std::filesystem::path path_;
};

// The whole file as bytes; refused above max_bytes.
Expected<std::string> read_file(const std::filesystem::path& path, size_t max_bytes);

// Writes beside the target, fsyncs, renames over it: after a crash the old or the new content is there, never a mix.
Expected<void> write_file_atomic(const std::filesystem::path& path, std::string_view content);

// At a place of a file that is open, in as many calls as the system wants. Errors are errno's, for callers that have more to
// say of them.
// All of `bytes`; false with errno, which is EIO where the system takes no more and does not say why.
bool write_all(int fd, uint64_t offset, std::span<const std::byte> bytes);
// Until `bytes` is full or the file ends: how many bytes that was; -1 with errno.
int64_t read_all(int fd, uint64_t offset, std::span<std::byte> bytes);

// What an errno of a file's says to a caller.
Code code_of_errno(int error);

// $MILLRACE_HOME, else $XDG_CACHE_HOME/millrace, else ~/.cache/millrace. Not created here.
std::filesystem::path millrace_home();

}  // namespace millrace
