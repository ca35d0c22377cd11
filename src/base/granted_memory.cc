#include "base/granted_memory.h"

#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <fstream>
#include <limits>
#include <string>
#include <string_view>

#include "base/cgroup.h"
#include "base/units.h"

namespace millrace {
namespace {

// 0: the file is not there, or does not begin with a number (v2's "max").
uint64_t number_in(const std::filesystem::path& path) {
  std::ifstream file(path);
  uint64_t number = 0;
  return file >> number ? number : 0;
}

// The number behind this name in a file of lines "name number ...". 0: none.
uint64_t number_of(const std::filesystem::path& path, std::string_view name) {
  std::ifstream file(path);
  uint64_t number = 0;
  for (std::string word; file >> word && file >> number;
       file.ignore(std::numeric_limits<std::streamsize>::max(), '\n'))
    if (word == name) return number;
  return 0;
}

}  // namespace

GrantedMemory granted_memory(const std::filesystem::path& root) {
  const auto meminfo = root / "proc/meminfo";
  uint64_t total = number_of(meminfo, "MemTotal:") * kKiB,
           available = number_of(meminfo, "MemAvailable:") * kKiB;
  if (total == 0) {  // no /proc
    total = static_cast<uint64_t>(sysconf(_SC_PHYS_PAGES)) * static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
    available = total;
  }
  for (const auto& [folder, v2] : cgroup_folders("memory", root)) {
    const uint64_t limit = number_in(folder / (v2 ? "memory.max" : "memory.limit_in_bytes"));
    if (limit == 0)
      continue;  // v1 writes a number beyond any machine's memory for "none", which needs no care
    const uint64_t held = number_in(folder / (v2 ? "memory.current" : "memory.usage_in_bytes"));
    const uint64_t idle_files =
        number_of(folder / "memory.stat", v2 ? "inactive_file" : "total_inactive_file");
    const uint64_t used = held - std::min(held, idle_files);
    total = std::min(total, limit);
    available = std::min(available, limit - std::min(limit, used));
  }
  return {.total_bytes = static_cast<size_t>(total), .available_bytes = static_cast<size_t>(available)};
}

}  // namespace millrace
