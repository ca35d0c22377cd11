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

TEST(Acceptance, CountsAPlaceOnlyWhereTheOnesBeforeWereRight) {
  Acceptance seen;
  seen.note(3, 1);  // right, wrong, never known
  EXPECT_EQ(seen.chance(0, 0.5, 0), 1);
  EXPECT_EQ(seen.chance(1, 0.5, 0), 0);
  EXPECT_EQ(seen.chance(2, 0.5, 1), 0.5);
  for (int i = 0; i < 1000; ++i) seen.note(1, i % 4 == 0 ? 0 : 1);
  EXPECT_NEAR(seen.chance(0, 0.5, 1), 0.75, 0.03);
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

TEST(DraftPolicy, GuessesAsDeepAsItPays) {
  const Acceptance unknown;
  DraftPolicy policy(4);
  EXPECT_EQ(policy.depth(unknown, 1), 4) << "nothing known of costs";
  policy.set_costs(costs_of(0.001, 0.01));
  EXPECT_EQ(policy.depth(unknown, 1), 4);
  policy.set_costs(costs_of(0.01, 0.25));
  const int some = policy.depth(unknown, 1);
  EXPECT_GT(some, 0);
  EXPECT_LT(some, 4);
  policy.set_costs(costs_of(0.01, 1));
  EXPECT_EQ(policy.depth(unknown, 1), 0);
  policy.set_costs(costs_of(0.05, 0.01));
  EXPECT_GT(policy.depth(unknown, 1), 0);
  EXPECT_EQ(policy.depth(unknown, 200), 0) << "rows cost in a large batch";
}

TEST(DraftPolicy, GivesUpOnASequenceThatIsHardToGuessAndOnNoOther) {
  DraftPolicy policy(2);
  policy.set_costs(costs_of(0.01, 0.2));
  Acceptance hard, easy;
  for (int i = 0; i < 60; ++i) {
    policy.note(hard, 2, 0);
    policy.note(easy, 2, 2);
  }
  EXPECT_EQ(policy.depth(hard, 2), 0);
  EXPECT_EQ(policy.depth(easy, 2), 2);
  for (int i = 0; i < 12; ++i) hard.fade(0.5);  // forgotten: judged by all
  EXPECT_GT(policy.depth(hard, 2), 0);
  ASSERT_EQ(policy.counts().size(), 2u);
  EXPECT_EQ(policy.counts()[0].proposed, 120u);
  EXPECT_EQ(policy.counts()[1].accepted, 60u);
}

}  // namespace
}  // namespace millrace::engine
