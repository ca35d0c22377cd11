#include "base/file.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "base/memory.h"

namespace millrace {
namespace {

std::unexpected<Status> fail_errno(std::string_view what, const std::filesystem::path& path) {
  const int error = errno;
  return fail(code_of_errno(error), fmt::format("{} {}: {}", what, path.string(), std::strerror(error)));
}

class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {}
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  ~Descriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  int get() const { return fd_; }

 private:
  int fd_;
};

}  // namespace

Expected<MappedFile> MappedFile::open(const std::filesystem::path& path) {
  const Descriptor fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (fd.get() < 0) return fail_errno("cannot open", path);
  struct stat info {};
  if (::fstat(fd.get(), &info) != 0) return fail_errno("cannot stat", path);
  if (!S_ISREG(info.st_mode)) return invalid(fmt::format("{} is not a regular file", path.string()));
  MappedFile file;
  file.path_ = path;
  file.size_ = static_cast<size_t>(info.st_size);
  file.device_ = info.st_dev;
  file.inode_ = info.st_ino;
  if (file.size_ == 0) return file;
  // At a multiple of a huge page's size, or none of its pages can be one.
  std::byte* const place = map_aligned(file.size_, kHugePageBytes, PROT_NONE);
  if (place == nullptr) return fail_errno("cannot map", path);
  void* data = ::mmap(place, file.size_, PROT_READ, MAP_SHARED | MAP_FIXED, fd.get(), 0);
  if (data == MAP_FAILED) {
    auto error = fail_errno("cannot map", path);
    ::munmap(place, file.size_);
    return error;
  }
  file.data_ = static_cast<const std::byte*>(data);
  return file;
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)),
      device_(other.device_),
      inode_(other.inode_),
      own_(std::exchange(other.own_, false)),
      path_(std::move(other.path_)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  std::swap(device_, other.device_);
  std::swap(inode_, other.inode_);
  std::swap(own_, other.own_);
  std::swap(path_, other.path_);
  return *this;
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(const_cast<std::byte*>(data_), size_);
}

void MappedFile::advise_sequential() const {
  if (data_ != nullptr) ::madvise(const_cast<std::byte*>(data_), size_, MADV_WILLNEED);
}

void MappedFile::advise_huge_pages() const {
  if (data_ != nullptr) ::madvise(const_cast<std::byte*>(data_), size_, MADV_HUGEPAGE);
}

Expected<std::string> read_file(const std::filesystem::path& path, size_t max_bytes) {
  const Descriptor fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (fd.get() < 0) return fail_errno("cannot open", path);
  std::string content;
  char buffer[65536];
  while (true) {
    const ssize_t got = ::read(fd.get(), buffer, sizeof buffer);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return fail_errno("cannot read", path);
    if (got == 0) return content;
    if (content.size() + static_cast<size_t>(got) > max_bytes)
      return invalid(fmt::format("{} is larger than the limit of {} bytes", path.string(), max_bytes));
    content.append(buffer, static_cast<size_t>(got));
  }
}

Expected<void> write_file_atomic(const std::filesystem::path& path, std::string_view content) {
  std::string temporary = path.string() + ".XXXXXX";
  const Descriptor fd(::mkostemp(temporary.data(), O_CLOEXEC));
  if (fd.get() < 0) return fail_errno("cannot create a file beside", path);
  const auto give_up = [&](std::string_view what) {
    auto status = fail_errno(what, path);
    ::unlink(temporary.c_str());
    return status;
  };
  if (!write_all(fd.get(), 0, std::as_bytes(std::span(content)))) return give_up("cannot write");
  ::fchmod(fd.get(), 0644);
  if (::fsync(fd.get()) != 0) return give_up("cannot flush");
  if (::rename(temporary.c_str(), path.c_str()) != 0) return give_up("cannot rename over");
  return {};
}

bool write_all(int fd, uint64_t offset, std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t put = ::pwrite(fd, bytes.data(), bytes.size(), static_cast<off_t>(offset));
    if (put < 0 && errno == EINTR) continue;
    if (put == 0) errno = EIO;  // trying again could go on for ever
    if (put <= 0) return false;
    bytes = bytes.subspan(static_cast<size_t>(put));
    offset += static_cast<uint64_t>(put);
  }
  return true;
}

int64_t read_all(int fd, uint64_t offset, std::span<std::byte> bytes) {
  size_t done = 0;
  while (done < bytes.size()) {
    const ssize_t got =
        ::pread(fd, bytes.data() + done, bytes.size() - done, static_cast<off_t>(offset + done));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return -1;
    if (got == 0) break;
    done += static_cast<size_t>(got);
  }
  return static_cast<int64_t>(done);
}

Code code_of_errno(int error) {
  switch (error) {
    case ENOENT:
      return Code::not_found;
    case EACCES:
    case EPERM:
    case EROFS:
      return Code::permission_denied;
    case EISDIR:  // the path itself is wrong: the same call will not succeed later
    case ENOTDIR:
    case ENAMETOOLONG:
    case ELOOP:
      return Code::invalid_argument;
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
    case EMFILE:
      return Code::resource_exhausted;
    default:
      return Code::unavailable;
  }
}

std::filesystem::path millrace_home() {
  if (const char* home = std::getenv("MILLRACE_HOME"); home != nullptr && *home != '\0') return home;
  if (const char* cache = std::getenv("XDG_CACHE_HOME"); cache != nullptr && *cache != '\0')
    return std::filesystem::path(cache) / "millrace";
  const char* home = std::getenv("HOME");
  return std::filesystem::path(home != nullptr && *home != '\0' ? home : "/tmp") / ".cache" / "millrace";
}

}  // namespace millrace
