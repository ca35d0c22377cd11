// What this machine can do at most, measured now: the denominators of every "percent of peak" that Millrace
// prints.
#pragma once
#include <vector>

#include "kernels/isa.h"

namespace millrace::kernels {

struct MachinePeak {
  double int8_tops = 0;  // INT8 multiply-adds counted as two operations, registers only, all threads together
  double read_gb_s =
      0;  // sequential reads of memory larger than the caches a VM really owns, all threads, 1e9 bytes
  int threads = 0;
};
// Runs `seconds` for each figure on one pinned thread per entry of cpus (-1: unpinned). The read figure first
// fills up to 1 GiB a thread (less where memory is short), which takes longer than the measurement itself.
MachinePeak measure_machine_peak(const std::vector<int>& cpus, double seconds, Isa isa);
double measure_int8_tops(const std::vector<int>& cpus, double seconds, Isa isa);
double measure_read_gb_s(const std::vector<int>& cpus, double seconds, Isa isa);

}  // namespace millrace::kernels
