#include "apps/doctor.h"

#include <fmt/core.h>
#include <fmt/ranges.h>
#include <sys/resource.h>

#include <boost/json.hpp>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <vector>

#include "base/cpu.h"
#include "base/file.h"
#include "base/granted_memory.h"
#include "base/units.h"
#include "kernels/isa.h"
#include "kernels/machine_peak.h"

namespace millrace::apps {
namespace {

std::string line_of(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

int numa_nodes() {
  int nodes = 0;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator("/sys/devices/system/node", error)) {
    const std::string name = entry.path().filename().string();
    if (name.rfind("node", 0) == 0 && name.size() > 4 && name.find_first_not_of("0123456789", 4) == std::string::npos)
      ++nodes;
  }
  return nodes > 0 ? nodes : 1;
}

// The word in brackets: "always [madvise] never" -> madvise.
std::string bracketed(const std::string& line) {
  const size_t open = line.find('['), close = line.find(']');
  return open == std::string::npos || close == std::string::npos ? line : line.substr(open + 1, close - open - 1);
}

struct Findings {
  GrantedCpus granted;
  std::string cpu;
  std::vector<std::string> isas;
  std::string active_isa;
  kernels::MachinePeak peak;
  double memory_gib = 0, available_gib = 0;
  std::string transparent_huge_pages;
  int numa = 1;
  uint64_t open_files = 0;
  double cache_free_gib = 0;
  std::vector<std::string> advice;
};

void advise(Findings& f) {
  if (f.active_isa == "scalar")
    f.advice.push_back("no AVX2: prefill and decode run in plain scalar code; use a CPU from 2013 or later");
  if (f.active_isa == "avx2" || f.active_isa == "avx512")
    f.advice.push_back("no matrix unit (AMX) is visible: in a VM, ask for a CPU type that passes amx_tile and amx_int8 on");
  if (f.granted.quota_cores > 0 && f.granted.quota_cores < f.granted.physical_cores)
    f.advice.push_back(fmt::format("the cgroup grants {:.1f} of {} cores: raise the CPU limit to use them all",
                                   f.granted.quota_cores, f.granted.physical_cores));
  if (f.transparent_huge_pages == "never")
    f.advice.push_back("transparent huge pages are off: echo madvise > /sys/kernel/mm/transparent_hugepage/enabled");
  if (f.numa > 1)
    f.advice.push_back(fmt::format("{} NUMA nodes: run one group a node (--groups {})", f.numa, f.numa));
  if (f.open_files < 8192)
    f.advice.push_back(fmt::format("only {} open files allowed: ulimit -Hn 65536 for thousands of streams", f.open_files));
  if (f.available_gib < 2) f.advice.push_back(fmt::format("only {:.1f} GiB of memory are free", f.available_gib));
  if (f.cache_free_gib < 1)
    f.advice.push_back(fmt::format("only {:.1f} GiB are free where models are kept: set MILLRACE_HOME", f.cache_free_gib));
}

Findings examine(double seconds) {
  Findings f;
  f.granted = granted_cpus();
  f.cpu = cpu_model_name();
  for (const auto isa : kernels::supported_isas()) f.isas.emplace_back(kernels::isa_name(isa));
  f.active_isa = kernels::isa_name(kernels::active_isa());
  std::vector<int> cpus(f.granted.cpus.begin(), f.granted.cpus.begin() + f.granted.threads());
  f.peak = kernels::measure_machine_peak(cpus, seconds, kernels::active_isa());
  const GrantedMemory memory = granted_memory();
  f.memory_gib = static_cast<double>(memory.total_bytes) / static_cast<double>(kGiB);
  f.available_gib = static_cast<double>(memory.available_bytes) / static_cast<double>(kGiB);
  f.transparent_huge_pages = bracketed(line_of("/sys/kernel/mm/transparent_hugepage/enabled"));
  f.numa = numa_nodes();
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) == 0) f.open_files = limit.rlim_max;  // serve raises its own soft limit to this
  std::error_code error;
  auto where = millrace_home();
  while (!std::filesystem::exists(where, error) && where.has_parent_path()) where = where.parent_path();
  const auto space = std::filesystem::space(where, error);
  if (!error) f.cache_free_gib = static_cast<double>(space.available) / static_cast<double>(kGiB);
  advise(f);
  return f;
}

void print_json(const Findings& f) {
  boost::json::object out;
  out["cpu"] = f.cpu;
  out["cores_granted"] = f.granted.threads();
  out["cpus"] = boost::json::value_from(f.granted.cpus);
  out["quota_cores"] = f.granted.quota_cores;
  out["isas"] = boost::json::value_from(f.isas);
  out["active_isa"] = f.active_isa;
  out["int8_tops"] = f.peak.int8_tops;
  out["read_gb_s"] = f.peak.read_gb_s;
  out["memory_gib"] = f.memory_gib;
  out["available_gib"] = f.available_gib;
  out["transparent_huge_pages"] = f.transparent_huge_pages;
  out["numa_nodes"] = f.numa;
  out["open_files"] = f.open_files;
  out["advice"] = boost::json::value_from(f.advice);
  fmt::print("{}\n", boost::json::serialize(out));
}

void print_text(const Findings& f) {
  fmt::print("CPU                {}\n", f.cpu);
  fmt::print("cores granted      {} (CPUs {}{})\n", f.granted.threads(), fmt::join(f.granted.cpus, ","),
             f.granted.quota_cores > 0 ? fmt::format("; quota {:.1f} cores", f.granted.quota_cores) : "");
  fmt::print("instruction sets   {}; in use: {}\n", fmt::join(f.isas, ", "), f.active_isa);
  fmt::print("INT8 peak          {:.2f} TOPS, measured now on {} threads\n", f.peak.int8_tops, f.peak.threads);
  fmt::print("memory reads       {:.1f} GB/s, measured now\n", f.peak.read_gb_s);
  fmt::print("memory             {:.1f} GiB, {:.1f} available\n", f.memory_gib, f.available_gib);
  fmt::print("huge pages         transparent: {}\n", f.transparent_huge_pages);
  fmt::print("NUMA nodes         {}\n", f.numa);
  fmt::print("open files         {}\n", f.open_files);
  fmt::print("models             {} ({:.1f} GiB free)\n", millrace_home().string(), f.cache_free_gib);
  if (f.advice.empty()) fmt::print("\nNothing to change.\n");
  for (const auto& text : f.advice) fmt::print("\n* {}", text);
  if (!f.advice.empty()) fmt::print("\n");
}

}  // namespace

int run_doctor(const DoctorOptions& options) {
  const Findings f = examine(options.seconds);
  if (options.json) {
    print_json(f);
  } else {
    print_text(f);
  }
  return 0;
}

}  // namespace millrace::apps
