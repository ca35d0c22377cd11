// What decision 0001 leans on: TDPBF16PS is two chains of FP32 FMAs per output and instruction, over the even
// and the odd elements, from zero and ascending; their sum; one addition to the accumulator; denormals
// flushed throughout. Checked against that text, over random numbers of every magnitude.
#include <gtest/gtest.h>
#include <immintrin.h>

#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <random>

#include "base/thread_team.h"
#include "kernels/internal/target.h"
#include "kernels/isa.h"

namespace millrace::kernels {
namespace {

struct alignas(64) Operands {
  uint16_t a[16][32], b[16][32];  // b[k][2 n + parity]
  float c[16][16];
};

MR_BEGIN_TARGET(MR_TARGET_AMX)
void multiply_with_amx(Operands& x, int rows) {
  struct alignas(64) {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {64, 64, 64};
    uint8_t rows[16] = {};
  } config;
  config.rows[0] = config.rows[1] = static_cast<uint8_t>(rows);
  config.rows[2] = 16;
  // The tile instructions are opaque to the compiler: what they load must have been stored.
  __asm__ volatile("" ::"r"(&config) : "memory");
  _tile_loadconfig(&config);
  _tile_loadd(0, x.c, 64);
  _tile_loadd(1, x.a, 64);
  _tile_loadd(2, x.b, 64);
  _tile_dpbf16ps(0, 1, 2);
  _tile_stored(0, x.c, 64);
  _tile_release();
}
MR_END_TARGET

float widen(uint16_t x) { return std::bit_cast<float>(uint32_t{x} << 16); }

void multiply_in_words(Operands& x, int rows) {
  for (int m = 0; m < rows; ++m) {
    for (int n = 0; n < 16; ++n) {
      float even = 0, odd = 0;
      for (int k = 0; k < 16; ++k) {
        even = std::fma(widen(x.a[m][2 * k]), widen(x.b[k][2 * n]), even);
        odd = std::fma(widen(x.a[m][2 * k + 1]), widen(x.b[k][2 * n + 1]), odd);
      }
      x.c[m][n] = x.c[m][n] + (even + odd);
    }
  }
}

TEST(Tdpbf16ps, IsTwoChainsTheirSumAndOneAddition) {
  if (!isa_supported(Isa::amx)) GTEST_SKIP() << "no AMX here";
  const FlushDenormals flush;
  std::mt19937 generator(1);
  int64_t zeros = 0, huge = 0, outputs = 0;
  for (int round = 0; round < 2000; ++round) {
    // Exponents: one narrow band (cancellation), a wide one, products at the edges of underflow and of
    // overflow.
    const int low = std::array{126, 60, 58, 175}[size_t(round % 4)],
              high = std::array{130, 200, 66, 190}[size_t(round % 4)];
    const auto draw = [&]() -> uint32_t {
      const uint32_t exponent =
          std::uniform_int_distribution<uint32_t>(uint32_t(low), uint32_t(high))(generator);
      const uint32_t chance = generator() % 64;
      if (chance == 0) return generator() & 0x80000000u;  // zero
      if (chance == 1) return generator() & 0x807fffffu;  // denormal
      return (generator() & 0x807fffffu) | exponent << 23;
    };
    Operands x;
    for (auto& row : x.a)
      for (auto& value : row) value = static_cast<uint16_t>(draw() >> 16);
    for (auto& row : x.b)
      for (auto& value : row) value = static_cast<uint16_t>(draw() >> 16);
    for (auto& row : x.c)
      for (auto& value : row) value = round % 8 < 4 ? 0 : std::bit_cast<float>(draw());
    const int rows = round % 3 == 0 ? 3 : 16;
    Operands y = x;
    multiply_with_amx(x, rows);
    multiply_in_words(y, rows);
    for (int m = 0; m < rows; ++m) {
      for (int n = 0; n < 16; ++n) {
        const float got = x.c[m][n], want = y.c[m][n];
        ++outputs;
        zeros += want == 0;
        huge += std::isinf(want);
        if (std::isnan(want)) {
          ASSERT_TRUE(std::isnan(got));
        } else {
          ASSERT_EQ(std::bit_cast<uint32_t>(got), std::bit_cast<uint32_t>(want))
              << got << ' ' << want << " round " << round;
        }
      }
    }
  }
  EXPECT_GT(outputs, 300000);
  EXPECT_GT(zeros, 100);  // the edges were reached
  EXPECT_GT(huge, 100);
}

}  // namespace
}  // namespace millrace::kernels
