// The float GEMM: every level has the scalar text's bits, and those lie within a derived bound of the exact
// product.
#include <gtest/gtest.h>

#include <cfloat>
#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "base/thread_team.h"
#include "kernels/gemm_s8.h"

namespace millrace::kernels {
namespace {

std::vector<float> noise(size_t count, uint32_t seed, float scale = 1) {
  std::mt19937 gen(seed);
  std::vector<float> v(count);
  for (auto& x : v) x = std::normal_distribution<float>(0, scale)(gen);
  return v;
}

struct Problem {
  Problem(int m_, int n_, int k_, uint32_t seed, float scale = 1)
      : m(m_), n(n_), k(k_), a_stride(k_ + 3), out_stride(n_ + 2) {
    a = noise(static_cast<size_t>(m * a_stride), seed, scale);
    w = noise(static_cast<size_t>(n) * k, seed + 1, scale);
    bias = noise(static_cast<size_t>(n), seed + 2, scale * scale);
    initial = noise(static_cast<size_t>(m * out_stride), seed + 3, scale * scale);
  }
  std::vector<float> run(Isa isa, bool with_bias, bool accumulate, int n_begin = 0, int n_end = -1) const {
    std::vector<float> out = initial;
    gemm_f32_at(isa, {.a = a.data(),
                      .a_stride = a_stride,
                      .m = m,
                      .w = w.data(),
                      .n = n,
                      .k = k,
                      .n_begin = n_begin,
                      .n_end = n_end < 0 ? n : n_end,
                      .bias = with_bias ? bias.data() : nullptr,
                      .out = out.data(),
                      .out_stride = out_stride,
                      .accumulate = accumulate});
    return out;
  }

  int m, n, k;
  int64_t a_stride, out_stride;
  std::vector<float> a, w, bias, initial;
};

bool same_bits(const std::vector<float>& x, const std::vector<float>& y) {
  return x.size() == y.size() && std::memcmp(x.data(), y.data(), x.size() * sizeof(float)) == 0;
}

TEST(GemmF32, EveryLevelHasTheScalarBits) {
  uint32_t seed = 1;
  for (const int m : {1, 2, 3, 4, 5, 9, 17})
    for (const int n : {1, 2, 3, 4, 7, 16, 33})
      for (const int k : {1, 7, 8, 9, 15, 16, 17, 31, 64, 577}) {
        const Problem p(m, n, k, ++seed);
        const bool bias = seed % 2 == 0, accumulate = seed % 3 == 0;
        const auto want = p.run(Isa::scalar, bias, accumulate);
        for (const Isa isa : supported_isas())
          ASSERT_TRUE(same_bits(want, p.run(isa, bias, accumulate)))
              << isa_name(isa) << " " << m << " " << n << " " << k;
      }
}

// The smallest numbers, with denormals flushed as the compute threads do and without.
TEST(GemmF32, LevelsAgreeOnDenormals) {
  for (const bool flush : {false, true}) {
    const Problem p(3, 5, 39, 77, 1e-20f);
    std::vector<float> want;
    for (const Isa isa : supported_isas()) {
      std::vector<float> got;
      if (flush) {
        const FlushDenormals scope;
        got = p.run(isa, true, false);
      } else {
        got = p.run(isa, true, false);
      }
      if (isa == Isa::scalar) want = got;
      EXPECT_TRUE(same_bits(want, got)) << isa_name(isa) << " flush " << flush;
    }
  }
}

TEST(GemmF32, RowsAndColumnSplitsDoNotMatter) {
  const Problem p(7, 29, 100, 5);
  for (const Isa isa : supported_isas()) {
    const auto whole = p.run(isa, true, true);
    Problem row(1, 29, 100, 5);
    for (int i = 0; i < p.m; ++i) {
      row.a.assign(p.a.begin() + i * p.a_stride, p.a.begin() + (i + 1) * p.a_stride);
      row.w = p.w;
      row.bias = p.bias;
      row.initial.assign(p.initial.begin() + i * p.out_stride, p.initial.begin() + (i + 1) * p.out_stride);
      const auto alone = row.run(isa, true, true);
      EXPECT_EQ(0, std::memcmp(alone.data(), whole.data() + i * p.out_stride, alone.size() * sizeof(float)));
    }
    auto parts = p.initial;
    for (const auto& [begin, end] : {std::pair{0, 5}, {5, 6}, {6, 29}}) {
      const auto part = p.run(isa, true, true, begin, end);
      for (int i = 0; i < p.m; ++i)
        for (int n = begin; n < end; ++n)
          parts[static_cast<size_t>(i * p.out_stride + n)] = part[static_cast<size_t>(i * p.out_stride + n)];
    }
    EXPECT_TRUE(same_bits(whole, parts)) << isa_name(isa);
  }
}

// Each of the ceil(k/16) FMAs of a lane and the four additions of the fold rounds once: the error is at most
// (ceil(k/16) + 4 + 2) * u * sum |a||w| to first order (Higham, Accuracy and Stability, section 3.1), bias
// included.
TEST(GemmF32, LiesWithinTheDerivedBoundOfTheExactProduct) {
  for (const int k : {16, 576, 1536}) {
    const Problem p(4, 9, k, 123);
    for (const Isa isa : supported_isas()) {
      const auto out = p.run(isa, true, false);
      for (int i = 0; i < p.m; ++i) {
        for (int n = 0; n < p.n; ++n) {
          double exact = p.bias[static_cast<size_t>(n)], magnitude = std::fabs(exact);
          for (int j = 0; j < k; ++j) {
            const double product =
                double{p.a[static_cast<size_t>(i * p.a_stride + j)]} * p.w[static_cast<size_t>(n) * k + j];
            exact += product;
            magnitude += std::fabs(product);
          }
          const double bound = ((k + 15) / 16 + 6) * (FLT_EPSILON / 2) * magnitude;
          EXPECT_LE(std::fabs(out[static_cast<size_t>(i * p.out_stride + n)] - exact), bound)
              << isa_name(isa) << " k " << k;
        }
      }
    }
  }
}

}  // namespace
}  // namespace millrace::kernels
