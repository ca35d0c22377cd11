#include "base/memory.h"

#include <fmt/core.h>
#include <sys/mman.h>

#include <cerrno>
#include <cstdint>
#include <cstring>

#include "base/units.h"

namespace millrace {

std::byte* map_aligned(size_t bytes, size_t alignment, int protection) {
  constexpr size_t kPage = 4 * kKiB;
  if (bytes > SIZE_MAX - alignment - kPage) {
    errno = ENOMEM;
    return nullptr;
  }
  const size_t kept = (bytes + kPage - 1) / kPage * kPage, room = kept + alignment - kPage;
  void* const place = ::mmap(nullptr, room, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (place == MAP_FAILED) return nullptr;
  const auto first = reinterpret_cast<uintptr_t>(place);
  const uintptr_t aligned = (first + alignment - 1) / alignment * alignment;
  if (aligned > first) ::munmap(place, aligned - first);
  if (first + room > aligned + kept)
    ::munmap(reinterpret_cast<void*>(aligned + kept), first + room - aligned - kept);
  return reinterpret_cast<std::byte*>(aligned);
}

Expected<Buffer> Buffer::allocate(size_t size_bytes) {
  Buffer buffer;
  if (size_bytes == 0) return buffer;
  const bool huge = size_bytes >= 4 * kMiB;
  buffer.data_ = map_aligned(size_bytes, huge ? kHugePageBytes : 4 * kKiB, PROT_READ | PROT_WRITE);
  if (buffer.data_ == nullptr)
    return fail(Code::resource_exhausted,
                fmt::format("cannot map {} bytes of memory: {}", size_bytes, std::strerror(errno)));
  if (huge) ::madvise(buffer.data_, size_bytes, MADV_HUGEPAGE);
  buffer.size_ = size_bytes;
  return buffer;
}

Expected<void> Buffer::populate(size_t offset, size_t bytes) const {
  MR_CHECK(offset <= size_ && bytes <= size_ - offset, "populate reaches beyond the buffer");
  const size_t first = offset / (4 * kKiB) * (4 * kKiB);
  if (bytes == 0 || ::madvise(data_ + first, offset + bytes - first, MADV_POPULATE_WRITE) == 0) return {};
  const int error = errno;
  return fail(error == EINVAL ? Code::unimplemented : Code::resource_exhausted,
              fmt::format("cannot take {} bytes of memory beforehand: {}{}", bytes, std::strerror(error),
                          error == EINVAL ? " (it takes Linux 5.14)" : ""));
}

Buffer::~Buffer() {
  if (data_ != nullptr) ::munmap(data_, size_);
}

}  // namespace millrace
