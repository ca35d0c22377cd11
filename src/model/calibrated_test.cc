// Which inputs a linear is rounded for: its own, and where few have reached an expert, how its layer's
// router's rows take the place of those that are missing.
#include "model/internal/calibrated.h"

#include <fmt/core.h>
#include <gtest/gtest.h>

#include <cstring>

#include "model/fixtures/correlated_inputs.h"

namespace millrace::model {
namespace {

using fixtures::add_rows;
using fixtures::correlated_rows;

constexpr int kWidth = 96;
constexpr int kEnough = static_cast<int>(expert_rows_enough(kWidth));

class Calibrated : public fixtures::CalibrationInputsTest {
 protected:
  void add(std::string_view section, int rows, uint64_t kind, uint64_t seed, int first_channel = 0) {
    ASSERT_TRUE(
        add_rows(*inputs, section, first_channel, correlated_rows(rows, kWidth, 6, kind, seed), kWidth));
  }
  SecondMoments moments() const { return {0, kWidth}; }
  void accumulate(SecondMoments& to, std::string_view section, double weight,
                  int64_t at_most = INT64_MAX) const {
    const CalibrationRows rows = inputs->find(section, 0).value();
    EXPECT_TRUE(to.add(*inputs, rows, std::min(at_most, rows.count()), weight).has_value());
  }
  static PlannedLinear gate_up() {
    return {.section = "expert.gate_up", .k = kWidth, .of_one_expert = true, .also_read_by = "router"};
  }
  static PlannedLinear down() { return {.section = "expert.down", .k = kWidth, .of_one_expert = true}; }
};

bool same(const FeedbackBlock& a, const FeedbackBlock& b) {
  if (a.columns() != b.columns()) return false;
  for (int panel = 0; panel < a.panels(); ++panel) {
    const int width = std::min(kFeedbackPanel, a.columns() - panel * kFeedbackPanel);
    const int behind = a.columns() - panel * kFeedbackPanel - width;
    if (std::memcmp(a.inside(panel), b.inside(panel),
                    sizeof(float) * static_cast<size_t>(width * kFeedbackPanel)) != 0 ||
        std::memcmp(a.behind(panel), b.behind(panel), sizeof(float) * static_cast<size_t>(width * behind)) !=
            0)
      return false;
  }
  return true;
}

TEST_F(Calibrated, ALinearIsRoundedForItsOwnRowsHoweverFew) {
  add("o", 5, 1, 2);
  add("router", 500, 3, 4);
  const Feedback got = feedback_of(*inputs, {.section = "o", .k = kWidth}, 0).value();
  SecondMoments own = moments();
  accumulate(own, "o", 1);
  ASSERT_EQ(got.size(), 1u);
  EXPECT_TRUE(same(got[0], FeedbackBlock(own, kDamping)));
}

TEST_F(Calibrated, AnExpertThatEnoughRowsReachedBorrowsNone) {
  add("expert.gate_up", kEnough, 1, 2);
  add("router", 500, 3, 4);
  const Feedback got = feedback_of(*inputs, gate_up(), 0).value();
  SecondMoments own = moments();
  accumulate(own, "expert.gate_up", 1);
  EXPECT_TRUE(same(got[0], FeedbackBlock(own, kDamping)));
}

TEST_F(Calibrated, ARareExpertBorrowsTheMissingRowsFromTheRouter) {
  constexpr int kOwn = 10;
  add("expert.gate_up", kOwn, 1, 2);
  add("router", 500, 3, 4);
  const Feedback got = feedback_of(*inputs, gate_up(), 0).value();
  SecondMoments blend = moments(), own = moments();
  accumulate(blend, "expert.gate_up", 1);
  accumulate(own, "expert.gate_up", 1);
  accumulate(blend, "router", static_cast<double>(kEnough - kOwn) / 500);
  EXPECT_TRUE(same(got[0], FeedbackBlock(blend, kDamping)));
  EXPECT_FALSE(same(got[0], FeedbackBlock(own, kDamping)));
}

TEST_F(Calibrated, OfManyRowsThatCameToTheRouterSomeCountForAll) {
  add("router", static_cast<int>(kRouterRows) + 50, 3, 4);
  const Feedback got = feedback_of(*inputs, gate_up(), 0).value();
  SecondMoments some = moments();
  accumulate(some, "router", static_cast<double>(kEnough) / static_cast<double>(kRouterRows), kRouterRows);
  EXPECT_TRUE(same(got[0], FeedbackBlock(some, kDamping))) << "an expert that no row has reached";
}

TEST_F(Calibrated, TheSecondProductOfARareExpertIsHeldBack) {
  constexpr int kOwn = 16;
  add("expert.down", kOwn, 1, 2);
  add("router", 500, 3, 4);
  const Feedback got = feedback_of(*inputs, down(), 0).value();
  SecondMoments own = moments();
  accumulate(own, "expert.down", 1);
  const double missing = static_cast<double>(kEnough - kOwn) / kOwn;
  EXPECT_TRUE(same(got[0], FeedbackBlock(own, kDamping + missing)));
}

TEST_F(Calibrated, WhatNothingIsKnownOfIsRoundedColumnByColumn) {
  add("o", 5, 1, 2);
  EXPECT_TRUE(feedback_of(*inputs, {.section = "head", .k = kWidth}, 0).value().empty());
  EXPECT_TRUE(feedback_of(*inputs, down(), 0).value().empty());
  EXPECT_TRUE(feedback_of(*inputs, gate_up(), 0).value().empty());
}

// The purpose of borrowing, where an expert's rows are like the others' in most of their directions: what
// rows to come cost is less than if the few were trusted, and than if they were not looked at.
TEST_F(Calibrated, BorrowingServesRowsToCome) {
  const auto rows_of = [](int count, uint64_t seed) {  // 6 directions of the layer, and 2 of the expert's own
    auto x = correlated_rows(count, kWidth, 6, 1, seed);
    const auto own = correlated_rows(count, kWidth, 2, 2, seed + 100);
    for (size_t i = 0; i < x.size(); ++i) x[i] += own[i];
    return x;
  };
  ASSERT_TRUE(add_rows(*inputs, "expert.gate_up", 0, rows_of(4, 5), kWidth));
  ASSERT_TRUE(add_rows(*inputs, "trusted", 0, rows_of(4, 5), kWidth));
  add("router", 500, 1, 4);
  std::vector<float> w;
  for (uint64_t i = 0; i < 32 * kWidth; ++i) w.push_back(static_cast<float>(uniform_at(7, i) - 0.5));
  const auto to_come = rows_of(300, 6);
  const auto cost = [&](const Feedback& feedback) {
    std::vector<int8_t> q(w.size());
    std::vector<float> scale(32);
    RoundScratch scratch;
    round_rows(w.data(), 32, kWidth, feedback, q.data(), scale.data(), scratch);
    double sum = 0;
    for (size_t x = 0; x < to_come.size(); x += kWidth)
      for (size_t channel = 0; channel < 32; ++channel) {
        double off = 0;
        for (size_t j = 0; j < kWidth; ++j)
          off += static_cast<double>(to_come[x + j]) *
                 static_cast<double>(w[channel * kWidth + j] -
                                     scale[channel] * static_cast<float>(q[channel * kWidth + j]));
        sum += off * off;
      }
    return sum;
  };
  const double borrowed = cost(feedback_of(*inputs, gate_up(), 0).value()),
               trusted = cost(feedback_of(*inputs, {.section = "trusted", .k = kWidth}, 0).value()),
               plain = cost({});
  fmt::print("borrowed {:.3f}, few rows trusted {:.3f}, plain {:.3f}\n", borrowed, trusted, plain);
  EXPECT_LT(borrowed, 0.9 * trusted);
  EXPECT_LT(borrowed, 0.9 * plain);
}

TEST_F(Calibrated, HeadsThatReadRowsOfTheirOwnAreApart) {
  add("k_up", 40, 1, 2, 0);
  add("k_up", 40, 3, 4, 64);
  const PlannedLinear k_up{.section = "k_up", .k = kWidth, .rows_per_input = 64};
  const Feedback first = feedback_of(*inputs, k_up, 0).value(),
                 second = feedback_of(*inputs, k_up, 64).value();
  EXPECT_FALSE(same(first[0], second[0]));
  EXPECT_TRUE(feedback_of(*inputs, k_up, 128).value().empty());
}

TEST_F(Calibrated, FeedbackIsMadeOnceForNeighbours) {
  add("a", 20, 1, 2);
  add("b", 20, 1, 3);
  add("c", 20, 1, 4);
  FeedbackCache cache(*inputs);
  const PlannedLinear a{.section = "a", .k = kWidth}, b{.section = "b", .k = kWidth},
      c{.section = "c", .k = kWidth};
  const auto first = cache.get(a, 0).value();
  EXPECT_EQ(cache.get(b, 0).value() == first, false);
  EXPECT_EQ(cache.get(a, 0).value(), first);
  ASSERT_TRUE(cache.get(c, 0).has_value());
  ASSERT_TRUE(cache.get(b, 0).has_value());
  const auto again = cache.get(a, 0).value();  // made anew: only the last two are kept
  EXPECT_NE(again, first);
  EXPECT_TRUE(same((*again)[0], (*first)[0]));
  EXPECT_GT(cache.bytes(a), 2 * kWidth * kWidth * sizeof(float));
}

TEST_F(Calibrated, WideMatricesAreCutIntoEvenBlocks) {
  const int k = kFeedbackColumns + 64;
  std::vector<float> x(static_cast<size_t>(k) * 2, 0.5f);
  ASSERT_TRUE(add_rows(*inputs, "wide", 0, x, k));
  const Feedback got = feedback_of(*inputs, {.section = "wide", .k = k}, 0).value();
  ASSERT_EQ(got.size(), 2u);
  EXPECT_EQ(got[0].columns() + got[1].columns(), k);
  EXPECT_LE(got[0].columns(), kFeedbackColumns);
  EXPECT_LE(got[0].columns() - got[1].columns(), 2 * kFeedbackPanel);
}

}  // namespace
}  // namespace millrace::model
