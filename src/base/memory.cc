#include "base/memory.h"

#include <fmt/core.h>
#include <sys/mman.h>

#include <cerrno>
#include <cstdint>
#include <cstring>

#include "base/units.h"

namespace millrace {

Expected<Buffer> Buffer::allocate(size_t size_bytes) {
  Buffer buffer;
  if (size_bytes == 0) return buffer;
  const bool huge = size_bytes >= 4 * kMiB;
  const size_t alignment = huge ? 2 * kMiB : 4 * kKiB;
  const size_t mapped = size_bytes + (huge ? alignment : 0);
  void* mapping =
      ::mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapping == MAP_FAILED)
    return fail(Code::resource_exhausted,
                fmt::format("cannot map {} bytes of memory: {}", size_bytes, std::strerror(errno)));
  const auto address = reinterpret_cast<uintptr_t>(mapping);
  const uintptr_t aligned = (address + alignment - 1) / alignment * alignment;
  if (huge) ::madvise(reinterpret_cast<void*>(aligned), size_bytes, MADV_HUGEPAGE);
  buffer.mapping_ = mapping;
  buffer.mapping_size_ = mapped;
  buffer.data_ = reinterpret_cast<std::byte*>(aligned);
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
  if (mapping_ != nullptr) ::munmap(mapping_, mapping_size_);
}

}  // namespace millrace
