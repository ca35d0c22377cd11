// Aligned, zeroed memory for weights, activations and KV pages; large buffers ask the kernel for huge pages.
#pragma once
#include <cstddef>
#include <span>
#include <utility>

#include "base/status.h"

namespace millrace {

inline constexpr size_t kHugePageBytes = size_t{2} << 20;

// Address space of this process's own, `bytes` rounded up to whole pages of 4 KiB: zeroed memory (where `protection`, of mmap's,
// allows), or room for something else to be mapped into. From a multiple of `alignment`, itself one of 4 KiB.
// The caller unmaps. Null with errno where there is none.
std::byte* map_aligned(size_t bytes, size_t alignment, int protection);

// Owns `size` bytes from mmap, zeroed, 4096-byte aligned (2 MiB aligned and advised as huge pages from 4 MiB
// up). Untouched pages cost no memory. Movable.
class Buffer {
 public:
  static Expected<Buffer> allocate(size_t size_bytes);
  Buffer() = default;
  Buffer(Buffer&& other) noexcept { swap(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    swap(other);
    return *this;
  }
  ~Buffer();

  // Takes the memory of [offset, offset + bytes) from the kernel now, so that no later write waits for it.
  // What is there already keeps its contents; safe while others use the buffer. Fails where this kernel
  // cannot (before Linux 5.14) or there is no memory; then first writes take it, as without.
  Expected<void> populate(size_t offset, size_t bytes) const;

  std::byte* data() const { return data_; }
  size_t size_bytes() const { return size_; }
  template <class T>
  T* as() const {
    return reinterpret_cast<T*>(data_);
  }

 private:
  void swap(Buffer& other) {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
  }
  std::byte* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace millrace
