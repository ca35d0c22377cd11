#include "cluster/status_page.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

namespace millrace::cluster {
namespace {

constexpr uint64_t kMagic = 0x3130'5355'5441'5453;  // "STATUS01"
constexpr size_t kPageBytes = 4096;
static_assert(sizeof(StatusPage::Fields) <= kPageBytes);

Expected<StatusPage::Fields*> map_page(const std::filesystem::path& path, int flags) {
  const int fd = ::open(path.c_str(), flags | O_CLOEXEC | O_NOFOLLOW, 0600);
  if (fd < 0)
    return fail(Code::unavailable, fmt::format("status page {}: {}", path.string(), std::strerror(errno)));
  struct stat info {};
  const bool sized = (flags & O_CREAT) != 0 ? ::ftruncate(fd, kPageBytes) == 0
                                            : ::fstat(fd, &info) == 0 && info.st_size == kPageBytes;
  void* data = sized ? ::mmap(nullptr, kPageBytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) : MAP_FAILED;
  ::close(fd);
  if (data == MAP_FAILED)
    return fail(Code::unavailable,
                fmt::format("status page {} is not one page of {} bytes, or cannot be mapped", path.string(),
                            kPageBytes));
  return static_cast<StatusPage::Fields*>(data);
}

}  // namespace

Expected<std::shared_ptr<StatusPage>> StatusPage::create(const std::filesystem::path& path) {
  Fields* fields = MR_TRY(map_page(path, O_RDWR | O_CREAT));
  std::shared_ptr<StatusPage> page(new StatusPage(fields));
  page->clear_for_start(0);
  fields->magic.store(kMagic);
  return page;
}

Expected<std::shared_ptr<StatusPage>> StatusPage::open(const std::filesystem::path& path) {
  Fields* fields = MR_TRY(map_page(path, O_RDWR));
  std::shared_ptr<StatusPage> page(new StatusPage(fields));
  if (fields->magic.load() != kMagic)
    return fail(Code::failed_precondition,
                fmt::format("{} is not a status page of this version", path.string()));
  return page;
}

StatusPage::~StatusPage() { ::munmap(fields_, kPageBytes); }

void StatusPage::clear_for_start(uint64_t restarts) {
  fields_->restarts.store(restarts);
  fields_->ready.store(0);
  fields_->steps.store(0);
  fields_->pending.store(0);
  fields_->beat_ns.store(0);
  std::memset(fields_->message, 0, sizeof fields_->message);
}

void StatusPage::set_message(std::string_view message) {
  const size_t size = std::min(message.size(), sizeof fields_->message - 1);
  std::memcpy(fields_->message, message.data(), size);
  fields_->message[size] = '\0';
}

std::string StatusPage::message() const {
  return std::string(fields_->message, ::strnlen(fields_->message, sizeof fields_->message));
}

}  // namespace millrace::cluster
