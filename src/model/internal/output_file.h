// A file that appears under its name whole or not at all. Private to the room.
//
// Where the file system can (O_TMPFILE) the bytes have no name until they are complete, so a killed process
// leaves nothing behind; elsewhere they stand under a temporary name beside the target. Writers at different
// offsets may run on several threads.
#pragma once
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>

#include "base/status.h"

namespace millrace::model {

class OutputFile {
 public:
  // Reserves `size` bytes on disk, so that a full disk is an error here and not after minutes of work.
  static Expected<OutputFile> create(const std::filesystem::path& path, uint64_t size);
  OutputFile(OutputFile&& other) noexcept;
  OutputFile& operator=(OutputFile&&) = delete;
  ~OutputFile();  // not committed: removes what was written

  Expected<void> write_at(uint64_t offset, std::span<const std::byte> bytes);
  Expected<void> read_at(uint64_t offset, std::span<std::byte> bytes) const;
  // Cuts the file to `size`, flushes it, and puts it under its final name in place of what was there.
  Expected<void> commit(uint64_t size);

 private:
  OutputFile() = default;
  std::unexpected<Status> failed(const char* what) const;

  std::filesystem::path path_;
  std::string temporary_;  // "" while the file has no name
  int fd_ = -1;
};

}  // namespace millrace::model
