// A file that appears under its name whole or not at all, and that a killed writer's successor continues.
// Private to the room.
//
// While it is being written it is PATH.partial, and beside it PATH.journal says what of it is there:
//
//   32 bytes    magic, identity, size of PATH.partial, XXH3 of these
//   24 bytes each, appended: kind, index, checksum, XXH3 of these seeded with the identity
//
// An entry is appended after the bytes it speaks of have been written. SIGKILL therefore loses what no entry
// speaks of, and a machine that loses power may also lose bytes that one speaks of: whoever continues
// compares checksums first. A torn or damaged entry ends the journal. Another identity (other weights,
// another layout) starts anew.
//
// Comparing reads what the disk has, not what memory still holds: where storing failed, pages are dropped.
//
// The journal carries the lock (flock), so one writer at a time; it is removed last.
#pragma once
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "base/status.h"

namespace millrace::model {

class OutputFile {
 public:
  struct Options {
    uint64_t size = 0;              // reserved on disk, so that a full disk is an error before the work
    uint64_t identity = 0;          // of what will be written
    uint64_t max_entries = 0;       // reserved for the journal
    bool reserve = true;            // false: as on file systems that cannot (tests)
    std::function<void()> on_wait;  // called some times a second while another process has the lock
  };
  // Waits while another process writes the same file, for as long as that takes. invalid_argument: `path` is
  // a folder, which nothing could replace.
  static Expected<OutputFile> open(const std::filesystem::path& path, const Options& options);
  OutputFile(OutputFile&& other) noexcept;
  OutputFile& operator=(OutputFile&&) = delete;
  ~OutputFile();  // not committed: what was written stays, to be continued

  // Somebody else committed the same identity while we waited, or was killed right after: nothing to do.
  bool finished() const { return finished_; }

  struct Entry {
    uint32_t kind = 0, index = 0;  // the caller's; kind below kCommitted
    uint64_t checksum = 0;
  };
  static constexpr uint32_t kCommitted = 0xFFFFFFFF;
  const std::vector<Entry>& found() const { return found_; }

  // Several threads may write and read different places at once.
  Expected<void> write_at(uint64_t offset, std::span<const std::byte> bytes);
  Expected<void> read_at(uint64_t offset, std::span<std::byte> bytes) const;
  // Appends to the journal. One thread at a time.
  Expected<void> record(const Entry& entry);
  // The disk should begin to store the range now: bounds what a flush at the end has to do.
  void start_storing(uint64_t offset, uint64_t size) const;
  // Waits until the range is stored; then the page cache may forget it. An error is the only word of bytes
  // that the disk did not take: commit() would not hear of them again.
  Expected<void> forget(uint64_t offset, uint64_t size) const;

  // Cuts the file to `size`, flushes it, and puts it under its final name in place of what was there.
  Expected<void> commit(uint64_t size);
  void discard();  // nothing of it can be used: removes it

 private:
  OutputFile() = default;
  // Of errno. `kept`: something of the file stays to be continued.
  std::unexpected<Status> failed(std::string_view what, const std::filesystem::path& path,
                                 bool kept = true) const;
  Expected<void> lock(const Options& options);
  Expected<void> start_anew(const Options& options);
  bool reserve(const Options& options) const;
  bool read_journal(const Options& options);

  std::filesystem::path path_, partial_path_, journal_path_;
  std::vector<Entry> found_;
  uint64_t identity_ = 0, journal_end_ = 0;
  bool finished_ = false;
  int fd_ = -1, journal_fd_ = -1;
};

// What a killed writer of `path` left, unless somebody is at work on it.
void remove_unfinished_output(const std::filesystem::path& path);

}  // namespace millrace::model
