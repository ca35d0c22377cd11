#include "base/cpu.h"

#include <sched.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <map>
#include <set>
#include <sstream>

#include "base/cgroup.h"

namespace millrace {
namespace {

std::string first_line(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

// The tightest cpu.max from this process's cgroup up to the root (v2), or cfs quota (v1).
double read_quota_cores() {
  double best = 0;
  const auto take = [&](double cores) {
    if (cores > 0 && (best == 0 || cores < best)) best = cores;
  };
  for (const auto& [folder, v2] : cgroup_folders("cpu")) {
    if (v2) {
      std::istringstream text(first_line(folder / "cpu.max"));
      std::string quota;
      double period = 0;
      if (text >> quota >> period && quota != "max" && period > 0) take(std::atof(quota.c_str()) / period);
    } else {
      const double quota = std::atof(first_line(folder / "cpu.cfs_quota_us").c_str());
      const double period = std::atof(first_line(folder / "cpu.cfs_period_us").c_str());
      if (quota > 0 && period > 0) take(quota / period);
    }
  }
  return best;
}

}  // namespace

int GrantedCpus::threads() const {
  int n = std::max(1, physical_cores);
  if (quota_cores > 0) n = std::min(n, std::max(1, static_cast<int>(std::ceil(quota_cores))));
  return n;
}

GrantedCpus granted_cpus() {
  GrantedCpus granted;
  cpu_set_t mask;
  CPU_ZERO(&mask);
  std::vector<int> allowed;
  if (sched_getaffinity(0, sizeof mask, &mask) == 0) {
    for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu)
      if (CPU_ISSET(cpu, &mask)) allowed.push_back(cpu);
  }
  if (allowed.empty()) allowed.push_back(0);
  std::set<std::string> cores;
  std::vector<int> siblings;
  for (const int cpu : allowed) {
    const std::string topology = "/sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/topology/";
    const std::string core = first_line(topology + "physical_package_id") + ":" + first_line(topology + "core_id");
    const bool known = core != ":";
    if (known && !cores.insert(core).second) {
      siblings.push_back(cpu);
    } else {
      granted.cpus.push_back(cpu);
    }
  }
  granted.physical_cores = static_cast<int>(granted.cpus.size());
  granted.cpus.insert(granted.cpus.end(), siblings.begin(), siblings.end());
  granted.quota_cores = read_quota_cores();
  return granted;
}

std::string cpu_model_name() {
  std::ifstream file("/proc/cpuinfo");
  std::string line;
  while (std::getline(file, line)) {
    if (line.rfind("model name", 0) == 0) {
      const size_t colon = line.find(':');
      if (colon != std::string::npos && colon + 2 <= line.size()) return line.substr(colon + 2);
    }
  }
  return "unknown";
}

bool pin_this_thread(int cpu) { return pin_this_thread(std::span(&cpu, 1)); }

bool pin_this_thread(std::span<const int> cpus) {
  cpu_set_t mask;
  CPU_ZERO(&mask);
  for (const int cpu : cpus) {
    if (cpu < 0 || cpu >= CPU_SETSIZE) return false;
    CPU_SET(cpu, &mask);
  }
  return sched_setaffinity(0, sizeof mask, &mask) == 0;
}

}  // namespace millrace
