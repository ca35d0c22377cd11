// How much a group's total has grown since it was last looked at. A group counts from 0 in each life of its
// process and never less within one, so the boot id says whether a smaller number is a new beginning or only
// stale. Not thread-safe.
#pragma once
#include <cstdint>
#include <utility>

namespace millrace::gateway {

class BootTotal {
 public:
  uint64_t grown(uint64_t boot_id, uint64_t total) {
    if (std::exchange(boot_id_, boot_id) != boot_id) seen_ = 0;
    if (total <= seen_) return 0;
    return total - std::exchange(seen_, total);
  }

 private:
  uint64_t boot_id_ = 0, seen_ = 0;
};

}  // namespace millrace::gateway
