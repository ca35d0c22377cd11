#include "model/internal/output_file.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <thread>
#include <utility>

#include "base/file.h"
#include "base/hash.h"
#include "base/units.h"

namespace millrace::model {
namespace {

constexpr uint64_t kJournalMagic = 0x31304C4E524A524Dull;  // "MRJRNL01" in the file's byte order
constexpr auto kLockPoll = std::chrono::milliseconds(100);

struct JournalHeader {
  uint64_t magic = kJournalMagic;
  uint64_t identity = 0;
  uint64_t size = 0;  // of PATH.partial
  uint64_t xxh3 = 0;  // of the bytes before
};
struct JournalEntry {
  uint32_t kind = 0, index = 0;
  uint64_t checksum = 0;
  uint64_t xxh3 = 0;  // of the bytes before, seeded with the identity
};
static_assert(sizeof(JournalHeader) == 32 && sizeof(JournalEntry) == 24);

template <class T>
std::span<const std::byte> bytes_of(const T& value, size_t count = sizeof(T)) {
  return std::as_bytes(std::span(&value, 1)).first(count);
}
uint64_t checksum_of(const JournalHeader& header) {
  return hash64(bytes_of(header, offsetof(JournalHeader, xxh3)));
}
uint64_t checksum_of(const JournalEntry& entry, uint64_t identity) {
  return hash64(bytes_of(entry, offsetof(JournalEntry, xxh3)), identity);
}

// Whether the file that is open is the one that has the name.
bool has_name(int fd, const std::filesystem::path& path) {
  struct stat ours {
  }, named{};
  return ::fstat(fd, &ours) == 0 && ::stat(path.c_str(), &named) == 0 && ours.st_ino == named.st_ino &&
         ours.st_dev == named.st_dev;
}

std::filesystem::path beside(const std::filesystem::path& path, const char* suffix) {
  std::filesystem::path out = path;
  out += suffix;
  return out;
}
std::string reserving(uint64_t bytes) { return fmt::format("reserve {} bytes for", bytes); }
std::filesystem::path folder_of(const std::filesystem::path& path) {
  return path.has_parent_path() ? path.parent_path() : std::filesystem::path(".");
}

}  // namespace

std::unexpected<Status> OutputFile::failed(std::string_view what, const std::filesystem::path& path,
                                           bool kept) const {
  const int error = errno;
  const bool full = error == ENOSPC || error == EDQUOT || error == EFBIG;
  std::string message = fmt::format("cannot {} {}: {}", what, path.string(), std::strerror(error));
  if (full) {
    std::error_code ignored;
    const auto space = std::filesystem::space(folder_of(path_), ignored);
    if (!ignored) message += fmt::format(" ({} bytes are free there)", space.available);
    message += kept ? "; what is written stays: make room and run the same command again, and it continues"
                    : "; make room and run the same command again";
  }
  return fail(code_of_errno(error), std::move(message));
}

Expected<OutputFile> OutputFile::open(const std::filesystem::path& path, const Options& options) {
  OutputFile file;
  file.path_ = path;
  file.partial_path_ = beside(path, ".partial");
  file.journal_path_ = beside(path, ".journal");
  file.identity_ = options.identity;
  std::error_code ignored;
  if (std::filesystem::is_directory(path, ignored))
    return invalid(fmt::format("{} is a folder; a file is to be written there", path.string()));
  MR_TRY(file.lock(options));
  if (file.finished_) return file;
  const int flags = O_RDWR | O_CLOEXEC;
  struct stat info {};
  const bool usable = file.read_journal(options);
  if (usable) file.fd_ = ::open(file.partial_path_.c_str(), flags);
  if (file.fd_ >= 0 && ::fstat(file.fd_, &info) == 0 && static_cast<uint64_t>(info.st_size) == options.size) {
    // Valid entries behind a damaged one would come back to life once it is written over.
    if (::ftruncate(file.journal_fd_, static_cast<off_t>(file.journal_end_)) != 0)
      return file.failed("cut", file.journal_path_);
    if (!file.reserve(options)) return file.failed(reserving(options.size), path);
    return file;
  }
  file.found_.clear();
  MR_TRY(file.start_anew(options));
  return file;
}

// Takes the lock of the journal that has the name; the one that we waited for may have gone with its writer.
Expected<void> OutputFile::lock(const Options& options) {
  while (true) {
    if (journal_fd_ >= 0) ::close(journal_fd_);
    journal_fd_ = ::open(journal_path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    if (journal_fd_ < 0) return failed("create", journal_path_);
    while (::flock(journal_fd_, LOCK_EX | LOCK_NB) != 0) {
      if (errno == EINTR) continue;
      if (errno != EWOULDBLOCK) return failed("lock", journal_path_);
      if (options.on_wait) options.on_wait();
      std::this_thread::sleep_for(kLockPoll);
    }
    const bool named = has_name(journal_fd_, journal_path_);
    if (read_journal(options) && !found_.empty() && found_.back().kind == kCommitted) {
      // Only the name is missing, or only our leave; unless somebody has removed the file since.
      if (named && ::rename(partial_path_.c_str(), path_.c_str()) != 0 && errno != ENOENT)
        return failed("rename over", path_);
      std::error_code ignored;
      finished_ = std::filesystem::exists(path_, ignored);
      if (named && finished_) ::unlink(journal_path_.c_str());
      if (finished_) return {};
    }
    if (named) return {};
  }
}

// False if there is none for this identity and size. Leaves journal_end_ behind the last whole entry.
bool OutputFile::read_journal(const Options& options) {
  found_.clear();
  journal_end_ = sizeof(JournalHeader);
  JournalHeader header;
  const int64_t head = read_all(journal_fd_, 0, std::as_writable_bytes(std::span(&header, 1)));
  if (std::cmp_not_equal(head, sizeof header) || header.magic != kJournalMagic ||
      header.xxh3 != checksum_of(header) || header.identity != options.identity ||
      header.size != options.size)
    return false;
  std::vector<JournalEntry> piece(4096);
  while (true) {
    const int64_t got = read_all(journal_fd_, journal_end_, std::as_writable_bytes(std::span(piece)));
    const size_t whole = got > 0 ? static_cast<size_t>(got) / sizeof(JournalEntry) : 0;
    for (size_t i = 0; i < whole; ++i) {
      if (piece[i].xxh3 != checksum_of(piece[i], identity_)) return true;
      found_.push_back({piece[i].kind, piece[i].index, piece[i].checksum});
      journal_end_ += sizeof(JournalEntry);
    }
    if (whole == 0) return true;
  }
}

// In this order, so that a journal never speaks of bytes of another identity.
Expected<void> OutputFile::start_anew(const Options& options) {
  if (::ftruncate(journal_fd_, 0) != 0) return failed("empty", journal_path_);
  if (fd_ >= 0) ::close(fd_);
  fd_ = ::open(partial_path_.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (fd_ < 0) return failed("create", partial_path_);
  if (!reserve(options)) {
    const int error = errno;
    // Some file systems keep what they had found by then; the message tells what is free without it.
    [[maybe_unused]] const int freed = ::ftruncate(fd_, 0);
    discard();
    errno = error;
    return failed(reserving(options.size), path_, false);
  }
  if (::ftruncate(fd_, static_cast<off_t>(options.size)) != 0) return failed("size", partial_path_);
  JournalHeader header{.identity = options.identity, .size = options.size};
  header.xxh3 = checksum_of(header);
  if (!write_all(journal_fd_, 0, bytes_of(header))) return failed("write", journal_path_);
  journal_end_ = sizeof header;
  return {};
}

// False with errno. Nothing where the file system cannot: writing then finds out.
bool OutputFile::reserve(const Options& options) const {
  const auto take = [](int fd, int mode, uint64_t size) {
    return ::fallocate(fd, mode, 0, static_cast<off_t>(size)) == 0 || errno == EOPNOTSUPP || errno == ENOSYS;
  };
  const uint64_t journal = sizeof(JournalHeader) + (options.max_entries + 1) * sizeof(JournalEntry);
  return !options.reserve || (take(fd_, 0, options.size) && take(journal_fd_, FALLOC_FL_KEEP_SIZE, journal));
}

OutputFile::OutputFile(OutputFile&& other) noexcept
    : path_(std::move(other.path_)),
      partial_path_(std::move(other.partial_path_)),
      journal_path_(std::move(other.journal_path_)),
      found_(std::move(other.found_)),
      identity_(other.identity_),
      journal_end_(other.journal_end_),
      finished_(other.finished_),
      fd_(std::exchange(other.fd_, -1)),
      journal_fd_(std::exchange(other.journal_fd_, -1)) {}

OutputFile::~OutputFile() {
  if (fd_ >= 0) ::close(fd_);
  if (journal_fd_ >= 0) ::close(journal_fd_);
}

Expected<void> OutputFile::write_at(uint64_t offset, std::span<const std::byte> bytes) {
  if (!write_all(fd_, offset, bytes)) return failed("write", partial_path_);
  return {};
}

Expected<void> OutputFile::read_at(uint64_t offset, std::span<std::byte> bytes) const {
  const int64_t got = read_all(fd_, offset, bytes);
  if (got < 0) return failed("read back", partial_path_);
  if (std::cmp_less(got, bytes.size()))
    return fail(Code::data_loss, fmt::format("{} is shorter than what was written", partial_path_.string()));
  return {};
}

Expected<void> OutputFile::record(const Entry& entry) {
  JournalEntry line{.kind = entry.kind, .index = entry.index, .checksum = entry.checksum};
  line.xxh3 = checksum_of(line, identity_);
  if (!write_all(journal_fd_, journal_end_, bytes_of(line))) return failed("write", journal_path_);
  journal_end_ += sizeof line;
  return {};
}

void OutputFile::start_storing(uint64_t offset, uint64_t size) const {
  ::sync_file_range(fd_, static_cast<off_t>(offset), static_cast<off_t>(size), SYNC_FILE_RANGE_WRITE);
}

Expected<void> OutputFile::forget(uint64_t offset, uint64_t size) const {
  const int stored =
      ::sync_file_range(fd_, static_cast<off_t>(offset), static_cast<off_t>(size),
                        SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER);
  const int error = stored == 0 ? 0 : errno;
  ::posix_fadvise(fd_, static_cast<off_t>(offset), static_cast<off_t>(size), POSIX_FADV_DONTNEED);
  if (error == 0 || error == ENOSYS || error == EINVAL) return {};  // those two: nothing was waited for
  errno = error;
  return failed("store", partial_path_);
}

Expected<void> OutputFile::commit(uint64_t size) {
  if (::ftruncate(fd_, static_cast<off_t>(size)) != 0) return failed("size", partial_path_);
  const int error = ::fsync(fd_) == 0 ? 0 : errno;
  // The pages were written bit by bit; whoever maps the file wants them in large ones, read anew
  // (MappedFile). And those that could not be stored count as clean: who continues must not find them here.
  ::posix_fadvise(fd_, 0, 0, POSIX_FADV_DONTNEED);
  if (error != 0) {
    errno = error;
    return failed("flush", partial_path_);
  }
  // For those who wait for the lock, and for our successor if we are killed before the last line.
  MR_TRY(record({.kind = kCommitted}));
  if (::rename(partial_path_.c_str(), path_.c_str()) != 0) return failed("rename over", path_);
  // The name itself must survive a crash too.
  if (const int fd = ::open(folder_of(path_).c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC); fd >= 0) {
    ::fsync(fd);
    ::close(fd);
  }
  ::unlink(journal_path_.c_str());
  return {};
}

void OutputFile::discard() {
  ::unlink(partial_path_.c_str());
  ::unlink(journal_path_.c_str());
}

void remove_unfinished_output(const std::filesystem::path& path) {
  // With a writer's own lock. Made if it is missing: a writer may begin between two looks.
  const auto journal = beside(path, ".journal");
  const int fd = ::open(journal.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (fd < 0) return;
  if (::flock(fd, LOCK_EX | LOCK_NB) == 0 && has_name(fd, journal)) {
    ::unlink(beside(path, ".partial").c_str());
    ::unlink(journal.c_str());
  }
  ::close(fd);
}

}  // namespace millrace::model
