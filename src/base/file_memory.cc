// A mapped file brought into memory in huge pages.
//
// The page cache keeps a file in pages of the size in which they first came: what a program wrote, or read
// without asking for more, stays in pages of 4 KiB, and MADV_HUGEPAGE on a later map changes nothing. Weights
// mapped so are read at three quarters of memory's speed. The kernel can tell which parts they are
// (PAGEMAP_SCAN, Linux 6.7; file systems with huge pages for files that are written are younger), and lets go
// of clean pages that nobody else maps.
#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <vector>

#include "base/file.h"
#include "base/granted_memory.h"

namespace millrace {
namespace {

constexpr uintptr_t kHuge = uintptr_t{2} << 20;

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

size_t MappedFile::bring_into_memory() const {
  const auto begin = reinterpret_cast<uintptr_t>(data_);
  if (data_ == nullptr || size_ > granted_memory().available_bytes) return 0;
  advise_huge_pages();
  populate(begin, begin + size_);
  // A file's last part is no huge page, and where the map does not begin at a multiple of one none can be.
  if (begin % kHuge != 0) return 0;
  const std::vector<uintptr_t> blocks = small_blocks(begin, begin + size_ / kHuge * kHuge);
  if (blocks.empty()) return 0;
  const int fd = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC);
  struct stat info {};
  if (fd < 0) return 0;
  if (::fstat(fd, &info) != 0 || info.st_ino != inode_ || info.st_dev != device_) {  // another file by now
    ::close(fd);
    return 0;
  }
  ::fdatasync(fd);  // what is dirty stays
  for (const uintptr_t block : blocks) {
    ::madvise(reinterpret_cast<void*>(block), kHuge, MADV_DONTNEED);
    ::posix_fadvise(fd, static_cast<off_t>(block - begin), static_cast<off_t>(kHuge), POSIX_FADV_DONTNEED);
  }
  ::close(fd);
  for (const uintptr_t block : blocks) populate(block, block + kHuge);
  return (blocks.size() - small_blocks(begin, begin + size_ / kHuge * kHuge).size()) * kHuge;
}

}  // namespace millrace
