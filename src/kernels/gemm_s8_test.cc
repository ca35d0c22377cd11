// Every level against plain loops in 64-bit integers, written apart from the kernels: bit for bit.
#include "kernels/gemm_s8.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "base/memory.h"

namespace millrace::kernels {
namespace {

// A packed matrix, its rows as quantised (unpacked by the test's own reading of the layout), and its buffers.
struct Matrix {
  Matrix(int n_, int k_) : n(n_), k(k_), tiles(Buffer::allocate(weights_s8_tile_bytes(n_, k_)).value()) {
    scale.resize(static_cast<size_t>(padded_n(n)));
    sum.resize(static_cast<size_t>(padded_n(n)));
  }
  static Matrix from(const std::vector<float>& w, int n, int k) {
    Matrix m(n, k);
    pack_s8(w.data(), k, n, k, 0, n, m.tiles.as<int8_t>(), m.scale.data(), m.sum.data());
    return m;
  }
  // Random bytes over the whole range, for speed and for extremes that quantised weights rarely reach.
  static Matrix random(int n, int k, uint32_t seed) {
    std::mt19937 gen(seed);
    std::vector<float> w(static_cast<size_t>(n) * k);
    for (auto& x : w) x = std::uniform_real_distribution<float>(-1, 1)(gen);
    return from(w, n, k);
  }
  int8_t at(int row, int column) const {
    const int64_t tile = (row / 16) * (padded_k(k) / 64) + column / 64;
    return tiles.as<int8_t>()[tile * 1024 + (column % 64) / 4 * 64 + row % 16 * 4 + column % 4];
  }
  WeightsS8 view() const { return {tiles.as<int8_t>(), scale.data(), sum.data(), n, k}; }

  int n, k;
  Buffer tiles;
  std::vector<float> scale;
  std::vector<int32_t> sum;
};

// Activations: padded rows hold garbage, as the contract allows; columns k..padded_k are zero.
struct Rows {
  Rows(int m_, int k_, uint32_t seed) : m(m_), k(k_), stride(padded_k(k_)) {
    buffer = Buffer::allocate(static_cast<size_t>(padded_m(m) * stride)).value();
    std::mt19937 gen(seed);
    for (int64_t i = 0; i < padded_m(m); ++i)
      for (int64_t j = 0; j < stride; ++j)
        data()[i * stride + j] = i < m && j >= k ? int8_t{0} : static_cast<int8_t>(int(gen() % 255) - 127);
    scale.resize(static_cast<size_t>(m));
    for (auto& s : scale) s = std::uniform_real_distribution<float>(1e-4f, 2e-2f)(gen);
  }
  int8_t* data() const { return buffer.as<int8_t>(); }

  int m, k;
  int64_t stride;
  Buffer buffer;
  std::vector<float> scale;
};

struct Case {
  bool bias = false, accumulate = false;
};

std::vector<float> noise(size_t count, uint32_t seed) {
  std::mt19937 gen(seed);
  std::vector<float> v(count);
  for (auto& x : v) x = std::normal_distribution<float>()(gen);
  return v;
}

std::vector<float> oracle(const Matrix& w, const Rows& a, const std::vector<float>& bias, bool accumulate,
                          const std::vector<float>& initial, int64_t out_stride) {
  std::vector<float> out = initial;
  for (int i = 0; i < a.m; ++i) {
    for (int n = 0; n < w.n; ++n) {
      int64_t sum = 0;
      for (int j = 0; j < w.k; ++j) sum += int64_t{a.data()[i * a.stride + j]} * w.at(n, j);
      const float scaled = static_cast<float>(sum) * a.scale[static_cast<size_t>(i)];
      float y = scaled * w.scale[static_cast<size_t>(n)];
      if (!bias.empty()) y += bias[static_cast<size_t>(n)];
      float& place = out[static_cast<size_t>(i * out_stride + n)];
      place = accumulate ? place + y : y;
    }
  }
  return out;
}

GemmS8Args arguments(const WeightsS8& view, const Rows& a, const std::vector<float>& bias, bool accumulate,
                     std::vector<float>& out, int64_t out_stride) {
  return {.a = a.data(),
          .a_stride = a.stride,
          .a_scale = a.scale.data(),
          .m = a.m,
          .w = &view,
          .n_begin = 0,
          .n_end = static_cast<int>(padded_n(view.n)),
          .bias = bias.empty() ? nullptr : bias.data(),
          .out = out.data(),
          .out_stride = out_stride,
          .accumulate = accumulate};
}

// Bits, so that -0 differs from +0 and a NaN equals itself.
testing::AssertionResult same_bits(const std::vector<float>& want, const std::vector<float>& got,
                                   int64_t stride) {
  for (size_t i = 0; i < want.size(); ++i)
    if (std::memcmp(&want[i], &got[i], sizeof(float)) != 0)
      return testing::AssertionFailure()
             << "row " << i / static_cast<size_t>(stride) << " column " << i % static_cast<size_t>(stride)
             << ": " << want[i] << " != " << got[i];
  return testing::AssertionSuccess();
}

class GemmS8 : public testing::TestWithParam<Isa> {
 protected:
  // Runs one product whole, into an output with room to the right that must stay untouched.
  void expect_equal(const Matrix& w, const Rows& a, Case c) {
    const int64_t out_stride = w.n + 7;
    const auto initial = noise(static_cast<size_t>(a.m * out_stride), 5);
    const auto bias = c.bias ? noise(static_cast<size_t>(w.n), 6) : std::vector<float>{};
    auto out = initial;
    const WeightsS8 view = w.view();
    gemm_s8_at(GetParam(), arguments(view, a, bias, c.accumulate, out, out_stride));
    EXPECT_TRUE(same_bits(oracle(w, a, bias, c.accumulate, initial, out_stride), out, out_stride))
        << "m " << a.m << " n " << w.n << " k " << w.k << " bias " << c.bias << " accumulate "
        << c.accumulate;
  }
};

TEST_P(GemmS8, RaggedShapesEqualTheOracle) {
  uint32_t seed = 1;
  for (const auto& [n, k] :
       {std::pair{16, 64}, {1, 1}, {17, 65}, {40, 576}, {100, 200}, {33, 1000}, {64, 128}})
    for (const int m : {1, 2, 3, 7, 15, 16, 17, 31, 32, 33, 48, 49, 64, 70})
      expect_equal(Matrix::random(n, k, seed), Rows(m, k, seed + 1),
                   {.bias = ++seed % 2 == 0, .accumulate = seed % 3 == 0});
}

TEST_P(GemmS8, EveryRowCountUpTo70) {
  const Matrix w = Matrix::random(80, 192, 9);
  for (int m = 1; m <= 70; ++m) expect_equal(w, Rows(m, 192, static_cast<uint32_t>(m)), {});
}

TEST_P(GemmS8, FewRowsOfEveryNumberOfBlocks) {
  for (const int n : {16, 48, 64, 80, 112, 150})
    for (const int k : {64, 128, 700}) {
      const Matrix w = Matrix::random(n, k, 7);
      for (int m = 1; m <= 8; ++m)
        expect_equal(w, Rows(m, k, static_cast<uint32_t>(m)), {.bias = true, .accumulate = true});
    }
}

// Rows times depth beyond what a level keeps in L2 (1 MiB on amx), so that it takes k in parts.
TEST_P(GemmS8, ManyRowsOfADeepProduct) {
  expect_equal(Matrix::random(80, 4096, 21), Rows(270, 4096, 22), {.bias = true, .accumulate = true});
}

TEST_P(GemmS8, WhatComesNextChangesNothing) {
  const Matrix w = Matrix::random(96, 1000, 31), after = Matrix::random(64, 3000, 32);
  const WeightsS8 view = w.view(), after_view = after.view();
  for (const int m : {1, 4, 20, 40}) {
    const Rows a(m, 1000, 33);
    std::vector<float> plain(static_cast<size_t>(m) * 96), hinted(plain.size());
    gemm_s8_at(GetParam(), arguments(view, a, {}, false, plain, 96));
    GemmS8Args args = arguments(view, a, {}, false, hinted, 96);
    args.next = &after_view;
    args.next_begin = 48;
    gemm_s8_at(GetParam(), args);
    EXPECT_TRUE(same_bits(plain, hinted, 96)) << m;
  }
}

TEST_P(GemmS8, BiasAndAccumulateInEveryCombination) {
  const Matrix w = Matrix::random(48, 320, 3);
  for (const int m : {1, 20, 40})
    for (const Case c : {Case{false, false}, {true, false}, {false, true}, {true, true}})
      expect_equal(w, Rows(m, 320, 4), c);
}

// Sums as large as they get: a level that saturates 16-bit pairs, or an unsigned operand, shows here.
TEST_P(GemmS8, ExtremesDoNotSaturate) {
  for (const int k : {64, 4096, 19000}) {
    for (const float sign : {1.f, -1.f}) {
      const std::vector<float> ones(static_cast<size_t>(32) * k, sign);
      const Matrix w = Matrix::from(ones, 32, k);
      ASSERT_EQ(w.at(31, k - 1), sign * 127);
      for (const int value : {127, -127, -128}) {
        Rows a(18, k, 1);
        for (int i = 0; i < a.m; ++i)
          for (int j = 0; j < k; ++j) a.data()[i * a.stride + j] = static_cast<int8_t>(value);
        expect_equal(w, a, {});
      }
    }
  }
}

TEST_P(GemmS8, ARowDoesNotDependOnItsBatch) {
  const int n = 96, k = 576, m = 64;
  const Matrix w = Matrix::random(n, k, 11);
  const WeightsS8 view = w.view();
  const Rows a(m, k, 12);
  std::vector<float> together(static_cast<size_t>(m) * n), alone(static_cast<size_t>(padded_m(1)) * n);
  gemm_s8_at(GetParam(), arguments(view, a, {}, false, together, n));
  for (int i = 0; i < m; ++i) {
    Rows one(1, k, 99);
    std::memcpy(one.data(), a.data() + i * a.stride, static_cast<size_t>(k));
    one.scale[0] = a.scale[static_cast<size_t>(i)];
    gemm_s8_at(GetParam(), arguments(view, one, {}, false, alone, n));
    ASSERT_EQ(0, std::memcmp(alone.data(), together.data() + i * n, sizeof(float) * n)) << "row " << i;
  }
}

TEST_P(GemmS8, ColumnSplitsEqualTheWhole) {
  const int n = 150, k = 300;
  const Matrix w = Matrix::random(n, k, 21);
  const WeightsS8 view = w.view();
  for (const int m : {1, 5, 16, 40}) {
    const Rows a(m, k, 22);
    std::vector<float> whole(static_cast<size_t>(m) * n), parts(whole.size());
    gemm_s8_at(GetParam(), arguments(view, a, {}, false, whole, n));
    for (const auto& [begin, end] : {std::pair{0, 16}, {16, 64}, {64, 64}, {64, 112}, {112, 150}}) {
      auto part = arguments(view, a, {}, false, parts, n);
      part.n_begin = begin;
      part.n_end = end;
      gemm_s8_at(GetParam(), part);
    }
    EXPECT_TRUE(same_bits(whole, parts, n)) << "m " << m;
  }
}

TEST_P(GemmS8, RealShapesEqualScalar) {
  for (const auto& [n, k] : {std::pair{960, 576}, {576, 1536}, {272, 4864}}) {
    const Matrix w = Matrix::random(n, k, 31);
    const WeightsS8 view = w.view();
    for (const int m : {1, 8, 37, 130}) {
      const Rows a(m, k, 32);
      std::vector<float> want(static_cast<size_t>(m) * n), got(want.size());
      gemm_s8_at(Isa::scalar, arguments(view, a, {}, false, want, n));
      gemm_s8_at(GetParam(), arguments(view, a, {}, false, got, n));
      EXPECT_TRUE(same_bits(want, got, n)) << "m " << m << " n " << n << " k " << k;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Levels, GemmS8, testing::ValuesIn(supported_isas()),
                         [](const auto& level) { return std::string(isa_name(level.param)); });

TEST(PackS8, ScaleSumAndBytes) {
  std::vector<float> w = {1.f, -2.f, 0.5f, 2.f, 0.f, 0.f, 0.f, 0.f, 3e-3f, 1e-3f, -1e-3f, 0.f};
  const Matrix m = Matrix::from(w, 3, 4);
  EXPECT_EQ(m.scale[0], 2.f / 127.f);
  EXPECT_EQ(m.scale[1], 0.f);
  EXPECT_EQ(m.scale[3], 0.f);  // a padding channel
  EXPECT_EQ(m.at(0, 1), -127);
  EXPECT_EQ(m.at(0, 3), 127);
  EXPECT_EQ(m.at(0, 0), 64);  // 63.5 lies between: ties go to even
  EXPECT_EQ(m.at(0, 2), 32);  // 31.75
  EXPECT_EQ(m.sum[0], 64 - 127 + 32 + 127);
  EXPECT_EQ(m.sum[1], 0);
  for (int column = 4; column < 64; ++column) EXPECT_EQ(m.at(0, column), 0);
  EXPECT_LE(std::fabs(m.at(2, 1) * m.scale[2] - 1e-3f), m.scale[2] / 2);
}

TEST(PackS8, PartsEqualTheWhole) {
  const int n = 50, k = 130;
  const auto w = noise(static_cast<size_t>(n) * k, 8);
  const Matrix whole = Matrix::from(w, n, k);
  Matrix parts(n, k);
  for (const auto& [begin, end] : {std::pair{32, 50}, {0, 16}, {16, 32}})
    pack_s8(w.data(), k, n, k, begin, end, parts.tiles.as<int8_t>(), parts.scale.data(), parts.sum.data());
  EXPECT_EQ(0, std::memcmp(whole.tiles.data(), parts.tiles.data(), weights_s8_tile_bytes(n, k)));
  EXPECT_EQ(whole.scale, parts.scale);
  EXPECT_EQ(whole.sum, parts.sum);
}

TEST(TileS8, RowsThatAreRoundedGetTheSameLayout) {
  for (const auto& [n, k] : {std::pair{16, 64}, {33, 130}, {1, 3}, {48, 64}}) {
    std::mt19937 gen(5);
    std::vector<float> w(static_cast<size_t>(n) * static_cast<size_t>(k));
    for (auto& x : w) x = std::uniform_real_distribution<float>(-1, 1)(gen);
    const Matrix packed = Matrix::from(w, n, k);
    const int stride = k + 5;  // rows of a wider matrix
    std::vector<int8_t> q(static_cast<size_t>(n) * static_cast<size_t>(stride), 99);
    for (int row = 0; row < n; ++row)
      for (int column = 0; column < k; ++column)
        q[static_cast<size_t>(row * stride + column)] = packed.at(row, column);
    Matrix tiled(n, k);
    std::memset(tiled.tiles.data(), 1, weights_s8_tile_bytes(n, k));  // padding must be written
    std::fill(tiled.sum.begin(), tiled.sum.end(), 1);
    tile_s8(q.data(), stride, n, k, tiled.tiles.as<int8_t>(), tiled.sum.data());
    EXPECT_EQ(std::memcmp(tiled.tiles.data(), packed.tiles.data(), weights_s8_tile_bytes(n, k)), 0)
        << n << " x " << k;
    EXPECT_EQ(tiled.sum, packed.sum);
  }
}

// Checkpoints come from outside: whatever they hold, packing ends and bytes stay in range.
TEST(PackS8, NonFiniteAndDenormalWeightsAreHarmless) {
  const float inf = INFINITY, nan = NAN;
  std::vector<float> w = {inf, 1, nan, -inf, nan, nan, nan, nan, 1e-45f, -1e-45f, 0, 0, 3e38f, -3e38f, 1, 0};
  const Matrix m = Matrix::from(w, 4, 4);
  for (int row = 0; row < 4; ++row)
    for (int column = 0; column < 4; ++column) EXPECT_GE(m.at(row, column), -127);
  EXPECT_EQ(m.at(3, 0), 127);
  EXPECT_EQ(m.at(3, 1), -127);
}

}  // namespace
}  // namespace millrace::kernels
