// Guesses that the text itself carries on: they change no token, and need fewer passes of the MTP layer.
#include <gtest/gtest.h>

#include <memory>
#include <random>

#include "engine/internal/engine_core.h"
#include "engine/internal/testing.h"

namespace millrace::engine {
namespace {

using testing::ByteTokenizer;
using testing::FakeModel;
using testing::kEos;
using testing::random_tokens;
using testing::Replies;

struct Outcome {
  Replies replies;
  GroupLoad load;
  uint64_t passes = 0;  // of the MTP layer, that made a guess
};

struct How {
  size_t sees = 1;
  int max_drafts = 0;
  bool text_lookup = true;
  int64_t pages = 64;
};

Outcome run(const std::vector<GenerateRequest>& requests, const How& how) {
  const SchedulerLimits limits{.max_sequences = 8, .max_rows = 64, .max_draft_rows = 32};
  FakeModel model(limits.max_rows, limits.max_sequences + limits.max_draft_rows, how.max_drafts > 0);
  model.sees = how.sees;
  KvPool pool = KvPool::create(how.pages, FakeModel::kPageBytes).value();
  int64_t now = 0;
  EngineCore core(model, pool, std::make_shared<ByteTokenizer>(), kernels::row_kernels(),
                  {.max_model_len = 512,
                   .scheduler = limits,
                   .eos = {kEos},
                   .now_ns = [&now] { return now += 1000; },
                   .max_drafts = how.max_drafts,
                   .text_lookup = how.text_lookup});
  Outcome result;
  std::vector<GenerateEvent> events;
  for (const auto& request : requests) core.add(request, events);
  for (int steps = 0; !core.idle() && steps < 100'000; ++steps) {
    core.step(events);
    result.replies.take(events);
    events.clear();
    pool.check();
  }
  EXPECT_TRUE(core.idle());
  EXPECT_EQ(pool.pages_free(), pool.pages_total());
  result.load = core.load();
  result.passes = model.guessed;
  return result;
}

GenerateRequest request_of(uint64_t id, std::vector<TokenId> prompt, int64_t max_tokens, float temperature) {
  GenerateRequest request{.id = RequestId(id), .prompt = {.tokens = std::move(prompt)}};
  request.stop.max_tokens = max_tokens;
  request.sampling.seed = id * 77 + 1;
  request.sampling.temperature = temperature;
  request.stop.ignore_eos = true;
  return request;
}

void expect_same(Outcome& a, Outcome& b, const GenerateRequest& request) {
  const auto &left = a.replies[request.id.value], &right = b.replies[request.id.value];
  EXPECT_EQ(left.tokens, right.tokens) << "request " << request.id.value;
  EXPECT_EQ(left.finish, right.finish) << "request " << request.id.value;
}

uint64_t accepted(const GroupLoad& load) {
  uint64_t all = 0;
  for (const auto& place : load.drafts) all += place.accepted;
  return all;
}

// What the model says next hangs on one token, so a greedy reply soon goes round in a circle.
TEST(EngineCoreLookup, TextThatRepeatsItselfIsGuessedFromTheText) {
  std::mt19937 random(3);
  const std::vector<GenerateRequest> requests = {request_of(1, random_tokens(random, 40), 400, 0)};
  Outcome plain = run(requests, {}), mtp = run(requests, {.max_drafts = 8, .text_lookup = false}),
          both = run(requests, {.max_drafts = 8});
  expect_same(mtp, plain, requests[0]);
  expect_same(both, plain, requests[0]);
  EXPECT_EQ(plain.load.steps, 400u);
  EXPECT_LT(both.load.steps, 100u);
  EXPECT_LT(both.load.steps, mtp.load.steps * 2 / 3);
  EXPECT_LT(both.passes, mtp.passes / 3);
  EXPECT_GT(accepted(both.load), both.passes);  // the layer alone makes a pass for each
}

// The layer's guess must agree first: a text without repetition is never guessed from.
TEST(EngineCoreLookup, OtherTextIsLeftToTheLayer) {
  std::mt19937 random(4);
  const std::vector<GenerateRequest> requests = {request_of(1, random_tokens(random, 40), 200, 0)};
  const Outcome mtp = run(requests, {.sees = SIZE_MAX, .max_drafts = 4, .text_lookup = false}),
                both = run(requests, {.sees = SIZE_MAX, .max_drafts = 4});
  EXPECT_EQ(both.load.steps, mtp.load.steps);
  EXPECT_EQ(both.passes, mtp.passes);
}

// Batches, sampled and greedy, limits of every kind, pools so small that requests are preempted.
TEST(EngineCoreLookup, ChangesNoReply) {
  uint64_t guessed = 0;
  for (uint32_t seed = 1; seed <= 60; ++seed) {
    std::mt19937 random(seed);
    std::vector<GenerateRequest> requests;
    const int count = 1 + static_cast<int>(random() % 6);
    for (int i = 0; i < count; ++i)
      requests.push_back(request_of(static_cast<uint64_t>(i) + 1, random_tokens(random, 1 + random() % 60),
                                    1 + static_cast<int64_t>(random() % 120),
                                    random() % 3 == 0 ? 0.7f : 0.0f));
    const How how{.sees = 1 + random() % 2,
                  .max_drafts = 1 + static_cast<int>(random() % 8),
                  .pages = 8 + static_cast<int64_t>(random() % 20)};
    Outcome plain = run(requests, {.sees = how.sees}), both = run(requests, how);
    for (const auto& request : requests) expect_same(both, plain, request);
    guessed += accepted(both.load);
    if (HasFailure()) FAIL() << "seed " << seed;
  }
  EXPECT_GT(guessed, 1000u);
}

}  // namespace
}  // namespace millrace::engine
