// When sequences guess ahead, and in which rows. That guesses change no reply: engine_core_test.cc's
// scenarios.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "engine/internal/engine_core_testing.h"

namespace millrace::engine {
namespace {

using testing::expect_same;
using testing::random_tokens;
using testing::reference;
using testing::request_of;
using testing::Rig;

// Three of four guesses are right: a chain of three gives 1 + 0.75 + 0.56 + 0.42 tokens a step.
TEST(EngineCore, RightGuessesSaveSteps) {
  std::mt19937 random(3);
  Rig rig(32, {.max_draft_rows = 16}, 512, 3);
  auto request = request_of(1, random_tokens(random, 40), 400);
  request.sampling.temperature = 0;
  request.stop.ignore_eos = true;
  rig.add(request);
  rig.run();
  expect_same(rig.replies[1], reference(request), 1);
  const GroupLoad load = rig.core.load();
  EXPECT_EQ(load.generated_tokens, 400u);
  EXPECT_LT(load.steps, 400 / 2.4);
  EXPECT_GT(load.steps, 400 / 3.1);
  ASSERT_EQ(load.drafts.size(), 3u);
  for (size_t place = 0; place < 3; ++place) {
    EXPECT_NEAR(
        static_cast<double>(load.drafts[place].accepted) / static_cast<double>(load.drafts[place].proposed),
        std::pow(0.75, place + 1.0), 0.12);
  }
  // Their keys are not lost with a second turn, whose guesses start at once and are as good.
  auto prompt = request.prompt.tokens;
  prompt.insert(prompt.end(), rig.replies[1].tokens.begin(), rig.replies[1].tokens.begin() + 60);
  auto second = request_of(2, prompt, 60);
  second.sampling.temperature = 0;
  second.stop.ignore_eos = true;
  rig.add(second);
  rig.run();
  expect_same(rig.replies[2], reference(second), 2);
  EXPECT_EQ(rig.replies[2].cached_tokens, 96);
  EXPECT_GT(rig.core.load().drafts[0].proposed, load.drafts[0].proposed + 15);
}

// Guesses run in rows that nobody else wants: a prompt that waits is not held back by others' guesses.
TEST(EngineCore, GuessesLeaveRowsToThoseWhoWait) {
  std::mt19937 random(8);
  Rig rig(64, {.max_sequences = 4, .max_rows = 8, .max_draft_rows = 16}, 512, 3);
  const auto add = [&](uint64_t id, size_t prompt) {
    auto request = request_of(id, random_tokens(random, prompt), 200);
    request.stop.ignore_eos = true;
    rig.add(request);
  };
  add(1, 4);
  add(2, 4);
  for (int i = 0; i < 4; ++i) rig.step();
  EXPECT_GT(rig.core.load().drafts.size(), 0u);
  add(3, 30);
  // Six rows are left beside the two: five steps for the prompt.
  for (int i = 0; i < 5; ++i) rig.step();
  EXPECT_EQ(rig.replies[3].tokens.size(), 1u);
  rig.run();
}

// While prompts take every row, guesses would be cut again: none is made.
TEST(EngineCore, MakesNoGuessesThatPromptsWillDisplace) {
  std::mt19937 random(9);
  Rig rig(64, {.max_sequences = 4, .max_rows = 8, .max_draft_rows = 16}, 512, 3);
  for (const uint64_t id : {1, 2}) {
    auto request = request_of(id, random_tokens(random, 4), 200);
    request.stop.ignore_eos = true;
    rig.add(request);
  }
  for (int i = 0; i < 4; ++i) rig.step();
  rig.add(request_of(3, random_tokens(random, 120), 4));
  rig.step();
  const uint64_t before = rig.model.guessed;
  for (int i = 0; i < 18; ++i) rig.step();  // 6 rows each beside the two
  EXPECT_EQ(rig.model.guessed, before);
  EXPECT_TRUE(rig.replies[3].tokens.empty());
  for (int i = 0; i < 4; ++i) rig.step();
  EXPECT_FALSE(rig.replies[3].tokens.empty());
  EXPECT_GT(rig.model.guessed, before);
  rig.run();
}

// Where each row costs as much as the first, nothing is guessed, and the model keeps no state for it.
TEST(EngineCore, DoesNotGuessWhereItDoesNotPay) {
  std::mt19937 random(3);
  Rig rig(32, {.max_draft_rows = 16}, 512, 3);
  DraftCosts costs;
  costs.step.add(1, 1e-3);
  costs.step.add(2, 2e-3);
  rig.core.set_draft_costs(costs);
  auto request = request_of(1, random_tokens(random, 40), 50);
  request.stop.ignore_eos = true;
  rig.add(request);
  rig.run();
  EXPECT_EQ(rig.model.guessed, 0u);
  EXPECT_TRUE(rig.core.load().drafts.empty());
}

// Where rows are fewer than guesses, each sequence runs as many of its guesses as another.
TEST(EngineCore, SequencesShareTheRowsOfGuesses) {
  std::mt19937 random(5);
  Rig rig(64, {.max_sequences = 8, .max_draft_rows = 16}, 512, 4);
  for (uint64_t id = 1; id <= 8; ++id) {
    auto request = request_of(id, random_tokens(random, 10), 100);
    request.stop.ignore_eos = true;
    rig.add(request);
  }
  for (int i = 0; i < 20; ++i) rig.step();
  const auto drafts = rig.core.load().drafts;
  ASSERT_EQ(drafts.size(), 2u);
  EXPECT_GE(drafts[0].proposed, 8 * 17u);
  EXPECT_GE(drafts[1].proposed, 8 * 15u);
  rig.run();
}

// Prices said that guesses cost next to nothing; they take long, and none is worth its row. Each sequence
// alone would go on for ever: its own price is right but for a little.
TEST(EngineCore, PassesThatGainNothingStop) {
  std::mt19937 random(6);
  Rig rig(64, {.max_sequences = 8, .max_draft_rows = 64}, 4096, 1);
  DraftCosts costs;
  costs.step.add(8, 3e-6);  // a step of the rig's clock is some of its microseconds
  costs.step.add(16, 5.1e-6);
  costs.first.add(1, 0.1e-9);
  costs.again.add(1, 0.1e-9);
  rig.core.set_draft_costs(costs);
  rig.pass_ns = 10'000;
  for (uint64_t id = 1; id <= 8; ++id) {
    auto request = request_of(id, random_tokens(random, 10), 220);
    request.stop.ignore_eos = true;
    rig.add(request);
  }
  for (int i = 0; i < 160; ++i) rig.step();
  const uint64_t passes = rig.model.guessed;
  EXPECT_GT(passes, 100u);
  EXPECT_LT(passes, 8 * 140u);
  for (int i = 0; i < 40; ++i) rig.step();
  EXPECT_EQ(rig.model.guessed, passes);
  rig.run();
}

// Time in which nobody wanted anything says nothing of steps.
TEST(EngineCore, IdleTimeAfterACancelSpoilsNoGuesses) {
  std::mt19937 random(4);
  Rig rig(32, {.max_draft_rows = 16}, 512, 3);
  DraftCosts costs;
  costs.step.add(1, 3e-6);  // a step of the rig's clock is some of its microseconds
  costs.step.add(8, 3.1e-6);
  costs.first.add(1, 0.1e-6);
  costs.again.add(1, 0.1e-6);
  rig.core.set_draft_costs(costs);
  for (uint64_t id = 1; id <= 40; ++id) {
    auto request = request_of(id, random_tokens(random, 10), 100);
    request.stop.ignore_eos = true;
    rig.add(request);
    for (int i = 0; i < 5; ++i) rig.step();
    rig.core.cancel(RequestId(id), rig.events);
    rig.step();
    rig.now += 3'600'000'000'000;
  }
  const uint64_t before = rig.model.guessed;
  auto request = request_of(41, random_tokens(random, 10), 100);
  request.stop.ignore_eos = true;
  rig.add(request);
  rig.run();
  EXPECT_GT(rig.model.guessed, before);
}

}  // namespace
}  // namespace millrace::engine
