// Reads a checkpoint's tensors from their files in pieces. Private to the room.
//
// With read(2), not through the mapping in which headers are parsed: what has been read costs no resident
// memory and no page tables, and a file that somebody shortens or replaces meanwhile is an error instead of a
// SIGBUS.
#pragma once
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/file.h"
#include "base/status.h"

namespace millrace::model {

// What changes when a file's content does. A file may be given back its old time of modification, not its
// time of change.
struct FileState {
  uint64_t device = 0, inode = 0, size = 0;
  int64_t modified_ns = 0, changed_ns = 0;
  // Regardless of new links and permissions, which move the time of change.
  bool same_content(const FileState& other) const {
    return device == other.device && inode == other.inode && size == other.size &&
           modified_ns == other.modified_ns;
  }

  static Expected<FileState> of(const std::filesystem::path& path);
};

std::unexpected<Status> changed_while_packing(const std::filesystem::path& path);

// One file of a checkpoint, as it was when the checkpoint was opened. Immutable.
struct SourceFile {
  std::filesystem::path path;
  FileState state;
  std::span<const std::byte> mapping;  // where its bytes stand in memory

  static Expected<std::shared_ptr<const SourceFile>> of(const MappedFile& file);
};

// The bytes of a tensor: in a file, or, where `file` is null (tests, fuzzing), in memory alone.
struct SourceBytes {
  std::span<const std::byte> bytes;
  std::shared_ptr<const SourceFile> file;
  size_t size() const { return bytes.size(); }
};

// Reads pieces of one range of a tensor's bytes, in any order. One thread's.
class SourceReader {
 public:
  // Bytes [begin, end) will be wanted: opens the file, which must not have changed, and starts reading ahead.
  static Expected<SourceReader> open(const SourceBytes& source, uint64_t begin, uint64_t end);
  SourceReader(SourceReader&& other) noexcept;
  SourceReader& operator=(SourceReader&&) = delete;
  ~SourceReader();

  // `count` bytes from `at` on; they stay until the next call.
  Expected<const std::byte*> read(uint64_t at, uint64_t count);

  // The range will not be wanted again: the page cache may forget it when this reader goes.
  void forget() { forget_ = true; }

 private:
  SourceReader() = default;
  const SourceBytes* source_ = nullptr;
  uint64_t first_ = 0;  // of the tensor, in the file
  uint64_t begin_ = 0, end_ = 0;
  int fd_ = -1;
  bool forget_ = false;
  std::vector<std::byte> buffer_;
};

}  // namespace millrace::model
