#include "model/internal/output_file.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "base/random.h"

namespace millrace::model {

std::unexpected<Status> OutputFile::failed(const char* what) const {
  const int error = errno;
  const Code code = error == ENOSPC || error == EDQUOT                    ? Code::resource_exhausted
                    : error == EACCES || error == EPERM || error == EROFS ? Code::permission_denied
                    : error == ENOENT                                     ? Code::not_found
                                                                          : Code::unavailable;
  return fail(code, fmt::format("{} {}: {}", what, path_.string(), std::strerror(error)));
}

Expected<OutputFile> OutputFile::create(const std::filesystem::path& path, uint64_t size) {
  OutputFile file;
  file.path_ = path;
  const auto folder = path.has_parent_path() ? path.parent_path() : std::filesystem::path(".");
  file.fd_ = ::open(folder.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0644);
  if (file.fd_ < 0) {
    std::string name = path.string() + ".XXXXXX";
    file.fd_ = ::mkostemp(name.data(), O_CLOEXEC);
    if (file.fd_ < 0) return file.failed("cannot create a file beside");
    file.temporary_ = std::move(name);
    ::fchmod(file.fd_, 0644);
  }
  if (::fallocate(file.fd_, 0, 0, static_cast<off_t>(size)) != 0) {
    if (errno != EOPNOTSUPP && errno != ENOSYS)
      return file.failed(fmt::format("cannot reserve {} bytes for", size).c_str());
    if (::ftruncate(file.fd_, static_cast<off_t>(size)) != 0) return file.failed("cannot size");
  }
  return file;
}

OutputFile::OutputFile(OutputFile&& other) noexcept
    : path_(std::move(other.path_)),
      temporary_(std::exchange(other.temporary_, {})),
      fd_(std::exchange(other.fd_, -1)) {}

OutputFile::~OutputFile() {
  if (fd_ >= 0) ::close(fd_);
  if (!temporary_.empty()) ::unlink(temporary_.c_str());
}

Expected<void> OutputFile::write_at(uint64_t offset, std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t put = ::pwrite(fd_, bytes.data(), bytes.size(), static_cast<off_t>(offset));
    if (put < 0 && errno == EINTR) continue;
    if (put < 0) return failed("cannot write");
    bytes = bytes.subspan(static_cast<size_t>(put));
    offset += static_cast<uint64_t>(put);
  }
  return {};
}

Expected<void> OutputFile::read_at(uint64_t offset, std::span<std::byte> bytes) const {
  while (!bytes.empty()) {
    const ssize_t got = ::pread(fd_, bytes.data(), bytes.size(), static_cast<off_t>(offset));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return failed("cannot read back");
    if (got == 0)
      return fail(Code::data_loss, fmt::format("{} is shorter than what was written", path_.string()));
    bytes = bytes.subspan(static_cast<size_t>(got));
    offset += static_cast<uint64_t>(got);
  }
  return {};
}

Expected<void> OutputFile::commit(uint64_t size) {
  if (::ftruncate(fd_, static_cast<off_t>(size)) != 0) return failed("cannot size");
  if (::fsync(fd_) != 0) return failed("cannot flush");
  if (temporary_.empty()) {
    // linkat never replaces a name, rename does: a name of our own first, then the rename.
    std::string name = fmt::format("{}.{:016x}", path_.string(), random_seed());
    const std::string self = fmt::format("/proc/self/fd/{}", fd_);
    if (::linkat(AT_FDCWD, self.c_str(), AT_FDCWD, name.c_str(), AT_SYMLINK_FOLLOW) != 0)
      return failed("cannot name");
    temporary_ = std::move(name);
  }
  if (::rename(temporary_.c_str(), path_.c_str()) != 0) return failed("cannot rename over");
  temporary_.clear();
  // The name itself must survive a crash too.
  const auto folder = path_.has_parent_path() ? path_.parent_path() : std::filesystem::path(".");
  if (const int fd = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC); fd >= 0) {
    ::fsync(fd);
    ::close(fd);
  }
  return {};
}

}  // namespace millrace::model
