#include "kernels/rows.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

#include "base/thread_team.h"

namespace millrace::kernels {
namespace {

using Floats = std::vector<float>;
constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

Floats random_floats(size_t count, uint32_t seed, float spread = 1) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal(0, spread);
  Floats values(count);
  for (float& value : values) value = normal(generator);
  return values;
}

// Magnitudes from denormal to huge, with zeros of both signs.
Floats extreme_floats(size_t count, uint32_t seed) {
  std::mt19937 generator(seed);
  Floats values(count);
  for (float& value : values) {
    const int exponent = std::uniform_int_distribution<int>(-140, 60)(generator);
    value = std::ldexp(std::uniform_real_distribution<float>(-1, 1)(generator), exponent);
    if (generator() % 16 == 0) value = std::copysign(0.0f, value);
  }
  return values;
}

template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

struct Quantised {
  std::vector<int8_t> q;
  Floats scale;
  Quantised(int m, int width) : q(size_t(m) * stride(width), 99), scale(size_t(m), -1) {}
  static size_t stride(int width) { return (size_t(width) + 63) / 64 * 64; }
  QuantRows rows(int width) { return {q.data(), int64_t(stride(width)), scale.data()}; }
  bool operator==(const Quantised& other) const { return q == other.q && same_bits(scale, other.scale); }
};

constexpr int kWidths[] = {1, 2, 7, 15, 16, 17, 31, 33, 64, 96, 100, 576, 1536, 4864};

class Rows : public testing::TestWithParam<Isa> {
 protected:
  const RowKernels& kernels = row_kernels_at(GetParam());
  const RowKernels& scalar = row_kernels_at(Isa::scalar);
  FlushDenormals flush;
};
INSTANTIATE_TEST_SUITE_P(Levels, Rows, testing::ValuesIn(supported_isas()),
                         [](const auto& level) { return std::string(isa_name(level.param)); });

// ---- every level gives the scalar level's bits ----

TEST_P(Rows, NormsEqualScalar) {
  for (const int width : kWidths) {
    for (const bool extreme : {false, true}) {
      const int m = 3;
      const int64_t stride = width + 5;
      const Floats x = extreme ? extreme_floats(size_t(m * stride), 1) : random_floats(size_t(m * stride), 1);
      const Floats gain = random_floats(size_t(width), 2);
      for (const float* g : {gain.data(), static_cast<const float*>(nullptr)}) {
        Floats a(size_t(m * stride), 7), b = a;
        kernels.rmsnorm(x.data(), stride, g, 1e-5f, m, width, a.data(), stride);
        scalar.rmsnorm(x.data(), stride, g, 1e-5f, m, width, b.data(), stride);
        EXPECT_TRUE(same_bits(a, b)) << width;
        Quantised p(m, width), q(m, width);
        kernels.rmsnorm_quant(x.data(), stride, g, 1e-5f, m, width, p.rows(width));
        scalar.rmsnorm_quant(x.data(), stride, g, 1e-5f, m, width, q.rows(width));
        EXPECT_TRUE(p == q) << width;
        // Fused and in two steps are the same thing.
        Quantised two(m, width);
        kernels.quant(a.data(), stride, m, width, two.rows(width));
        EXPECT_TRUE(p == two) << width;
      }
    }
  }
}

TEST_P(Rows, SwigluAndHadamardEqualScalar) {
  for (const int width : kWidths) {
    for (const bool extreme : {false, true}) {
      const int m = 2;
      const Floats x =
          extreme ? extreme_floats(size_t(m * 2 * width), 3) : random_floats(size_t(m * 2 * width), 3, 4);
      Floats a(size_t(m * width)), b = a;
      kernels.swiglu(x.data(), 2 * width, m, width, a.data(), width);
      scalar.swiglu(x.data(), 2 * width, m, width, b.data(), width);
      EXPECT_TRUE(same_bits(a, b)) << width;
      for (int block = 1; width % block == 0; block *= 2) {
        Quantised p(m, width), q(m, width);
        kernels.swiglu_hadamard_quant(x.data(), 2 * width, m, width, block, p.rows(width));
        scalar.swiglu_hadamard_quant(x.data(), 2 * width, m, width, block, q.rows(width));
        EXPECT_TRUE(p == q) << width << " block " << block;
      }
    }
  }
}

TEST_P(Rows, RopeAndHeadNormsEqualScalar) {
  for (const int head_dim : {2, 6, 32, 64, 80, 96, 128, 256}) {
    const int m = 3, heads = 3;
    const int64_t stride = heads * head_dim + 3;
    const Floats cos = random_floats(size_t(m * head_dim / 2), 4),
                 sin = random_floats(size_t(m * head_dim / 2), 5);
    Floats a = random_floats(size_t(m * stride), 6), b = a;
    kernels.rope_half(a.data(), stride, m, heads, head_dim, cos.data(), sin.data(), head_dim / 2);
    scalar.rope_half(b.data(), stride, m, heads, head_dim, cos.data(), sin.data(), head_dim / 2);
    EXPECT_TRUE(same_bits(a, b)) << head_dim;
    kernels.head_rmsnorm(a.data(), stride, m, heads, head_dim, cos.data(), 1e-6f);
    scalar.head_rmsnorm(b.data(), stride, m, heads, head_dim, cos.data(), 1e-6f);
    EXPECT_TRUE(same_bits(a, b)) << head_dim;
  }
}

TEST_P(Rows, SamplingEqualsScalar) {
  for (const int width : kWidths) {
    for (const bool extreme : {false, true}) {
      const Floats x = extreme ? extreme_floats(size_t(width), 8) : random_floats(size_t(width), 8, 5);
      EXPECT_EQ(kernels.argmax(x.data(), width), scalar.argmax(x.data(), width));
      float stats[2], expected[2];
      kernels.softmax_stats(x.data(), width, 0.7f, stats, stats + 1);
      scalar.softmax_stats(x.data(), width, 0.7f, expected, expected + 1);
      EXPECT_EQ(std::memcmp(stats, expected, sizeof stats), 0)
          << width << ' ' << stats[1] << ' ' << expected[1];
      Floats a(x.size()), b(x.size());
      kernels.softmax_write(x.data(), width, 0.7f, stats[0], stats[1], a.data());
      scalar.softmax_write(x.data(), width, 0.7f, stats[0], stats[1], b.data());
      EXPECT_TRUE(same_bits(a, b)) << width;
    }
  }
}

// ---- and the bits are right ----

// Relative error of rmsnorm: the sum of n squares in 16 lanes and a fold carries at most n/16 + 4 roundings,
// mean, eps, root, reciprocal and two products 6 more; half of the sum's comes through the root.
TEST_P(Rows, RmsnormAgreesWithDouble) {
  for (const int width : kWidths) {
    const Floats x = random_floats(size_t(width), 9), gain = random_floats(size_t(width), 10);
    Floats y(x.size());
    kernels.rmsnorm(x.data(), width, gain.data(), 1e-5f, 1, width, y.data(), width);
    double sum = 0;
    for (const float value : x) sum += double(value) * value;
    const double r = 1 / std::sqrt(sum / width + double(1e-5f));
    const double bound = (width / 32.0 + 8) * 0x1p-24;
    for (size_t k = 0; k < x.size(); ++k) {
      const double expected = x[k] * r * gain[k];
      EXPECT_LE(std::abs(y[k] - expected), bound * std::abs(expected)) << width;
    }
  }
}

// silu's terms over the whole range of floats: e^-x within 2 ulp, so 1 + e^-x within 2.5 and the quotient
// within 4.
TEST_P(Rows, SiluAgreesWithDouble) {
  Floats gate;
  for (float x = -90; x < 90; x += 0.01171875f) gate.push_back(x);
  for (const float x : {0.0f, 1e-30f, -1e-30f, 1e30f, 3e38f, 88.7f, -88.7f, 87.4f, -87.3f}) gate.push_back(x);
  const int width = static_cast<int>(gate.size());
  Floats row = gate;
  row.resize(2 * gate.size(), 1.0f);
  Floats y(gate.size());
  kernels.swiglu(row.data(), 2 * width, 1, width, y.data(), width);
  for (size_t k = 0; k < gate.size(); ++k) {
    const double x = gate[k], expected = x / (1 + std::exp(-x));
    if (x < -87) {  // e^-x overflows near -88.7: anything from the true tiny value to zero
      EXPECT_LE(std::abs(y[k]), 1.1 * std::abs(x * std::exp(x)) + 0x1p-126);
    } else {
      EXPECT_LE(std::abs(y[k] - expected), 4 * 0x1p-23 * std::abs(expected)) << x;
    }
  }
}

// e^x through softmax_write with max 0, temperature 1, sum 1: within 2 ulp over (-87.3, 0], exactly 0 below.
TEST_P(Rows, ExponentialAgreesWithDouble) {
  Floats x;
  for (float v = 0; v > -87.33f; v -= 0.00097f) x.push_back(v);
  Floats y(x.size());
  kernels.softmax_write(x.data(), static_cast<int>(x.size()), 1, 0, 1, y.data());
  double worst = 0;
  for (size_t k = 0; k < x.size(); ++k)
    worst = std::max(worst, std::abs(y[k] / std::exp(double(x[k])) - 1) * 0x1p23);
  EXPECT_LE(worst, 2);
  EXPECT_EQ(y[0], 1.0f);
  const Floats edge = {-87.4f, -88.0f, -200.0f, -3e38f, -kInfinity, kNan, 88.7f, 89.0f, 3e38f, kInfinity};
  Floats out(edge.size());
  kernels.softmax_write(edge.data(), static_cast<int>(edge.size()), 1, 0, 1, out.data());
  for (int k = 0; k < 6; ++k) EXPECT_EQ(std::bit_cast<uint32_t>(out[size_t(k)]), 0u) << edge[size_t(k)];
  EXPECT_NEAR(out[6] / std::exp(double(88.7f)), 1, 0x1p-22);
  for (size_t k = 7; k < 10; ++k) EXPECT_EQ(out[k], kInfinity);
}

TEST_P(Rows, QuantisesToNearestWithScale) {
  for (const int width : kWidths) {
    const Floats x = random_floats(size_t(width), 11, 3);
    Quantised y(1, width);
    kernels.quant(x.data(), width, 1, width, y.rows(width));
    float largest = 0;
    for (const float value : x) largest = std::max(largest, std::abs(value));
    EXPECT_EQ(y.scale[0], largest / 127.0f);
    for (size_t k = 0; k < y.q.size(); ++k) {
      if (k >= x.size()) {
        EXPECT_EQ(y.q[k], 0) << "padding";
      } else {
        EXPECT_EQ(y.q[k], std::nearbyintf(x[k] * (127.0f / largest)));
        EXPECT_LE(std::abs(y.q[k] * double(y.scale[0]) - x[k]), 0.50001 * y.scale[0]);
      }
    }
  }
}

TEST_P(Rows, QuantisesZerosTiniesAndNonFinite) {
  Quantised zero(1, 40), tiny(1, 40), bad(1, 40), infinite(1, 40);
  Floats x(40, 0.0f);
  kernels.quant(x.data(), 40, 1, 40, zero.rows(40));
  EXPECT_EQ(zero.scale[0], 0);
  EXPECT_EQ(zero.q, std::vector<int8_t>(64, 0));
  x[39] = 0x1p-125f;  // 127 / it would overflow
  kernels.quant(x.data(), 40, 1, 40, tiny.rows(40));
  EXPECT_EQ(tiny.scale[0], 0);
  EXPECT_EQ(tiny.q, std::vector<int8_t>(64, 0));
  x[3] = kNan;  // wherever it stands, it must show
  x[20] = 5;
  kernels.quant(x.data(), 40, 1, 40, bad.rows(40));
  EXPECT_TRUE(std::isnan(bad.scale[0]));
  x[3] = -kInfinity;
  kernels.quant(x.data(), 40, 1, 40, infinite.rows(40));
  EXPECT_EQ(infinite.scale[0], kInfinity);
}

TEST_P(Rows, SwigluHadamardQuantIsItsParts) {
  for (const int block : {1, 2, 8, 16, 32, 64, 256, 512}) {
    const int m = 2, width = 1536;
    const Floats x = random_floats(size_t(m * 2 * width), 12);
    Floats y(size_t(m * width));
    kernels.swiglu(x.data(), 2 * width, m, width, y.data(), width);
    for (int k = 0; k < m * width; k += block) hadamard(y.data() + k, block);
    Quantised fused(m, width), parts(m, width);
    kernels.swiglu_hadamard_quant(x.data(), 2 * width, m, width, block, fused.rows(width));
    kernels.quant(y.data(), width, m, width, parts.rows(width));
    EXPECT_TRUE(fused == parts) << block;
  }
}

TEST_P(Rows, HadamardIsThePlainOne) {
  for (const int block : {1, 2, 8, 16, 32, 64, 256, 512}) {
    Floats x = random_floats(512, 21), plain = x;
    for (size_t k = 0; k < x.size(); k += size_t(block)) hadamard(plain.data() + k, block);
    kernels.hadamard(x.data(), 512, block);
    EXPECT_EQ(x, plain) << block;
  }
}

TEST(Hadamard, IsOrthonormalInNaturalOrder) {
  for (const int size : {1, 2, 4, 16, 64, 512}) {
    for (const int at : {0, size / 2, size - 1}) {
      Floats x(size_t(size), 0.0f);
      x[size_t(at)] = 1;
      hadamard(x.data(), size);
      for (int k = 0; k < size; ++k)  // H[k][at] = (-1)^popcount(k & at) / sqrt(size)
        EXPECT_EQ(x[size_t(k)],
                  (std::popcount(unsigned(k & at)) % 2 ? -1.0f : 1.0f) / std::sqrt(float(size)));
      hadamard(x.data(), size);
      for (int k = 0; k < size; ++k) EXPECT_NEAR(x[size_t(k)], k == at ? 1 : 0, 1e-6);
    }
  }
}

// Two products and an addition, one rounding saved by the FMA: 2^-24 of each product and of the result.
TEST_P(Rows, RopeRotatesHalves) {
  const int head_dim = 64, heads = 2, m = 2;
  const Floats x = random_floats(m * heads * head_dim, 13);
  Floats y = x, cos(m * head_dim / 2), sin = cos;
  for (size_t k = 0; k < cos.size(); ++k) cos[k] = std::cos(float(k)), sin[k] = std::sin(float(k));
  kernels.rope_half(y.data(), heads * head_dim, m, heads, head_dim, cos.data(), sin.data(), head_dim / 2);
  for (int i = 0; i < m; ++i) {
    for (int h = 0; h < heads; ++h) {
      for (int k = 0; k < head_dim / 2; ++k) {
        const size_t low = size_t((i * heads + h) * head_dim + k), high = low + head_dim / 2;
        const double c = cos[size_t(i * head_dim / 2 + k)], s = sin[size_t(i * head_dim / 2 + k)];
        const double bound = (std::abs(x[low]) + std::abs(x[high])) * 2 * 0x1p-24;
        EXPECT_NEAR(y[low], x[low] * c - x[high] * s, bound);
        EXPECT_NEAR(y[high], x[high] * c + x[low] * s, bound);
      }
    }
  }
}

TEST_P(Rows, ArgmaxTakesTheLowestIndexAndSkipsNan) {
  for (const int width : {1, 5, 16, 31, 49152}) {
    Floats x(size_t(width), -3.0f);
    EXPECT_EQ(kernels.argmax(x.data(), width), 0);
    for (const int at : {0, width / 3, width - 1}) {
      Floats y = x;
      y[size_t(at)] = 2;
      y[size_t(width - 1)] = 2;
      if (at > 0) y[0] = kNan;
      EXPECT_EQ(kernels.argmax(y.data(), width), at);
    }
    std::ranges::fill(x, kNan);
    EXPECT_EQ(kernels.argmax(x.data(), width), 0);
    std::ranges::fill(x, -kInfinity);
    EXPECT_EQ(kernels.argmax(x.data(), width), 0);
  }
}

// Each term within 2 ulp and one for the product, the sum of n terms in 16 lanes n/16 + 4 roundings.
TEST_P(Rows, SoftmaxAgreesWithDouble) {
  for (const int width : {1, 17, 1000, 49152}) {
    const Floats x = random_floats(size_t(width), 14, 4);
    float max = 0, sum = 0;
    kernels.softmax_stats(x.data(), width, 1.25f, &max, &sum);
    EXPECT_EQ(max, *std::ranges::max_element(x));
    double expected = 0;
    for (const float value : x) expected += std::exp((double(value) - max) * 1.25);
    // An argument of up to 50 rounded twice adds 50 * 2^-23 to a term that is e^-50 of the sum; 2^-19 covers
    // every mix.
    EXPECT_NEAR(sum / expected, 1, (width / 16.0 + 8) * 0x1p-24 + 0x1p-19);
    Floats p(x.size());
    kernels.softmax_write(x.data(), width, 1.25f, max, sum, p.data());
    EXPECT_NEAR(std::accumulate(p.begin(), p.end(), 0.0), 1, (width / 16.0 + 8) * 0x1p-24);
  }
}

TEST(RowKernels, EveryLevelHasItsTable) { EXPECT_EQ(&row_kernels(), &row_kernels_at(active_isa())); }

}  // namespace
}  // namespace millrace::kernels
