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
  curve.add(8, 13);  // disturbed: not less than fewer rows
  EXPECT_EQ(curve.at(3), 12);
  EXPECT_EQ(curve.at(6), 14);
  curve.add(16, 22);
  EXPECT_EQ(curve.at(32), 38);
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
  EXPECT_TRUE(policy.begins(unknown, 2));
  for (int i = 0; i < 60; ++i) {
    policy.note(hard, guesses, 0, false, 2, 2);
    policy.note(easy, guesses, 2, false, 2, 2);
  }
  EXPECT_FALSE(policy.begins(hard, 2));
  EXPECT_TRUE(policy.begins(easy, 2));
  EXPECT_TRUE(policy.begins(unknown, 2));
  for (int i = 0; i < 60; ++i) policy.note(hard, guesses, 0, false, 2, 2);
  for (int i = 0; i < 300; ++i) policy.note(hard, guesses, 0, false, 2, 2);
  EXPECT_FALSE(policy.begins(unknown, 2)) << "most are hard";
  for (int i = 0; i < 100; ++i) policy.note_plain(2);
  EXPECT_FALSE(policy.begins(unknown, 2)) << "it is not long ago";
  for (int i = 0; i < 2000; ++i) policy.note_plain(2);
  EXPECT_TRUE(policy.begins(unknown, 2)) << "other times";
  EXPECT_FALSE(policy.begins(hard, 2));
}

TEST(DraftPolicy, DoesNotBeginWhereNothingCanBeGained) {
  DraftPolicy policy(3);
  policy.set_costs(costs_of(1, 0.1));
  EXPECT_FALSE(policy.begins({}, 64));  // a row costs as much as a step
  policy.set_costs(costs_of(0.05, 0.05));
  EXPECT_TRUE(policy.begins({}, 1));
  EXPECT_FALSE(policy.begins({}, 64));
}

}  // namespace
}  // namespace millrace::engine
