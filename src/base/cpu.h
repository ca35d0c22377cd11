// Which CPUs this process may really use: the affinity mask cut by the cgroup's quota (v1 and v2).
#pragma once
#include <span>
#include <string>
#include <vector>

namespace millrace {

struct GrantedCpus {
  std::vector<int> cpus;     // logical CPUs in the affinity mask, ascending, one per physical core first
  double quota_cores = 0;    // cgroup CPU quota in cores; 0 = none
  int threads() const;       // compute threads worth starting: min(physical cores in mask, ceil(quota)), at least 1
  int physical_cores = 0;    // distinct physical cores in the mask
};

GrantedCpus granted_cpus();
std::string cpu_model_name();      // "Intel(R) Xeon(R) ..." from /proc/cpuinfo, or "unknown"
bool pin_this_thread(int cpu);     // false: the kernel refused; the thread then runs unpinned
bool pin_this_thread(std::span<const int> cpus);  // to any of these; false too if one of them is negative

}  // namespace millrace
