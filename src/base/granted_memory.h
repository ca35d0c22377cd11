// How much memory this process may really use: the machine's, cut by the limits of its cgroups (v1 and v2).
#pragma once
#include <cstddef>
#include <filesystem>

namespace millrace {

struct GrantedMemory {
  size_t total_bytes = 0;  // the machine's or the tightest cgroup's
  // What can still be taken before the kernel ends a process: the least of the machine's MemAvailable and, of
  // each cgroup with a limit, what is left below it. Cached files that nobody has read lately count as free,
  // as the kernel's own estimate and Kubernetes ("working set") have it. A guess: others take and give all
  // the time.
  size_t available_bytes = 0;
};
// Reads some small files of /proc and /sys: tens of microseconds. `root`: where those are, for tests.
GrantedMemory granted_memory(const std::filesystem::path& root = "/");

}  // namespace millrace
