#include "model/internal/source_file.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

namespace millrace::model {
namespace {

constexpr int64_t kNanoseconds = 1'000'000'000;

FileState state_of(const struct stat& info) {
  return {.device = info.st_dev,
          .inode = info.st_ino,
          .size = static_cast<uint64_t>(info.st_size),
          .modified_ns = info.st_mtim.tv_sec * kNanoseconds + info.st_mtim.tv_nsec,
          .changed_ns = info.st_ctim.tv_sec * kNanoseconds + info.st_ctim.tv_nsec};
}

std::unexpected<Status> failed(std::string_view what, const std::filesystem::path& path) {
  const int error = errno;
  return fail(code_of_errno(error),
              fmt::format("cannot {} {}: {}", what, path.string(), std::strerror(error)));
}

}  // namespace

std::unexpected<Status> changed_while_packing(const std::filesystem::path& path) {
  return fail(
      Code::failed_precondition,
      fmt::format("{} changed while it was being packed; pack again when it is whole", path.string()));
}

Expected<FileState> FileState::of(const std::filesystem::path& path) {
  struct stat info {};
  if (::stat(path.c_str(), &info) != 0) return failed("stat", path);
  return state_of(info);
}

Expected<std::shared_ptr<const SourceFile>> SourceFile::of(const MappedFile& file) {
  auto source = std::make_shared<SourceFile>();
  source->path = file.path();
  source->state = MR_TRY(FileState::of(file.path()));
  source->mapping = file.bytes();
  if (source->state.size != file.bytes().size())
    return fail(Code::failed_precondition,
                fmt::format("{} is being written: try again when it is whole", file.path().string()));
  return source;
}

Expected<SourceReader> SourceReader::open(const SourceBytes& source, uint64_t begin, uint64_t end) {
  MR_CHECK(begin <= end && end <= source.size(), "a reader's range must lie in its tensor");
  SourceReader reader;
  reader.source_ = &source;
  reader.begin_ = begin;
  reader.end_ = end;
  if (source.file == nullptr) return reader;
  const SourceFile& file = *source.file;
  reader.first_ = static_cast<uint64_t>(source.bytes.data() - file.mapping.data());
  reader.fd_ = ::open(file.path.c_str(), O_RDONLY | O_CLOEXEC);
  if (reader.fd_ < 0) return failed("open", file.path);
  struct stat info {};
  if (::fstat(reader.fd_, &info) != 0) return failed("stat", file.path);
  if (!state_of(info).same_content(file.state)) return changed_while_packing(file.path);
  if (end - begin > 256 * 1024)  // below, the kernel's own guess does
    ::posix_fadvise(reader.fd_, static_cast<off_t>(reader.first_ + begin), static_cast<off_t>(end - begin),
                    POSIX_FADV_WILLNEED);
  return reader;
}

SourceReader::SourceReader(SourceReader&& other) noexcept
    : source_(other.source_),
      first_(other.first_),
      begin_(other.begin_),
      end_(other.end_),
      fd_(std::exchange(other.fd_, -1)),
      forget_(other.forget_),
      buffer_(std::move(other.buffer_)) {}

SourceReader::~SourceReader() {
  if (fd_ < 0) return;
  if (forget_)
    ::posix_fadvise(fd_, static_cast<off_t>(first_ + begin_), static_cast<off_t>(end_ - begin_),
                    POSIX_FADV_DONTNEED);
  ::close(fd_);
}

Expected<const std::byte*> SourceReader::read(uint64_t at, uint64_t count) {
  MR_CHECK(at >= begin_ && count <= end_ - at, "a piece must lie in its reader's range");
  if (fd_ < 0) return source_->bytes.data() + at;
  buffer_.resize(count);
  const int64_t got = read_all(fd_, first_ + at, buffer_);
  if (got < 0) return failed("read", source_->file->path);
  if (std::cmp_less(got, count))
    return fail(Code::failed_precondition,
                fmt::format("{} was cut short while it was being packed", source_->file->path.string()));
  return buffer_.data();
}

}  // namespace millrace::model
