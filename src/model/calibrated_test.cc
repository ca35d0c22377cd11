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
  void accumulate(SecondMoments& to, std::string_view section, int64_t at_most = INT64_MAX) const {
    const CalibrationRows rows = inputs->find(section, 0).value();
    EXPECT_TRUE(to.add(*inputs, rows, std::min(at_most, rows.count())).has_value());
  }
  void borrow(SecondMoments& to, double weight, int64_t at_most = INT64_MAX) const {
    SecondMoments router = moments();
    accumulate(router, "router", at_most);
    to.add(router, weight);
  }
  Feedback made_for(const PlannedLinear& linear, int first_channel) const {
    return *FeedbackCache(*inputs).get(linear, first_channel).value();
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
  const Feedback got = made_for({.section = "o", .k = kWidth}, 0);
  SecondMoments own = moments();
  accumulate(own, "o");
  ASSERT_EQ(got.size(), 1u);
  EXPECT_TRUE(same(got[0], FeedbackBlock(own, kDamping)));
}

TEST_F(Calibrated, AnExpertThatEnoughRowsReachedBorrowsNone) {
  add("expert.gate_up", kEnough, 1, 2);
  add("router", 500, 3, 4);
  const Feedback got = made_for(gate_up(), 0);
  SecondMoments own = moments();
  accumulate(own, "expert.gate_up");
  EXPECT_TRUE(same(got[0], FeedbackBlock(own, kDamping)));
}

TEST_F(Calibrated, ARareExpertBorrowsTheMissingRowsFromTheRouter) {
  constexpr int kOwn = 10;
  add("expert.gate_up", kOwn, 1, 2);
  add("router", 500, 3, 4);
  const Feedback got = made_for(gate_up(), 0);
  SecondMoments blend = moments(), own = moments();
  accumulate(blend, "expert.gate_up");
  accumulate(own, "expert.gate_up");
  borrow(blend, static_cast<double>(kEnough - kOwn) / 500);
  EXPECT_TRUE(same(got[0], FeedbackBlock(blend, kDamping)));
  EXPECT_FALSE(same(got[0], FeedbackBlock(own, kDamping)));
}

TEST_F(Calibrated, OfManyRowsThatCameToTheRouterSomeCountForAll) {
  add("router", static_cast<int>(kRouterRows) + 50, 3, 4);
  const Feedback got = made_for(gate_up(), 0);
  SecondMoments some = moments();
  borrow(some, static_cast<double>(kEnough) / static_cast<double>(kRouterRows), kRouterRows);
  EXPECT_TRUE(same(got[0], FeedbackBlock(some, kDamping))) << "an expert that no row has reached";
}

TEST_F(Calibrated, TheSecondProductOfARareExpertIsHeldBack) {
  constexpr int kOwn = 16;
  add("expert.down", kOwn, 1, 2);
  add("router", 500, 3, 4);
  const Feedback got = made_for(down(), 0);
  SecondMoments own = moments();
  accumulate(own, "expert.down");
  const double missing = static_cast<double>(kEnough - kOwn) / kOwn;
  EXPECT_TRUE(same(got[0], FeedbackBlock(own, kDamping + missing)));
}

TEST_F(Calibrated, WhatNothingIsKnownOfIsRoundedColumnByColumn) {
  add("o", 5, 1, 2);
  EXPECT_TRUE(made_for({.section = "head", .k = kWidth}, 0).empty());
  EXPECT_TRUE(made_for(down(), 0).empty());
  EXPECT_TRUE(made_for(gate_up(), 0).empty());
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
  const double borrowed = cost(made_for(gate_up(), 0)),
               trusted = cost(made_for({.section = "trusted", .k = kWidth}, 0)), plain = cost({});
  fmt::print("borrowed {:.3f}, few rows trusted {:.3f}, plain {:.3f}\n", borrowed, trusted, plain);
  EXPECT_LT(borrowed, 0.9 * trusted);
  EXPECT_LT(borrowed, 0.9 * plain);
}

TEST_F(Calibrated, HeadsThatReadRowsOfTheirOwnAreApart) {
  add("k_up", 40, 1, 2, 0);
  add("k_up", 40, 3, 4, 64);
  const PlannedLinear k_up{.section = "k_up", .k = kWidth, .rows_per_input = 64};
  const Feedback first = made_for(k_up, 0), second = made_for(k_up, 64);
  EXPECT_FALSE(same(first[0], second[0]));
  EXPECT_TRUE(made_for(k_up, 128).empty());
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

// Its rows are those of each of them: to be read and summed for every expert would take hours.
TEST_F(Calibrated, TheRoutersRowsAreSummedOnceForAllExperts) {
  class Counting final : public CalibrationInputs {
   public:
    explicit Counting(CalibrationInputs& inputs) : inputs_(inputs) {}
    Expected<void> add(std::string_view, int, int, const int8_t*, int64_t, const float*, int) override {
      return {};
    }
    Expected<void> status() const override { return inputs_.status(); }
    uint64_t memory_bytes() const override { return inputs_.memory_bytes(); }
    int64_t rows(std::string_view section, int first_channel) const override {
      return inputs_.rows(section, first_channel);
    }
    Expected<CalibrationRows> find(std::string_view section, int first_channel) const override {
      return inputs_.find(section, first_channel);
    }
    Expected<void> read(const CalibrationRows& rows, int64_t first, int count, int begin, int columns,
                        float* out) const override {
      rows_read += count;
      return inputs_.read(rows, first, count, begin, columns, out);
    }
    uint64_t digest() const override { return inputs_.digest(); }
    mutable int rows_read = 0;

   private:
    CalibrationInputs& inputs_;
  };
  constexpr int kExperts = 5, kRows = 300, kOwn = 7;
  add("router", kRows, 3, 4);
  const auto expert = [](int i) {
    return PlannedLinear{.section = fmt::format("experts.{}.gate_up", i),
                         .k = kWidth,
                         .of_one_expert = true,
                         .also_read_by = "router"};
  };
  for (int i = 1; i < kExperts; ++i) add(expert(i).section, kOwn, 5, static_cast<uint64_t>(i));  // 0: nobody
  const Counting counting(*inputs);
  FeedbackCache cache(counting);
  for (int i = 0; i < kExperts; ++i) {
    const Feedback got = *cache.get(expert(i), 0).value();
    SecondMoments blend = moments();
    if (i > 0) accumulate(blend, expert(i).section);
    borrow(blend, static_cast<double>(kEnough - (i > 0 ? kOwn : 0)) / kRows);
    ASSERT_EQ(got.size(), 1u);
    EXPECT_TRUE(same(got[0], FeedbackBlock(blend, kDamping))) << i;
  }
  EXPECT_EQ(counting.rows_read, kRows + (kExperts - 1) * kOwn);
  EXPECT_EQ(cache.shared_bytes(expert(0)), 2u * 128 * 128 * sizeof(float));
  EXPECT_EQ(cache.shared_bytes(down()), 0u) << "it borrows none";
}

TEST_F(Calibrated, WideMatricesAreCutIntoEvenBlocks) {
  const int k = kFeedbackColumns + 64;
  std::vector<float> x(static_cast<size_t>(k) * 2, 0.5f);
  ASSERT_TRUE(add_rows(*inputs, "wide", 0, x, k));
  const Feedback got = made_for({.section = "wide", .k = k}, 0);
  ASSERT_EQ(got.size(), 2u);
  EXPECT_EQ(got[0].columns() + got[1].columns(), k);
  EXPECT_LE(got[0].columns(), kFeedbackColumns);
  EXPECT_LE(got[0].columns() - got[1].columns(), 2 * kFeedbackPanel);
}

}  // namespace
}  // namespace millrace::model
