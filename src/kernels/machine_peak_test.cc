#include "kernels/machine_peak.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "base/memory.h"
#include "kernels/internal/peak_levels.h"

namespace millrace::kernels {
namespace {

TEST(MachinePeak, EveryLevelMeasuresSomethingPlausible) {
  for (const Isa isa : supported_isas()) {
    const MachinePeak peak = measure_machine_peak({-1}, 0.02, isa);
    EXPECT_EQ(peak.threads, 1);
    EXPECT_GT(peak.int8_tops, 1e-4) << isa_name(isa);
    EXPECT_LT(peak.int8_tops, 1e3) << isa_name(isa);
    EXPECT_GT(peak.read_gb_s, 0.05) << isa_name(isa);
    EXPECT_LT(peak.read_gb_s, 1e3) << isa_name(isa);
  }
}

// Each wider level multiplies more per instruction; a dropped or folded loop would break the order.
// Factor 1.3 of slack below the twofold steps that the instruction sets give, for a noisy machine.
TEST(MachinePeak, WiderLevelsMultiplyFaster) {
  double last = 0;
  for (const Isa isa : supported_isas()) {
    double tops = 0;
    for (int attempt = 0; attempt < 3; ++attempt) tops = std::max(tops, measure_int8_tops({-1}, 0.02, isa));
    EXPECT_GT(tops, last * 1.3) << isa_name(isa);
    last = tops;
  }
}

// A line that is not read makes the machine look faster than it is.
TEST(MachinePeak, ReadsEveryByte) {
  constexpr int64_t kBytes = 4096;
  auto buffer = Buffer::allocate(kBytes).value();
  auto* words = reinterpret_cast<uint64_t*>(buffer.data());
  std::fill_n(words, kBytes / 8, 0);
  std::vector<uint64_t (*)(const void*, int64_t)> levels{internal::read_all_scalar};
  if (isa_supported(Isa::avx2)) levels.push_back(internal::read_all_avx2);
  if (isa_supported(Isa::avx512)) levels.push_back(internal::read_all_avx512);
  for (const auto& read_all : levels) {
    const uint64_t untouched = read_all(words, kBytes);
    for (int64_t word = 0; word < kBytes / 8; ++word) {
      words[word] = 0x0123456789abcdef;
      EXPECT_NE(read_all(words, kBytes), untouched) << "word " << word;
      words[word] = 0;
    }
  }
}

TEST(MachinePeak, NoThreadsGiveNothing) { EXPECT_EQ(measure_machine_peak({}, 0.01, Isa::scalar).threads, 0); }

}  // namespace
}  // namespace millrace::kernels
