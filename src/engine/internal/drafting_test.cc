#include "engine/internal/drafting.h"

#include <gtest/gtest.h>

#include <cmath>

namespace millrace::engine {
namespace {

TEST(CostCurve, IsLinearBetweenWhatWasMeasured) {
  CostCurve curve;
  EXPECT_EQ(curve.at(3), 0);
  curve.add(2, 10);
  EXPECT_EQ(curve.at(1), 10);
  EXPECT_EQ(curve.at(4), 20);
  curve.add(4, 14);
  EXPECT_EQ(curve.at(3), 12);
  curve.add(8, 18);
  EXPECT_EQ(curve.at(6), 16);
  curve.add(16, 26);
  EXPECT_EQ(curve.at(32), 42);
}

TEST(CostCurve, DoesNotBelieveWhatWasDisturbed) {
  CostCurve first_ones, later;
  first_ones.add(1, 400);  // more rows cannot cost less
  first_ones.add(2, 500);
  first_ones.add(3, 12);
  EXPECT_EQ(first_ones.at(1), 12);
  EXPECT_EQ(first_ones.at(2), 12);
  later.add(1, 10);
  later.add(2, 400);  // nor more than as many steps of one row
  EXPECT_EQ(later.at(2), 20);
}

TEST(RecentMean, LeavesOutTheLargestEighthAndForgetsTheOldest) {
  RecentMean<16> mean;
  EXPECT_EQ(mean.value_or(7), 7);
  mean.add(3);
  EXPECT_EQ(mean.value_or(7), 3);
  for (int i = 0; i < 14; ++i) mean.add(i % 2 == 0 ? 1 : 5);
  EXPECT_FALSE(mean.full());
  mean.add(1000);
  EXPECT_TRUE(mean.full());
  EXPECT_DOUBLE_EQ(mean.value_or(7), (3 + 7 * 1 + 6 * 5) / 14.0);
  for (int i = 0; i < 16; ++i) mean.add(2);
  EXPECT_EQ(mean.value_or(7), 2);
  mean.forget();
  EXPECT_EQ(mean.value_or(7), 7);
}

DraftCosts costs_of(double row, double guess) {  // a step of fixed cost 1
  DraftCosts costs;
  for (const int n : {1, 2, 512}) {
    costs.step.add(n, 1 + row * n);
    costs.first.add(n, guess + row * n);
    costs.again.add(n, guess + row * n);
  }
  return costs;
}

// How deep a policy goes with guesses of one probability.
int depth(const DraftPolicy& policy, const DraftGuess& guess, int sequences) {
  double reach = 1;
  int place = 0;
  while (place == 0 || policy.goes_on(place, reach, sequences)) {
    reach *= policy.chance(guess);
    if (!policy.runs(place, reach, sequences)) return place;
    if (++place == policy.max_drafts()) return place;
  }
  return place;
}
int depth(const DraftPolicy& policy, float probability, int sequences) {
  return depth(policy, {.token = 1, .probability = probability}, sequences);
}

TEST(DraftPolicy, GuessesAsDeepAsItPays) {
  DraftPolicy policy(4);
  EXPECT_EQ(depth(policy, 0.1f, 1), 4) << "nothing known of costs";
  policy.set_costs(costs_of(0.01, 0.1));
  EXPECT_EQ(depth(policy, 0.95f, 1), 4);
  EXPECT_LT(depth(policy, 0.3f, 1), 4);
  EXPECT_GT(depth(policy, 0.3f, 1), 0);
  policy.set_costs(costs_of(0.3, 0.1));
  EXPECT_EQ(depth(policy, 0.55f, 1), 1);
  EXPECT_EQ(depth(policy, 0.15f, 1), 0);
  EXPECT_EQ(depth(policy, std::nanf(""), 1), 0);
  EXPECT_EQ(depth(policy, 0.55f, 100), 0) << "rows cost in a large batch";
}

TEST(DraftPolicy, LearnsWhatAProbabilityIsWorthSampledAndGreedy) {
  DraftPolicy policy(1);
  const DraftGuess sampled{.token = 1, .probability = 0.85f};
  const DraftGuess greedy{.token = 1, .probability = 0.85f, .greedy = true};
  EXPECT_NEAR(policy.chance(sampled), 0.85, 1e-6);
  DraftGain own;
  for (int i = 0; i < 500; ++i) policy.note(own, {&sampled, 1}, i % 2, false, 1, 1);
  for (int i = 0; i < 500; ++i) policy.note(own, {&greedy, 1}, 1, false, 1, 1);
  EXPECT_NEAR(policy.chance(sampled), 0.5, 0.02);
  EXPECT_GT(policy.chance(greedy), 0.98);
  EXPECT_NEAR(policy.chance({.token = 1, .probability = 0.25f}), 0.25, 1e-6) << "nothing seen of such";
  ASSERT_EQ(policy.counts().size(), 1u);
  EXPECT_EQ(policy.counts()[0].proposed, 1000u);
  EXPECT_EQ(policy.counts()[0].accepted, 750u);
}

TEST(DraftPolicy, GivesUpOnASequenceThatIsHardToGuessAndOnNoOther) {
  DraftPolicy policy(2);
  policy.set_costs(costs_of(0.01, 0.2));
  const DraftGuess guesses[] = {{.token = 1, .probability = 0.9f}, {.token = 2, .probability = 0.9f}};
  DraftGain hard, easy, unknown;
  EXPECT_TRUE(policy.begins(unknown, 2, false));
  for (int i = 0; i < 60; ++i) {
    policy.note(hard, guesses, 0, false, 2, 2);
    policy.note(easy, guesses, 2, false, 2, 2);
  }
  EXPECT_FALSE(policy.begins(hard, 2, false));
  EXPECT_TRUE(policy.begins(easy, 2, false));
  EXPECT_TRUE(policy.begins(unknown, 2, false));
  for (int i = 0; i < 60; ++i) policy.note(hard, guesses, 0, false, 2, 2);
  for (int i = 0; i < 300; ++i) policy.note(hard, guesses, 0, false, 2, 2);
  EXPECT_FALSE(policy.begins(unknown, 2, false)) << "most are hard";
  for (int i = 0; i < 100; ++i) policy.note_plain(2);
  EXPECT_FALSE(policy.begins(unknown, 2, false)) << "it is not long ago";
  for (int i = 0; i < 2000; ++i) policy.note_plain(2);
  EXPECT_TRUE(policy.begins(unknown, 2, false)) << "other times";
  EXPECT_FALSE(policy.begins(hard, 2, false));
}

TEST(DraftPolicy, DoesNotBeginWhereNothingCanBeGained) {
  DraftPolicy policy(3);
  policy.set_costs(costs_of(1, 0.1));
  EXPECT_FALSE(policy.begins({}, 64, false));  // a row costs as much as a step
  policy.set_costs(costs_of(0.05, 0.05));
  EXPECT_TRUE(policy.begins({}, 1, false));
  EXPECT_FALSE(policy.begins({}, 64, false));
}

// A step costs 1 by price and a guess with its row 0.5 more; guesses are right half of the time.
class Pace : public ::testing::Test {
 protected:
  Pace() { policy.set_costs(costs_of(0.25, 0)); }
  void plain(int steps, double seconds) {
    for (int i = 0; i < steps; ++i) policy.note_cycle(seconds, policy.priced(0, 0, 1), false, 1);
  }
  void guessed(int steps, double seconds) {
    const DraftGuess guess{.token = 1, .probability = 0.9f};
    for (int i = 0; i < steps; ++i) {
      policy.note(own, {&guess, 1}, i % 2, false, 1, 1);
      policy.note_cycle(seconds, policy.priced(1, 1, 1), true, 1);
    }
  }
  DraftPolicy policy{1};
  DraftGain own;
};

TEST_F(Pace, WhatAStepCostsBesideTheModelMakesGuessesCheaper) {
  plain(32, 1.25);
  guessed(100, 1.25 + 0.57);
  EXPECT_TRUE(policy.begins(own, 1, true)) << "1.5 tokens in 1.46 times the time";
  EXPECT_FALSE(policy.begins(own, 1, false)) << "not worth beginning";
  plain(32, 1.25 + 3);  // they would take so long, of which these guesses say nothing yet
  EXPECT_TRUE(policy.begins(own, 1, false));
  guessed(100, 1.25 + 3 + 0.5);
  EXPECT_TRUE(policy.begins(own, 1, false)) << "1.5 tokens in 1.1 times the time";
}

TEST_F(Pace, GuessesThatTakeLongerThanTheirPriceStop) {
  plain(32, 1.25);
  guessed(100, 1.25 + 0.5 + 0.25);
  EXPECT_FALSE(policy.begins(own, 1, true)) << "1.5 tokens in 1.6 times the time";
  for (int i = 0; i < 4000; ++i) policy.note_plain(1);
  EXPECT_TRUE(policy.begins({}, 1, false)) << "bad news fades";
}

// A reply goes on alone after seven others have ended: its steps are shorter, what guesses gain in them is not.
TEST(DraftPolicy, WhatWasGainedInLargerBatchesCountsInSmallerOnes) {
  DraftPolicy policy(1);
  DraftCosts costs;
  for (const auto& [size, seconds] : {std::pair{1, 1.0}, {2, 1.2}, {8, 6.0}, {16, 7.0}}) {
    costs.step.add(size, seconds);
    costs.first.add(size, 0.1);
    costs.again.add(size, 0.1);
  }
  policy.set_costs(costs);
  const DraftGuess guess{.token = 1, .probability = 0.9f};
  DraftGain own;
  for (int i = 0; i < 100; ++i) policy.note(own, {&guess, 1}, 1, false, 1, 8);
  EXPECT_TRUE(policy.begins(own, 8, true));
  EXPECT_TRUE(policy.begins(own, 1, true));
}

TEST_F(Pace, PricesFarAboveWhatStepsTakeWereDisturbed) {
  plain(32, 1.25e-3);
  EXPECT_NEAR(policy.priced(0, 0, 1), 1.25e-3, 1e-9);
  EXPECT_NEAR(policy.priced(1, 1, 1), 1.75e-3, 1e-9) << "in proportion";
}

TEST_F(Pace, StepsWithoutGuessesTellOfItNowAndThen) {
  EXPECT_TRUE(policy.wants_plain(1));
  plain(4, 1.25);
  EXPECT_FALSE(policy.wants_plain(1));
  EXPECT_TRUE(policy.wants_plain(2)) << "of other numbers of sequences nothing is known";
  guessed(4, 1.75);
  EXPECT_TRUE(policy.wants_plain(1)) << "little is known";
  plain(32, 1.25);
  guessed(31, 1.75);
  EXPECT_FALSE(policy.wants_plain(1));
  guessed(1, 1.75);
  EXPECT_TRUE(policy.wants_plain(1));
  plain(1, 1.25);
  EXPECT_FALSE(policy.wants_plain(1));
}

}  // namespace
}  // namespace millrace::engine
