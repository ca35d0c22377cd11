// A mapped file brought into memory in huge pages: of the process's own, or of the page cache.
//
// The page cache keeps a file in pages of the size in which they first came: what a program wrote, or read
// without asking for more, stays in pages of 4 KiB, and MADV_HUGEPAGE on a later map changes nothing. Weights
// mapped so are read at three quarters of memory's speed. The kernel can tell which parts they are
// (PAGEMAP_SCAN, Linux 6.7), and lets go of clean pages that nobody else maps.
#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>
#include <span>
#include <vector>

#include "base/file.h"
#include "base/granted_memory.h"
#include "base/memory.h"

namespace millrace {
namespace {

constexpr uintptr_t kHuge = kHugePageBytes;

// As in linux/fs.h since 6.7.
struct PageRegion {
  uint64_t start, end, categories;
};
struct ScanArguments {
  uint64_t size, flags, start, end, walk_end, regions, region_count, max_pages;
  uint64_t category_inverted, category_mask, category_anyof_mask, return_mask;
};
constexpr uint64_t kPresent = 1 << 3, kInHugePage = 1 << 6;

void populate(uintptr_t begin, uintptr_t end) {
#ifndef MADV_POPULATE_READ
  constexpr int MADV_POPULATE_READ = 22;  // Linux 5.14
#endif
  if (begin < end) ::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_POPULATE_READ);
}

// Blocks of 2 MiB in [begin, end), which are aligned so, of which some page is mapped small; none where the
// kernel cannot tell.
std::vector<uintptr_t> small_blocks(uintptr_t begin, uintptr_t end) {
  std::vector<uintptr_t> blocks;
  const int fd = ::open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
  if (fd < 0) return blocks;
  std::vector<PageRegion> regions(512);
  while (begin < end) {
    ScanArguments scan{.size = sizeof scan,
                       .start = begin,
                       .end = end,
                       .regions = reinterpret_cast<uint64_t>(regions.data()),
                       .region_count = regions.size(),
                       .category_inverted = kInHugePage,
                       .category_mask = kPresent | kInHugePage,
                       .return_mask = kPresent};
    const int found = ::ioctl(fd, _IOWR('f', 16, ScanArguments), &scan);
    if (found < 0 || scan.walk_end <= begin) break;
    for (int i = 0; i < found; ++i) {
      const PageRegion& region = regions[static_cast<size_t>(i)];
      for (uintptr_t block = region.start / kHuge * kHuge; block < region.end; block += kHuge)
        if (blocks.empty() || blocks.back() != block) blocks.push_back(block);
    }
    begin = scan.walk_end;
  }
  ::close(fd);
  return blocks;
}

}  // namespace

void MappedFile::move_small_pages() const {
  const auto begin = reinterpret_cast<uintptr_t>(data_);
  // A file's last part is no huge page.
  const std::vector<uintptr_t> blocks = small_blocks(begin, begin + size_ / kHuge * kHuge);
  if (blocks.empty()) return;
  const int fd = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return;
  struct stat info {};
  const bool same = ::fstat(fd, &info) == 0 && info.st_ino == inode_ && info.st_dev == device_;
  const auto move = [&](std::span<const uintptr_t> some) {
    ::fdatasync(fd);  // what is dirty stays
    for (const uintptr_t block : some) {
      ::madvise(reinterpret_cast<void*>(block), kHuge, MADV_DONTNEED);
      ::posix_fadvise(fd, static_cast<off_t>(block - begin), static_cast<off_t>(kHuge), POSIX_FADV_DONTNEED);
    }
    for (const uintptr_t block : some) populate(block, block + kHuge);
  };
  if (same) {
    // Where the file system has no huge pages, one block tells.
    move(std::span(blocks).first(1));
    if (small_blocks(blocks[0], blocks[0] + kHuge).empty()) move(std::span(blocks).subspan(1));
  }
  ::close(fd);
}

// Moves a copy to where the map is. False where there are no addresses for one: all is as it was.
bool MappedFile::copy_to_own() const {
  std::byte* const copy = map_aligned(size_, kHugePageBytes, PROT_READ | PROT_WRITE);
  if (copy == nullptr) return false;
  ::madvise(copy, size_, MADV_HUGEPAGE);
  ::madvise(copy, size_, MADV_DONTDUMP);  // nobody wants weights in a core file
  std::memcpy(copy, data_, size_);
  ::mprotect(copy, size_, PROT_READ);
  void* const moved =
      ::mremap(copy, size_, size_, MREMAP_MAYMOVE | MREMAP_FIXED, const_cast<std::byte*>(data_));
  // It makes room before it fails: nothing might stand there any more.
  MR_CHECK(moved == data_, "weights cannot be moved");
  return true;
}

MappedFile::Place MappedFile::bring_into_memory(size_t own_at_most) const {
  if (own_) return Place::own;
  if (data_ == nullptr || size_ > granted_memory().available_bytes) return Place::nowhere;
  advise_huge_pages();
  const auto begin = reinterpret_cast<uintptr_t>(data_);
  populate(begin, begin + size_);
  if (size_ <= own_at_most && copy_to_own()) {
    own_ = true;
    return Place::own;
  }
  move_small_pages();
  return Place::cache;
}

}  // namespace millrace
