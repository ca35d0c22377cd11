#include "engine/internal/drafting.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "base/clock.h"
#include "engine/internal/kv_pool.h"
#include "kernels/attention.h"

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
  for (int i = 0; i < 14; ++i) mean.add(i % 2 == 0 ? 1 : 2.5);
  EXPECT_FALSE(mean.full());
  mean.add(1000);
  EXPECT_TRUE(mean.full());
  EXPECT_DOUBLE_EQ(mean.value_or(7), (7 * 1 + 7 * 2.5) / 14.0);
  for (int i = 0; i < 16; ++i) mean.add(2);
  EXPECT_EQ(mean.value_or(7), 2);
  mean.forget();
  EXPECT_EQ(mean.value_or(7), 7);
}

// Four values of which a host that took the CPU away spoilt two: six times what the others say, were it not
// for the cap.
TEST(RecentMean, CountsWhatIsFarAboveTheMedianAsThriceThat) {
  RecentMean<16> mean;
  for (const double value : {1.0, 16.0, 1.0, 16.0}) mean.add(value);
  EXPECT_DOUBLE_EQ(mean.value_or(0), (1 + 1 + 3) / 3.0) << "one is left out, one counts as three";
  for (int i = 0; i < 6; ++i) mean.add(1);
  for (int i = 0; i < 6; ++i) mean.add(i % 2 == 0 ? 30 : 1.5);
  EXPECT_DOUBLE_EQ(mean.value_or(0), (8 * 1 + 3 * 1.5 + 3 * 3) / 14.0);
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

// Guesses of a kind that was wrong are not run, so nothing new is seen of them: what was seen fades.
TEST(DraftPolicy, TriesAgainWhatWasWrongLongAgo) {
  DraftPolicy policy(1);
  DraftGain own;
  const DraftGuess bad{.token = 1, .matched = 8, .greedy = true};
  const DraftGuess other{.token = 1, .probability = 0.9f, .greedy = true};
  for (int i = 0; i < 100; ++i) policy.note(own, {&bad, 1}, 0, false, 1, 1);
  EXPECT_LT(policy.chance(bad), 0.05);
  for (int i = 0; i < 1000; ++i) policy.note(own, {&other, 1}, 1, false, 1, 1);
  EXPECT_LT(policy.chance(bad), 0.1);
  for (int i = 0; i < 10000; ++i) policy.note(own, {&other, 1}, 1, false, 1, 1);
  EXPECT_GT(policy.chance(bad), 0.5);
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

// A reply goes on alone after seven others have ended: its steps are shorter, what guesses gain in them is
// not.
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

// Far keys cost a row of a sequence alike whether it is a guess or not, and the MTP layer a little.
// Each sequence alone looks good, but whole steps with guesses make fewer tokens a second than those without.
TEST(DraftPolicy, NobodyGuessesWhileWholeStepsLose) {
  DraftPolicy policy(2);
  policy.set_costs(costs_of(0.001, 0.002));
  DraftGain good;
  const DraftGuess guess{.token = 1, .probability = 0.9f};
  for (int i = 0; i < 60; ++i) policy.note(good, {&guess, 1}, 1, false, 1, 32);
  ASSERT_TRUE(policy.begins(good, 32, true));
  for (int i = 0; i < 60; ++i) policy.note_whole(1.3 * policy.priced(0, 0, 32), 1.2, 32);
  EXPECT_FALSE(policy.begins(good, 32, true));
  EXPECT_TRUE(policy.begins(good, 8, true)) << "that says nothing of other batches";
  for (int i = 0; i < DraftGate::kClosedFirst; ++i) policy.note_plain(32);
  EXPECT_TRUE(policy.begins(good, 32, false));
}

TEST(DraftPolicy, PricesTheKeysThatRowsAttendTo) {
  DraftPolicy policy(4);
  DraftCosts costs = costs_of(0.1, 0.1);
  costs.key = 0.01, costs.further_key = 0.002, costs.guess_key = 0.001;
  policy.set_costs(costs);
  policy.set_keys(100);
  const double n = 4, plain = 1 + 0.1 * n + n * 100 * 0.01;
  EXPECT_NEAR(policy.priced(0, 0, 4), plain, 1e-9);
  const double rows = 2 * n * 0.1 + 2 * n * 100 * 0.002, passes = 2 * (0.1 + 0.1 * n + n * 100 * 0.001);
  EXPECT_NEAR(policy.priced(2, 2, 4), plain + rows + passes, 1e-9);
  policy.set_keys(0);
  const int near = depth(policy, 0.5f, 16);
  policy.set_keys(1000);
  EXPECT_LT(near, depth(policy, 0.5f, 16))
      << "a further row costs a fifth of what a token without guesses does";
  costs.further_key = costs.key;
  policy.set_costs(costs);
  EXPECT_EQ(depth(policy, 0.5f, 16), 0) << "as much";
}

TEST_F(Pace, FarKeysSayNothingOfWhatStepsTakeBeside) {
  DraftCosts costs = costs_of(0.25, 0);
  costs.key = 0.01;
  policy.set_costs(costs);
  plain(32, 1.25);
  policy.set_keys(100);
  EXPECT_NEAR(policy.priced(0, 0, 1), 2.25, 1e-9);
  plain(32, 2.25);
  policy.set_keys(0);
  EXPECT_NEAR(policy.priced(0, 0, 1), 1.25, 1e-9);
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

// Notes what it is asked to run; takes time for every row, and for every key that a row attends to.
class TimedModel : public StepModel {
 public:
  int vocab_size() const override { return 100; }
  int max_rows() const override { return 64; }
  int max_logit_rows() const override { return 64; }
  void run(const StepBatch& batch, std::byte*) override { take(batch.segments, 20'000, 100); }
  const float* logits(int) const override { return nullptr; }
  bool drafts() const override { return true; }
  void draft(const DraftBatch& batch, std::byte*) override { take(batch.segments, 5'000, 25); }
  void parallel(int, const std::function<void(int, int)>&) override {}
  int threads() const override { return 1; }
  int64_t last_position = 0;
  int most_rows = 0;
  std::set<int32_t> pages;

 private:
  void take(std::span<const StepSegment> segments, int64_t row_ns, int64_t key_ns) {
    const int64_t start = monotonic_ns();
    int64_t ns = 0;
    for (const StepSegment& segment : segments) {
      last_position = std::max(last_position, segment.first_position + segment.rows - 1);
      const int64_t page_count = last_page(segment) + 1;
      pages.insert(segment.pages, segment.pages + page_count);
      read.insert(segment.pages, segment.pages + last_page(segment));
      own.insert(segment.pages[last_page(segment)]);
      most_rows = std::max(most_rows, segment.row_begin + segment.rows);
      ns += segment.rows * row_ns + segment.first_position * key_ns;
    }
    EXPECT_EQ(own.size(), segments.size()) << "rows of two sequences onto one page";
    for (const int32_t page : own) EXPECT_FALSE(read.contains(page)) << "read and written in one step";
    own.clear();
    read.clear();
    while (monotonic_ns() - start < ns) {
    }
  }
  static int64_t last_page(const StepSegment& segment) {
    return (segment.first_position + segment.rows - 1) / kernels::kPageTokens;
  }
  std::set<int32_t> own, read;
};

TEST(MeasureDraftCosts, StaysWithinItsPagesAndPositionsAndFindsWhatKeysCost) {
  auto pool = KvPool::create(12, 64);
  ASSERT_TRUE(pool.has_value());
  const auto measured = [&](int64_t positions, TimedModel& model) {
    return measure_draft_costs(
        model, *pool, {.max_rows = 64, .max_sequences = 8, .max_positions = positions, .seconds = 0.02});
  };
  TimedModel near, far;
  EXPECT_EQ(measured(128, near).key, 0) << "too few to tell";
  EXPECT_EQ(near.last_position, 1);
  const DraftCosts costs = measured(256, far);
  EXPECT_EQ(far.last_position, 225);
  EXPECT_GT(costs.key, 0);
  EXPECT_GT(costs.guess_key, 0);
  EXPECT_LE(costs.further_key, costs.key);
  EXPECT_LE(far.pages.size(), 12u);
  EXPECT_EQ(pool->pages_free(), 12) << "given back";
}

// A step of one sequence has up to nine rows: what these cost is not to be concluded from one and two.
TEST(MeasureDraftCosts, MeasuresAsManyRowsAsOneSequenceMayHave) {
  auto pool = KvPool::create(12, 64);
  ASSERT_TRUE(pool.has_value());
  TimedModel model;
  measure_draft_costs(model, *pool, {.max_rows = 64, .max_sequences = 1, .max_positions = 0, .seconds = 1});
  EXPECT_EQ(model.most_rows, 2 * (1 + kMaxDrafts));  // two each: of first guesses
}

}  // namespace
}  // namespace millrace::engine
