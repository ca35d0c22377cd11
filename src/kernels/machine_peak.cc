#include "kernels/machine_peak.h"

#include <algorithm>
#include <atomic>
#include <barrier>
#include <chrono>
#include <cstring>
#include <fstream>
#include <functional>
#include <string>
#include <thread>

#include "base/cpu.h"
#include "base/memory.h"
#include "base/units.h"
#include "kernels/internal/peak_levels.h"

namespace millrace::kernels {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

using PeakRound = int64_t(int64_t rounds);
using ReadAll = uint64_t(const void* data, int64_t bytes);

PeakRound* peak_round_of(Isa isa) {
  switch (isa) {
    case Isa::amx:
      return internal::peak_round_amx;
    case Isa::avx512:
      return internal::peak_round_avx512;
    case Isa::avx2:
      return internal::peak_round_avx2;
    case Isa::scalar:
      break;
  }
  return internal::peak_round_scalar;
}

ReadAll* read_all_of(Isa isa) {
  switch (isa) {
    case Isa::amx:
    case Isa::avx512:
      return internal::read_all_avx512;
    case Isa::avx2:
      return internal::read_all_avx2;
    case Isa::scalar:
      break;
  }
  return internal::read_all_scalar;
}

// Runs measure(thread) on one pinned thread each and returns the sum of the rates.
double total_rate(const std::vector<int>& cpus, const std::function<double(size_t thread)>& measure) {
  std::vector<double> rates(cpus.size());
  std::vector<std::thread> threads;
  for (size_t i = 0; i < cpus.size(); ++i) {
    threads.emplace_back([&, i] {
      if (cpus[i] >= 0) pin_this_thread(cpus[i]);
      rates[i] = measure(i);
    });
  }
  double total = 0;
  for (size_t i = 0; i < cpus.size(); ++i) {
    threads[i].join();
    total += rates[i];
  }
  return total;
}

double multiply_rate(Isa isa, double seconds, std::barrier<>& start_line) {
  constexpr int64_t kRounds = 4096;
  PeakRound* const peak_round = peak_round_of(isa);
  peak_round(kRounds);  // wakes the unit and its clock
  start_line.arrive_and_wait();
  int64_t multiply_adds = 0;
  const auto start = Clock::now();
  double elapsed = 0;
  while ((elapsed = seconds_since(start)) < seconds) multiply_adds += peak_round(kRounds) * kRounds;
  return 2.0 * static_cast<double>(multiply_adds) / elapsed;
}

// What is read between two looks at the clock: a millisecond or so even on a slow machine.
constexpr size_t kPiece = 4 * kMiB;

size_t available_bytes() {
  std::ifstream file("/proc/meminfo");
  std::string key, unit;
  size_t kib = 0;
  while (file >> key >> kib && std::getline(file, unit))
    if (key == "MemAvailable:") return kib * kKiB;
  return kGiB;
}

// Memory for one thread to read: a virtual machine sees a last-level cache that it shares with strangers,
// often of hundreds of megabytes, and a smaller buffer would measure that. 1 GiB each, less where memory is
// short or cores are many (together at most a quarter of what is free, and 16 GiB), but never under 256 MiB.
size_t read_buffer_bytes(size_t threads) {
  const size_t room = std::min(available_bytes() / 4, 16 * kGiB) / threads;
  return std::clamp(room, 256 * kMiB, kGiB) / kPiece * kPiece;  // pieces never reach over the end
}

double read_rate(Isa isa, double seconds, size_t buffer_bytes, std::barrier<>& start_line) {
  MR_CHECK(buffer_bytes % kPiece == 0, "a buffer is read in whole pieces");
  ReadAll* const read_all = read_all_of(isa);
  auto buffer = Buffer::allocate(buffer_bytes);
  if (buffer) std::memset(buffer->data(), 1, buffer_bytes);  // untouched pages would all be the one zero page
  start_line.arrive_and_wait();
  if (!buffer) return 0;
  uint64_t sum = 0;
  size_t total = 0;
  const auto start = Clock::now();
  double elapsed = 0;
  while ((elapsed = seconds_since(start)) < seconds) {
    const size_t offset = total % buffer_bytes;
    sum ^= read_all(buffer->data() + offset, kPiece);
    total += kPiece;
  }
  static std::atomic<uint64_t> sink;
  sink.fetch_xor(sum, std::memory_order_relaxed);
  return static_cast<double>(total) / elapsed;
}

}  // namespace

double measure_int8_tops(const std::vector<int>& cpus, double seconds, Isa isa) {
  std::barrier start_line(static_cast<std::ptrdiff_t>(cpus.size()));
  return total_rate(cpus, [&](size_t) { return multiply_rate(isa, seconds, start_line); }) / 1e12;
}

double measure_read_gb_s(const std::vector<int>& cpus, double seconds, Isa isa) {
  std::barrier start_line(static_cast<std::ptrdiff_t>(cpus.size()));
  const size_t bytes = read_buffer_bytes(std::max<size_t>(1, cpus.size()));
  return total_rate(cpus, [&](size_t) { return read_rate(isa, seconds, bytes, start_line); }) / 1e9;
}

MachinePeak measure_machine_peak(const std::vector<int>& cpus, double seconds, Isa isa) {
  return {.int8_tops = measure_int8_tops(cpus, seconds, isa),
          .read_gb_s = measure_read_gb_s(cpus, seconds, isa),
          .threads = static_cast<int>(cpus.size())};
}

}  // namespace millrace::kernels
