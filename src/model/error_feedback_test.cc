// Rounding with feedback against its definition in double precision: written apart, column by column on the
// whole H.
#include "model/internal/error_feedback.h"

#include <fmt/core.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/random.h"
#include "kernels/gemm_s8.h"
#include "model/fixtures/correlated_inputs.h"

namespace millrace::model {
namespace {

constexpr double kDamping = 0.01;

std::vector<float> random_weights(int rows, int k, uint64_t seed) {
  std::vector<float> w;
  for (uint64_t i = 0; i < static_cast<uint64_t>(rows) * static_cast<uint64_t>(k); ++i)
    w.push_back(
        static_cast<float>(uniform_at(seed, i) + uniform_at(seed, i, 1) + uniform_at(seed, i, 2) - 1.5));
  return w;
}

struct Rounded {
  std::vector<int8_t> q;
  std::vector<float> scale;
};
Rounded round(const std::vector<float>& w, int rows, int k, const Feedback& feedback) {
  Rounded out{std::vector<int8_t>(w.size()), std::vector<float>(static_cast<size_t>(rows))};
  RoundScratch scratch;
  round_rows(w.data(), rows, k, feedback, out.q.data(), out.scale.data(), scratch);
  return out;
}

class ErrorFeedback : public fixtures::CalibrationInputsTest {
 protected:
  void add(int count, int k, int directions, uint64_t seed = 11) {
    ASSERT_TRUE(
        fixtures::add_rows(*inputs, "x", 0, fixtures::correlated_rows(count, k, directions, 1, seed), k));
  }
  SecondMoments moments(int begin, int columns) const {
    SecondMoments out(begin, columns);
    const CalibrationRows rows = inputs->find("x", 0).value();
    EXPECT_TRUE(out.add(*inputs, rows, rows.count()).has_value());
    return out;
  }
  // H in double, of all columns.
  std::vector<double> exact_moments(int k) const {
    const CalibrationRows rows = inputs->find("x", 0).value();
    const auto count = static_cast<size_t>(rows.count()), width = static_cast<size_t>(k);
    std::vector<float> x(count * width);
    EXPECT_TRUE(inputs->read(rows, 0, static_cast<int>(count), 0, k, x.data()).has_value());
    std::vector<double> h(width * width);
    for (size_t i = 0; i < width; ++i)
      for (size_t j = 0; j < width; ++j)
        for (size_t row = 0; row < count; ++row)
          h[i * width + j] +=
              static_cast<double>(x[i * count + row]) * static_cast<double>(x[j * count + row]);
    return h;
  }
};

// Sum over channels of e^T H e.
double cost(const std::vector<double>& h, const std::vector<float>& w, const Rounded& rounded, int rows,
            int k) {
  double sum = 0;
  const auto width = static_cast<size_t>(k);
  std::vector<double> e(width);
  for (size_t row = 0; row < static_cast<size_t>(rows); ++row) {
    for (size_t j = 0; j < width; ++j)
      e[j] = static_cast<double>(w[row * width + j]) -
             static_cast<double>(rounded.scale[row]) * static_cast<double>(rounded.q[row * width + j]);
    for (size_t i = 0; i < width; ++i)
      for (size_t j = 0; j < width; ++j) sum += e[i] * h[i * width + j] * e[j];
  }
  return sum;
}

// The definition: R and D by eliminating the last column first, then each column of each channel in turn.
Rounded round_exactly(std::vector<double> h, const std::vector<float>& w, int rows, int k, double damping) {
  const auto n = static_cast<size_t>(k);
  double trace = 0;
  for (size_t i = 0; i < n; ++i) trace += h[i * n + i];
  for (size_t i = 0; i < n; ++i) h[i * n + i] += damping * trace / static_cast<double>(n);
  std::vector<double> r(n * n);
  for (size_t c = n; c-- > 0;) {
    for (size_t i = 0; i < c; ++i) r[i * n + c] = h[i * n + c] / h[c * n + c];
    for (size_t i = 0; i < c; ++i)
      for (size_t j = 0; j < c; ++j) h[i * n + j] -= r[i * n + c] * h[c * n + c] * r[j * n + c];
  }
  Rounded out{std::vector<int8_t>(w.size()), std::vector<float>(static_cast<size_t>(rows))};
  std::vector<double> e(n);
  for (size_t row = 0; row < static_cast<size_t>(rows); ++row) {
    float peak = 0;
    for (size_t j = 0; j < n; ++j) peak = std::max(peak, std::fabs(w[row * n + j]));
    out.scale[row] = peak / 127.f;
    const auto step = static_cast<double>(out.scale[row]);
    for (size_t j = 0; j < n; ++j) {
      double target = static_cast<double>(w[row * n + j]);
      for (size_t i = 0; i < j; ++i) target += e[i] * r[i * n + j];
      const double level = std::clamp(std::nearbyint(target / step), -127.0, 127.0);
      out.q[row * n + j] = static_cast<int8_t>(level);
      e[j] = static_cast<double>(w[row * n + j]) - level * step;
    }
  }
  return out;
}

TEST_F(ErrorFeedback, WithoutItTheBytesAreThoseOfPacking) {
  const int rows = 19, k = 130;
  std::vector<float> w = random_weights(rows, k, 3);
  std::fill_n(w.begin() + 2 * k, k, 0.0f);
  const Rounded rounded = round(w, rows, k, {});
  std::vector<int8_t> tiles(kernels::weights_s8_tile_bytes(rows, k)), expected(tiles.size());
  std::vector<float> scale(static_cast<size_t>(kernels::padded_n(rows)));
  std::vector<int32_t> sum(scale.size()), expected_sum(scale.size());
  kernels::pack_s8(w.data(), k, rows, k, 0, rows, expected.data(), scale.data(), expected_sum.data());
  kernels::tile_s8(rounded.q.data(), k, rows, k, tiles.data(), sum.data());
  EXPECT_TRUE(tiles == expected);
  EXPECT_EQ(sum, expected_sum);
  scale.resize(static_cast<size_t>(rows));
  EXPECT_EQ(rounded.scale, scale);
}

TEST_F(ErrorFeedback, EqualsItsDefinition) {
  // One panel, a ragged one, several with a ragged end; rows fewer than columns, and more.
  for (const auto& [k, count] : {std::pair{64, 200}, {40, 30}, {200, 150}, {328, 700}}) {
    SCOPED_TRACE(fmt::format("{} columns, {} rows", k, count));
    inputs = CalibrationInputs::create(folder, 1).value();
    add(count, k, 12);
    const int rows = 9;
    const std::vector<float> w = random_weights(rows, k, 4);
    Feedback feedback;
    feedback.emplace_back(moments(0, k), kDamping);
    const Rounded got = round(w, rows, k, feedback), plain = round(w, rows, k, {});
    const std::vector<double> h = exact_moments(k);
    const Rounded expected = round_exactly(h, w, rows, k, kDamping);
    EXPECT_EQ(got.scale, expected.scale);
    // A target within float's error of a half rounds either way, and later ones follow it.
    size_t other = 0;
    for (size_t i = 0; i < w.size(); ++i) other += got.q[i] != expected.q[i] ? 1 : 0;
    EXPECT_LE(other, w.size() / 50);
    const double off = cost(h, w, got, rows, k), exact = cost(h, w, expected, rows, k),
                 without = cost(h, w, plain, rows, k);
    EXPECT_NEAR(off / exact, 1, 0.05);
    EXPECT_LT(off, 0.3 * without) << "these rows lie near 12 directions";
    // No value strays: a channel's error is some steps at most.
    for (size_t i = 0; i < w.size(); ++i) EXPECT_LE(std::abs(int{got.q[i]} - int{plain.q[i]}), 8);
  }
}

TEST_F(ErrorFeedback, BlocksAreIndependent) {
  const int k = 256, rows = 5;
  add(300, k, 20);
  std::vector<float> w = random_weights(rows, k, 6);
  for (size_t half = 0; half < w.size(); half += 128) w[half] = 2;  // one scale for both
  Feedback both;
  both.emplace_back(moments(0, 128), kDamping);
  both.emplace_back(moments(128, 128), kDamping);
  const Rounded whole = round(w, rows, k, both);
  for (const int begin : {0, 128}) {
    std::vector<float> part;
    for (int row = 0; row < rows; ++row)
      for (int j = 0; j < 128; ++j) part.push_back(w[static_cast<size_t>(row * k + begin + j)]);
    Feedback own;
    own.emplace_back(moments(begin, 128), kDamping);
    const Rounded alone = round(part, rows, 128, own);
    for (int row = 0; row < rows; ++row) {
      const auto r = static_cast<size_t>(row);
      EXPECT_EQ(alone.scale[r], whole.scale[r]);
      EXPECT_EQ(std::memcmp(&alone.q[r * 128], &whole.q[r * k + static_cast<size_t>(begin)], 128), 0);
    }
  }
}

TEST_F(ErrorFeedback, ChannelsDoNotDependOnEachOther) {
  const int k = 96, rows = 21;
  add(50, k, 8);
  const std::vector<float> w = random_weights(rows, k, 8);
  Feedback feedback;
  feedback.emplace_back(moments(0, k), kDamping);
  const Rounded all = round(w, rows, k, feedback);
  for (int row = 0; row < rows; ++row) {
    const Rounded one = round({w.begin() + row * k, w.begin() + (row + 1) * k}, 1, k, feedback);
    EXPECT_EQ(std::memcmp(one.q.data(), &all.q[static_cast<size_t>(row * k)], static_cast<size_t>(k)), 0)
        << row;
  }
}

TEST_F(ErrorFeedback, ColumnsThatNoRowUsesAndRowsOfZerosAreHarmless) {
  const int k = 80, rows = 3;
  auto x = fixtures::correlated_rows(40, k, 5, 1, 2);
  for (size_t i = 0; i < x.size(); ++i)
    if (i % k >= 30 && i % k < 50) x[i] = 0;
  ASSERT_TRUE(fixtures::add_rows(*inputs, "x", 0, x, k));
  std::vector<float> w = random_weights(rows, k, 9);
  std::fill_n(w.begin() + k, k, 0.0f);
  for (const double damping : {0.0, kDamping}) {
    Feedback feedback;
    feedback.emplace_back(moments(0, k), damping);
    const Rounded rounded = round(w, rows, k, feedback), plain = round(w, rows, k, {});
    EXPECT_EQ(rounded.scale[1], 0);
    for (size_t j = 0; j < k; ++j) EXPECT_EQ(rounded.q[k + j], 0);
    for (size_t j = 30; j < 50; ++j) EXPECT_EQ(rounded.q[j], plain.q[j]) << "rounded for itself";
  }
}

TEST_F(ErrorFeedback, AWeightActsLikeSoManyRows) {
  const int k = 72;
  add(30, k, 6);
  const CalibrationRows rows = inputs->find("x", 0).value();
  SecondMoments once(0, k), thrice(0, k);
  once.add(moments(0, k), 3);
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(thrice.add(*inputs, rows, rows.count()).has_value());
  EXPECT_NEAR(once.trace() / thrice.trace(), 1, 1e-5);
  for (int i = 0; i < k; ++i)
    for (int j = i; j < k; ++j)
      EXPECT_NEAR(once.sum[static_cast<size_t>(i * k + j)], thrice.sum[static_cast<size_t>(i * k + j)],
                  1e-5 * once.trace());
}

}  // namespace
}  // namespace millrace::model
