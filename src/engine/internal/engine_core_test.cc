// The engine's logic on a fake model and virtual time: what it says must not depend on how it was scheduled.
#include <gtest/gtest.h>

#include <algorithm>

#include "engine/internal/engine_core_testing.h"

namespace millrace::engine {
namespace {

using testing::ByteTokenizer;
using testing::expect_same;
using testing::FakeModel;
using testing::kEos;
using testing::kVocab;
using testing::random_tokens;
using testing::reference;
using testing::Replies;
using testing::Reply;
using testing::request_of;
using testing::Rig;

TEST(EngineCore, OneRequestSaysWhatTheDefinitionSays) {
  std::mt19937 random(1);
  for (const size_t prompt : {1, 31, 32, 33, 64, 100}) {
    Rig rig(16);
    auto request = request_of(5, random_tokens(random, prompt), 70);
    rig.add(request);
    rig.run();
    expect_same(rig.replies[5], reference(request), prompt);
    EXPECT_EQ(rig.replies[5].prompt_tokens, static_cast<int64_t>(prompt));
    EXPECT_EQ(rig.replies[5].cached_tokens, 0);
    EXPECT_EQ(rig.replies[5].announcements, 1);
  }
}

// Everything at once from a seed: tiny pool, chunks, priorities, cancels, shared prefixes, salts, stops,
// echo, penalties; guesses, which some steps do not pay for.
struct Said {
  uint64_t tokens = 0, steps = 0, guessed = 0;
};
void scenario(uint32_t seed, int max_drafts, Said& said) {
  std::mt19937 random(seed);
  SchedulerLimits limits{.max_sequences = static_cast<int>(random() % 6 + 1),
                         .max_prompt_logit_rows = static_cast<int>(random() % 8 + 1),
                         .prefix_caching = random() % 4 != 0};
  limits.max_rows = limits.max_sequences + static_cast<int>(random() % 40);
  if (max_drafts > 0) limits.max_draft_rows = static_cast<int>(random() % 12);
  const int64_t pages = 4 + static_cast<int64_t>(random() % 12);
  const int64_t max_len = std::min<int64_t>(pages * kernels::kPageTokens, 200);
  Rig rig(pages, limits, max_len, max_drafts);
  if (random() % 2 == 0) {  // costs by which it pays for few sequences only
    DraftCosts costs;
    costs.step.add(1, 1e-3);
    costs.step.add(4, 1.1e-3);
    costs.step.add(64, 50e-3);
    costs.first.add(1, 0.1e-3);
    costs.again.add(1, 0.1e-3);
    rig.core.set_draft_costs(costs);
  }
  const auto common = random_tokens(random, 128);
  std::map<uint64_t, GenerateRequest> requests;
  std::vector<uint64_t> cancelled;
  uint64_t next = 1;
  for (int step = 0; step < 400 || !rig.core.idle(); ++step) {
    ASSERT_LT(step, 100000) << "no progress, seed " << seed;
    if (step < 400 && random() % 8 == 0) {
      std::vector<TokenId> prompt(common.begin(), common.begin() + random() % 120);
      const auto tail = random_tokens(random, random() % 20 + 1);
      prompt.insert(prompt.end(), tail.begin(), tail.end());
      const auto most = max_len - static_cast<int64_t>(prompt.size());
      if (most < 1) continue;
      auto request =
          request_of(next++, prompt, random() % 5 == 0 ? 0 : static_cast<int64_t>(random()) % most + 1);
      request.priority = static_cast<int>(random() % 3);
      if (random() % 3 == 0) request.cache_salt = "salt";
      if (random() % 4 == 0) request.stop.strings = {"ab", "c"};
      if (random() % 4 == 0) request.sampling.temperature = 0;
      if (random() % 4 == 0) request.sampling.repetition_penalty = 1.3;
      if (random() % 6 == 0) request.prompt_logprobs = 2;
      if (random() % 3 == 0) request.sampling.top_p = 0.8;
      requests[request.id.value] = request;
      rig.add(request);
    }
    if (random() % 40 == 0 && next > 1) {
      const uint64_t id = random() % (next - 1) + 1;
      if (rig.replies[id].finish == FinishReason::none) {
        cancelled.push_back(id);
        const int64_t free_before = rig.pool.pages_free();
        rig.core.cancel(RequestId(id), rig.events);
        EXPECT_GE(rig.pool.pages_free(), free_before);
      }
    }
    rig.step();
  }
  EXPECT_EQ(rig.pool.pages_free(), rig.pool.pages_total()) << "seed " << seed;
  said.tokens += rig.core.load().generated_tokens;
  said.steps += rig.core.load().steps;
  said.guessed += rig.model.guessed;
  for (const auto& [id, request] : requests) {
    const Reply& got = rig.replies[id];
    if (std::ranges::count(cancelled, id) > 0) {
      EXPECT_EQ(got.finishes, 1);
      EXPECT_EQ(got.finish, FinishReason::cancelled) << "seed " << seed;
      continue;
    }
    expect_same(got, reference(request, max_len), id);
    if (::testing::Test::HasFailure()) FAIL() << "seed " << seed << " request " << id;
    if (request.prompt_logprobs < 0) continue;
    ASSERT_EQ(got.prompt_logprobs.size(), request.prompt.tokens.size());
    Sampler sampler(kVocab, kernels::row_kernels());
    std::vector<float> logits(kVocab);
    for (size_t p = 1; p < got.prompt_logprobs.size(); ++p) {
      FakeModel::logits_of(std::span(request.prompt.tokens).first(p), logits.data());
      const TokenOut want = sampler.logprobs(logits.data(), request.prompt.tokens[p], 2);
      ASSERT_EQ(got.prompt_logprobs[p].token, want.token);
      ASSERT_EQ(got.prompt_logprobs[p].logprob, want.logprob);
      ASSERT_EQ(got.prompt_logprobs[p].top[1].token, want.top[1].token);
    }
  }
}

TEST(EngineCore, RandomScenariosSayWhatTheDefinitionSays) {
  Said said;
  for (uint32_t seed = 1; seed <= 60; ++seed) {
    scenario(seed, 0, said);
    if (HasFailure()) return;
  }
  EXPECT_EQ(said.guessed, 0u);
}

TEST(EngineCore, RandomScenariosWithGuessesSayTheSame) {
  Said said;
  for (uint32_t seed = 1; seed <= 120; ++seed) {
    scenario(seed, 1 + static_cast<int>(seed % 4), said);
    if (HasFailure()) return;
  }
  EXPECT_GT(said.guessed, 1000u);
}

TEST(EngineCore, SecondTurnUsesTheFirstTurnsPages) {
  std::mt19937 random(2);
  Rig rig(32);
  auto first = request_of(1, random_tokens(random, 70), 60);
  first.stop.ignore_eos = true;
  rig.add(first);
  rig.run();
  auto prompt = first.prompt.tokens;
  prompt.insert(prompt.end(), rig.replies[1].tokens.begin(), rig.replies[1].tokens.end());
  auto second = request_of(2, prompt, 20);
  rig.add(second);
  rig.run();
  // 130 tokens: the reply's last one was never computed, so 129 have keys: 4 whole pages.
  EXPECT_EQ(rig.replies[2].cached_tokens, 128);
  expect_same(rig.replies[2], reference(second), 2);
  EXPECT_EQ(rig.core.load().cached_tokens, 128u);
}

TEST(EngineCore, AFullyCachedPromptStillComputesItsLastToken) {
  std::mt19937 random(2);
  Rig rig(32);
  const auto prompt = random_tokens(random, 64);
  rig.add(request_of(1, prompt, 1));
  rig.run();
  rig.add(request_of(2, prompt, 1));
  rig.run();
  EXPECT_EQ(rig.replies[2].cached_tokens, 32);
  auto salted = request_of(3, prompt, 1);
  salted.cache_salt = "s";
  rig.add(salted);
  rig.run();
  EXPECT_EQ(rig.replies[3].cached_tokens, 0);
  auto echo = request_of(4, prompt, 1);
  echo.prompt_logprobs = 0;
  rig.add(echo);
  rig.run();
  EXPECT_EQ(rig.replies[4].cached_tokens, 0);
  EXPECT_EQ(rig.replies[4].prompt_ids, prompt);
}

TEST(EngineCore, PreemptsTheLatestOfTheLowestPriority) {
  std::mt19937 random(4);
  Rig rig(8, {.max_sequences = 4, .max_rows = 512, .prefix_caching = false}, 256);
  for (uint64_t id = 1; id <= 3; ++id) {
    auto request = request_of(id, random_tokens(random, 62), 90);
    request.stop.ignore_eos = true;
    request.priority = id == 2 ? 1 : 0;
    rig.add(request);
  }
  std::vector<uint64_t> order;
  while (!rig.core.idle()) {
    rig.core.step(rig.events);
    for (const auto& event : rig.events)
      if (event.finish != FinishReason::none) order.push_back(event.id.value);
    rig.replies.take(rig.events);
    rig.events.clear();
  }
  EXPECT_EQ(order, (std::vector<uint64_t>{1, 3, 2}));
  EXPECT_GT(rig.core.load().preemptions, 0u);
  for (uint64_t id = 1; id <= 3; ++id) EXPECT_EQ(rig.replies[id].tokens.size(), 90u);
}

TEST(EngineCore, HigherPriorityTakesASeat) {
  std::mt19937 random(4);
  Rig rig(64, {.max_sequences = 1, .max_rows = 64});
  auto low = request_of(1, random_tokens(random, 10), 50);
  low.stop.ignore_eos = true;
  low.priority = 5;
  rig.add(low);
  for (int i = 0; i < 10; ++i) rig.step();
  rig.add(request_of(2, random_tokens(random, 10), 3));
  rig.step();
  EXPECT_EQ(rig.replies[2].tokens.size(), 1u);
  rig.run();
  expect_same(rig.replies[1], reference(low), 1);
}

TEST(EngineCore, ResumedRequestsGoOnExactlyThere) {
  std::mt19937 random(5);
  auto request = request_of(1, random_tokens(random, 40), 60);
  request.stop.strings = {"abc", "zz"};
  request.sampling.frequency_penalty = 0.5;
  request.stop.ignore_eos = true;
  Rig whole(16);
  whole.add(request);
  whole.run();
  const Reply want = whole.replies[1];
  // The text that was out after k tokens, from the events themselves.
  for (size_t k = 0; k < want.tokens.size(); k += 7) {
    Rig first(16);
    first.add(request);
    while (first.replies[1].tokens.size() < k) first.step();
    const std::string out_before = k == 0 ? "" : first.replies[1].text;
    auto rest = request;
    rest.resumed.assign(want.tokens.begin(), want.tokens.begin() + static_cast<int64_t>(k));
    Rig second(16);
    second.add(rest);
    second.run();
    EXPECT_EQ(out_before + second.replies[1].text, want.text) << k;
    EXPECT_EQ(second.replies[1].tokens,
              std::vector<TokenId>(want.tokens.begin() + static_cast<int64_t>(k), want.tokens.end()));
    EXPECT_EQ(second.replies[1].announcements, 1);
    EXPECT_EQ(second.replies[1].prompt_tokens, 40);
    EXPECT_EQ(second.replies[1].finish, want.finish);
  }
  auto all = request;
  all.resumed = want.tokens;
  Rig done(16);
  done.add(all);
  done.run();
  EXPECT_EQ(done.replies[1].finish, want.finish);
  EXPECT_TRUE(done.replies[1].tokens.empty());
}

// Says a given reply, a byte a token, after a prompt of so many tokens.
class ScriptedModel final : public StepModel {
 public:
  ScriptedModel(std::string reply, int64_t prompt)
      : reply_(std::move(reply)), prompt_(prompt), logits_(kVocab) {}
  int vocab_size() const override { return kVocab; }
  int max_rows() const override { return 64; }
  int max_logit_rows() const override { return 1; }
  int threads() const override { return 1; }
  const float* logits(int) const override { return logits_.data(); }
  void parallel(int count, const std::function<void(int, int)>& f) override {
    for (int index = 0; index < count; ++index) f(index, 0);
  }
  void run(const StepBatch& batch, std::byte*) override {
    if (batch.logit_rows.empty()) return;
    const StepSegment& segment = batch.segments[0];
    const auto at = segment.first_position + batch.logit_rows[0] - segment.row_begin + 1 - prompt_;
    std::ranges::fill(logits_, 0.0f);
    logits_.at(static_cast<unsigned char>(reply_.at(static_cast<size_t>(at)))) = 100;
  }

 private:
  const std::string reply_;
  const int64_t prompt_;
  std::vector<float> logits_;
};

// A group may die between any two tokens of a thought, of its markers or of the answer.
TEST(EngineCore, AResumedThoughtGoesOnExactlyThere) {
  using Start = ReasoningFormat::Start;
  struct Case {
    std::string reply;
    Start start;
    std::string text;
  };
  const Case cases[] = {{"\n<think>a STOP b</think>\nc ST <think> STOP d", Start::may_open,
                         "\n<think>a STOP b</think>\nc ST <think> "},
                        {"a STOP </thin</think>b STOP c", Start::inside, "a STOP </thin</think>b "},
                        {" <thin STO STOP c", Start::may_open, " <thin STO "},
                        {"a</think> STOP", Start::answer, "a</think> "}};
  const std::vector<TokenId> prompt = {1, 2, 3};
  // The reply's text after `tokens` of them (-1: the whole), of a request that goes on after `resumed`.
  const auto say = [&](const Case& c, std::vector<TokenId> resumed, int64_t tokens) {
    ScriptedModel model(c.reply, static_cast<int64_t>(prompt.size()));
    KvPool pool = KvPool::create(8, FakeModel::kPageBytes).value();
    int64_t now = 0;
    EngineCore core(model, pool, std::make_shared<ByteTokenizer>(), kernels::row_kernels(),
                    {.max_model_len = 200,
                     .scheduler = {.max_sequences = 1, .max_rows = 64},
                     .eos = {kEos},
                     .now_ns = [&now] { return ++now; }});
    GenerateRequest request = request_of(1, prompt, 0);
    request.sampling.temperature = 0;
    request.stop.strings = {"STOP"};
    request.reasoning = {"<think>", "</think>", c.start};
    request.resumed = std::move(resumed);
    std::vector<GenerateEvent> events;
    Replies replies;
    core.add(request, events);
    while (!core.idle() && static_cast<int64_t>(replies[1].tokens.size()) != tokens) {
      core.step(events);
      replies.take(events);
      events.clear();
    }
    return replies[1];
  };
  for (const Case& c : cases) {
    const Reply whole = say(c, {}, -1);
    EXPECT_EQ(whole.text, c.text);
    EXPECT_EQ(whole.stop_match, "STOP");
    for (size_t k = 0; k < whole.tokens.size(); ++k) {
      const Reply before = say(c, {}, static_cast<int64_t>(k));
      const Reply rest = say(c, before.tokens, -1);
      EXPECT_EQ(before.text + rest.text, whole.text) << "killed after " << k << " tokens of " << c.reply;
      EXPECT_EQ(rest.stop_match, "STOP");
    }
  }
}

TEST(EngineCore, RefusesWhatCannotFit) {
  Rig rig(16, {}, 100);
  rig.add(request_of(1, std::vector<TokenId>(100, 5), 1));
  rig.add(request_of(2, std::vector<TokenId>(60, 5), 41));
  rig.add(request_of(3, std::vector<TokenId>(60, 5), 0));
  rig.add(request_of(4, {}, 5));
  rig.add(request_of(5, {kVocab}, 5));
  auto resumed = request_of(6, {1}, 2);
  resumed.resumed = {1, 2, 3};
  rig.add(resumed);
  rig.add(request_of(7, {1, 2, 3}, std::numeric_limits<int64_t>::max()));
  rig.run();
  EXPECT_EQ(rig.replies[1].error.reason, "context_length_exceeded");
  EXPECT_EQ(rig.replies[7].error.reason, "context_length_exceeded");
  EXPECT_EQ(rig.replies[2].error.reason, "context_length_exceeded");
  EXPECT_EQ(rig.replies[2].error.message,
            "This model's maximum context length is 100 tokens. However, you requested 101 tokens (60 in the "
            "prompt, 41 in "
            "the completion). Please reduce the length of the prompt or completion.");
  EXPECT_LE(rig.replies[3].tokens.size(), 40u);
  EXPECT_EQ(rig.replies[3].finishes, 1);
  for (const uint64_t id : {4, 5, 6}) EXPECT_EQ(rig.replies[id].error.code, Code::invalid_argument) << id;
  EXPECT_EQ(rig.core.left_queue(), 7u);
}

// No request of equal priority is overtaken: first tokens come in order of arrival, however long the prompts.
TEST(EngineCore, FirstComeFirstServedWithinAPriority) {
  std::mt19937 random(6);
  Rig rig(24, {.max_sequences = 3, .max_rows = 48});
  std::vector<uint64_t> order;
  for (uint64_t id = 1; id <= 30; ++id) {
    auto request = request_of(id, random_tokens(random, random() % 150 + 1), 5);
    request.stop.ignore_eos = true;
    rig.add(request);
  }
  while (!rig.core.idle()) {
    rig.core.step(rig.events);
    EXPECT_LE(rig.core.load().running, 3);
    for (const auto& event : rig.events)
      if (event.has_prompt) order.push_back(event.id.value);
    rig.events.clear();
  }
  // Seats overlap, so a short prompt may pass those admitted beside it, and no others.
  for (size_t i = 0; i < order.size(); ++i)
    EXPECT_LT(std::abs(static_cast<int>(order[i]) - static_cast<int>(i + 1)), 3);
}

TEST(EngineCore, FailAllEndsEverything) {
  Rig rig(16);
  for (uint64_t id = 1; id <= 5; ++id) rig.add(request_of(id, {1, 2, 3}, 50));
  rig.step();
  rig.core.fail_all({.code = Code::unavailable, .message = "stopping"}, rig.events);
  rig.run();
  for (uint64_t id = 1; id <= 5; ++id) EXPECT_EQ(rig.replies[id].error.code, Code::unavailable);
}

TEST(EngineCore, TellsHowLongARequestHasWaited) {
  Rig rig(64, {.max_sequences = 1});
  for (const uint64_t id : {1, 2}) {
    GenerateRequest request = request_of(id, {1, 2, 3}, 3);
    request.submitted_ns = 1;
    rig.add(std::move(request));
  }
  std::vector<double> waited;
  while (!rig.core.idle()) {
    rig.core.step(rig.events);
    for (const GenerateEvent& event : rig.events)
      if (event.has_prompt) waited.push_back(event.queue_s);
    rig.events.clear();
  }
  ASSERT_EQ(waited.size(), 2u);
  EXPECT_DOUBLE_EQ(waited[0], 999e-9);   // the first step begins at the clock's first 1000
  EXPECT_DOUBLE_EQ(waited[1], 6999e-9);  // after three steps of one sequence, two looks at the clock each
}

}  // namespace
}  // namespace millrace::engine
