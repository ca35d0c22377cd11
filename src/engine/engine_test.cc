// The whole engine with its threads on a tiny model.
#include "engine/engine.h"

#include <gtest/gtest.h>

#include <chrono>
#include <condition_variable>
#include <mutex>

#include "engine/eval.h"
#include "engine/internal/executor.h"
#include "engine/internal/testing.h"

namespace millrace::engine {
namespace {

using testing::kEos;
using testing::kVocab;
using testing::random_tokens;
using testing::Replies;
using testing::Reply;
using testing::TinyModel;

struct Variant {
  model::PackType type = model::PackType::int8;
  testing::TinySizes sizes = {};
};

class Running {
 public:
  explicit Running(EngineOptions options = {}, const Variant& variant = {})
      : engine_(Engine::create(
                    std::make_shared<TinyModel>(variant.type, variant.sizes), with_cache(options),
                    [this](std::span<GenerateEvent> events, const GroupLoad& load) { take(events, load); })
                    .value()) {}
  ~Running() { stop(); }

  Engine& engine() { return *engine_; }
  void stop() { engine_.reset(); }
  // All these ids have a final event.
  void wait(uint64_t first, uint64_t last) {
    std::unique_lock lock(mutex_);
    const bool done = changed_.wait_for(lock, std::chrono::seconds(120), [&] {
      for (uint64_t id = first; id <= last; ++id)
        if (replies_[id].finishes == 0) return false;
      return true;
    });
    ASSERT_TRUE(done) << "requests did not end";
  }
  void wait_tokens(uint64_t id, size_t tokens) {
    std::unique_lock lock(mutex_);
    ASSERT_TRUE(changed_.wait_for(lock, std::chrono::seconds(120),
                                  [&] { return replies_[id].tokens.size() >= tokens; }));
  }
  Reply reply(uint64_t id) {
    const std::lock_guard lock(mutex_);
    return replies_[id];
  }
  Reply ask(GenerateRequest request) {
    const uint64_t id = request.id.value;
    EXPECT_TRUE(engine_->submit(std::move(request)).has_value());
    wait(id, id);
    return reply(id);
  }
  // Pages go back within the step after the last event at the latest.
  void expect_all_pages_free() {
    const GroupLoad load = engine_->load();
    EXPECT_EQ(load.kv_pages_free, load.kv_pages_total);
    EXPECT_EQ(load.running, 0);
    EXPECT_EQ(load.waiting, 0);
  }

 private:
  static EngineOptions with_cache(EngineOptions options) {
    if (options.kv_cache_bytes == 0) options.kv_cache_bytes = size_t{8} << 20;
    return options;
  }
  void take(std::span<GenerateEvent> events, const GroupLoad& load) {
    const std::lock_guard lock(mutex_);
    EXPECT_GE(load.steps, steps_);
    steps_ = load.steps;
    replies_.take(events);
    changed_.notify_all();
  }
  std::mutex mutex_;
  std::condition_variable changed_;
  Replies replies_;
  uint64_t steps_ = 0;
  std::unique_ptr<Engine> engine_;
};

GenerateRequest request_of(uint64_t id, std::vector<TokenId> prompt, int64_t max_tokens) {
  GenerateRequest request{.id = RequestId(id), .prompt = {.tokens = std::move(prompt)}};
  request.stop.max_tokens = max_tokens;
  request.stop.ignore_eos = true;
  request.sampling.seed = 40 + id;
  request.sampling.top_p = 0.95;
  request.top_logprobs = 3;
  return request;
}

void expect_same(const Reply& a, const Reply& b, std::string_view what) {
  EXPECT_EQ(a.tokens, b.tokens) << what;
  EXPECT_EQ(a.text, b.text) << what;
  EXPECT_EQ(a.finish, b.finish) << what;
  ASSERT_EQ(a.outs.size(), b.outs.size()) << what;
  for (size_t i = 0; i < a.outs.size(); ++i) {
    EXPECT_EQ(a.outs[i].logprob, b.outs[i].logprob) << what;
    for (size_t j = 0; j < a.outs[i].top.size(); ++j)
      EXPECT_EQ(a.outs[i].top[j].logprob, b.outs[i].top[j].logprob) << what;
  }
}

class EngineBits : public ::testing::TestWithParam<Variant> {};

// Batch 1 against 64; 1 against 2 threads; chunk sizes; a pool so small that sequences are preempted; no
// cache.
TEST_P(EngineBits, DependOnTheRequestAlone) {
  std::mt19937 random(1);
  std::vector<GenerateRequest> requests;
  for (uint64_t id = 1; id <= 64; ++id)
    requests.push_back(request_of(id, random_tokens(random, random() % 80 + 1), 40));
  std::vector<Reply> want;
  {
    Running alone({.max_num_seqs = 1, .prefix_caching = false, .num_speculative_tokens = 0}, GetParam());
    for (const auto& request : requests) want.push_back(alone.ask(request));
  }
  const auto& sizes = GetParam().sizes;
  const size_t page = kv_shape_of(TinyModel(GetParam().type, sizes), sizes.mtp).page_bytes();
  for (const EngineOptions& options : {EngineOptions{}, EngineOptions{.cpus = {-1, -1}},
                                       EngineOptions{.max_num_seqs = 8, .max_num_batched_tokens = 13},
                                       EngineOptions{.cpus = {-1, -1}, .kv_cache_bytes = 20 * page}}) {
    Running together(options, GetParam());
    for (const auto& request : requests) ASSERT_TRUE(together.engine().submit(request).has_value());
    together.wait(1, 64);
    for (uint64_t id = 1; id <= 64; ++id) expect_same(together.reply(id), want[id - 1], "together");
    if (options.kv_cache_bytes != 0) {
      EXPECT_GT(together.engine().load().preemptions, 0u);
    }
    together.expect_all_pages_free();
  }
}

TEST_P(EngineBits, CachedPrefixAndSecondTurnEqualComputedOnes) {
  std::mt19937 random(2);
  Running cached({}, GetParam()), computed({.prefix_caching = false}, GetParam());
  const auto first = request_of(1, random_tokens(random, 100), 50);
  const Reply turn = cached.ask(first);
  expect_same(turn, computed.ask(first), "first turn");
  auto again = first;
  again.id = RequestId(2);
  const Reply repeated = cached.ask(again);
  EXPECT_EQ(repeated.cached_tokens, 96);
  expect_same(repeated, turn, "cached prompt");
  auto tokens = first.prompt.tokens;
  tokens.insert(tokens.end(), turn.tokens.begin(), turn.tokens.end());
  const auto tail = random_tokens(random, 10);
  tokens.insert(tokens.end(), tail.begin(), tail.end());
  const auto second = request_of(3, tokens, 30);
  const Reply reply = cached.ask(second);
  EXPECT_EQ(reply.cached_tokens, 128) << "pages with the reply's tokens are reused";
  expect_same(reply, computed.ask(second), "second turn");
}

TEST_P(EngineBits, ResumedEqualsUndisturbed) {
  std::mt19937 random(3);
  auto request = request_of(1, random_tokens(random, 45), 60);
  request.sampling.repetition_penalty = 1.2;
  Running engine({}, GetParam());
  const Reply want = engine.ask(request);
  uint64_t id = 2;
  for (const size_t k : {1, 20, 59}) {
    auto rest = request;
    rest.id = RequestId(id++);
    rest.resumed.assign(want.tokens.begin(), want.tokens.begin() + static_cast<int64_t>(k));
    Running other({}, GetParam());
    const Reply got = other.ask(rest);
    auto joined = rest.resumed;
    joined.insert(joined.end(), got.tokens.begin(), got.tokens.end());
    EXPECT_EQ(joined, want.tokens) << k;
    EXPECT_EQ(got.outs.back().logprob, want.outs.back().logprob);
  }
}

// Random weights guess badly (the policy soon stops): deepseek_mtp_slow_test.cc has a model that guesses
// well.
testing::TinySizes with_mtp(testing::TinySizes sizes) {
  sizes.mtp = true;
  return sizes;
}

INSTANTIATE_TEST_SUITE_P(Types, EngineBits,
                         ::testing::Values(Variant{model::PackType::int8}, Variant{model::PackType::float32},
                                           Variant{model::PackType::int8, testing::tiny_deepseek()},
                                           Variant{model::PackType::float32, testing::tiny_deepseek()},
                                           Variant{model::PackType::int8, with_mtp({})},
                                           Variant{model::PackType::int8,
                                                   with_mtp(testing::tiny_deepseek())}),
                         [](const auto& suite) {
                           return std::string(suite.param.sizes.mla.used() ? "deepseek_" : "dense_") +
                                  (suite.param.sizes.mtp ? "mtp_" : "") +
                                  (suite.param.type == model::PackType::int8 ? "int8" : "float32");
                         });

TEST(Engine, TextGoesThroughTheTokenizerThreads) {
  Running engine({.tokenizer_threads = 2});
  auto by_text = request_of(1, {}, 12);
  by_text.prompt.text = {{"hello <eos>", false}, {"<eos>", true}};
  const Reply reply = engine.ask(by_text);
  EXPECT_EQ(reply.prompt_tokens, 12);
  auto by_tokens = request_of(2, {'h', 'e', 'l', 'l', 'o', ' ', '<', 'e', 'o', 's', '>', kEos}, 12);
  by_tokens.sampling.seed = by_text.sampling.seed;
  // The vocabulary is in GPT-2's order of bytes, where these letters are their own ids.
  EXPECT_EQ(engine.ask(by_tokens).tokens, reply.tokens);
}

TEST(Engine, RefusesBadRequestsAndContextOverflow) {
  Running engine({.max_model_len = 100});
  EXPECT_EQ(engine.engine().options().max_model_len, 100);
  auto bad = request_of(1, {1}, 5);
  bad.sampling.top_p = 0;
  EXPECT_EQ(engine.engine().submit(bad).error().param, "top_p");
  EXPECT_EQ(engine.engine().submit(request_of(1, {kVocab}, 5)).error().code, Code::invalid_argument);
  auto text = request_of(2, {}, 0);
  text.prompt.text = {{std::string(101, 'x'), false}};
  EXPECT_EQ(engine.ask(text).error.reason, "context_length_exceeded");
  text.id = RequestId(3);
  text.prompt.text = {{std::string(100, 'x'), false}};
  EXPECT_EQ(engine.ask(text).error.reason, "context_length_exceeded");
  text.id = RequestId(4);
  text.prompt.text = {{std::string(99, 'x'), false}};
  EXPECT_EQ(engine.ask(text).finish, FinishReason::length);
  EXPECT_EQ(engine.ask(request_of(5, std::vector<TokenId>(60, 1), 41)).error.reason,
            "context_length_exceeded");
}

TEST(Engine, AFullQueueRefusesWithATimeToComeBack) {
  Running engine({.max_num_seqs = 1, .max_waiting = 3});
  ASSERT_TRUE(engine.engine().submit(request_of(1, {1, 2, 3}, 1500)).has_value());
  engine.wait_tokens(1, 2);
  for (uint64_t id = 2; id <= 4; ++id)
    ASSERT_TRUE(engine.engine().submit(request_of(id, {1, 2, 3}, 5)).has_value());
  const auto refused = engine.engine().submit(request_of(5, {1, 2, 3}, 5));
  ASSERT_FALSE(refused.has_value());
  EXPECT_EQ(refused.error().code, Code::resource_exhausted);
  EXPECT_GE(refused.error().retry_after_s, 1);
  EXPECT_EQ(engine.engine().submit(request_of(1, {1}, 1)).error().code, Code::resource_exhausted);
  engine.engine().cancel(RequestId(1));
  engine.wait(1, 4);
  EXPECT_TRUE(engine.engine().submit(request_of(5, {1, 2, 3}, 5)).has_value());
  engine.wait(5, 5);
}

TEST(Engine, AnIdThatRunsIsRefused) {
  Running engine;
  ASSERT_TRUE(engine.engine().submit(request_of(1, {1, 2, 3}, 1500)).has_value());
  EXPECT_EQ(engine.engine().submit(request_of(1, {1}, 1)).error().code, Code::already_exists);
  engine.engine().cancel(RequestId(1));
  engine.wait(1, 1);
}

TEST(Engine, CancelFreesAtEveryStage) {
  std::mt19937 random(4);
  Running engine({.tokenizer_threads = 1, .max_num_seqs = 2});
  uint64_t id = 1;
  for (int round = 0; round < 60; ++round, ++id) {
    auto request = request_of(id, random_tokens(random, 300), 500);
    if (round % 3 == 0)
      request.prompt = {.text = {{std::string(1000, 'y'), false}}};  // cancelled while it is text
    ASSERT_TRUE(engine.engine().submit(request).has_value());
    if (round % 3 == 1) engine.wait_tokens(id, random() % 3 + 1);
    engine.engine().cancel(RequestId(id));
    engine.engine().cancel(RequestId(id + 1000));
  }
  engine.wait(1, id - 1);
  for (uint64_t i = 1; i < id; ++i) {
    EXPECT_EQ(engine.reply(i).finishes, 1);
    EXPECT_EQ(engine.reply(i).finish, FinishReason::cancelled);
  }
  EXPECT_EQ(engine.ask(request_of(5000, {1, 2}, 3)).tokens.size(), 3u);
  engine.expect_all_pages_free();
}

TEST(Engine, StoppingEndsEveryRequest) {
  Running engine({.max_num_seqs = 2});
  for (uint64_t id = 1; id <= 10; ++id) {
    auto request = request_of(id, {1, 2, 3}, 1500);
    if (id % 2 == 0) request.prompt = {.text = {{std::string(100000, 'y'), false}}};
    ASSERT_TRUE(engine.engine().submit(request).has_value());
  }
  engine.wait_tokens(1, 1);
  const auto start = std::chrono::steady_clock::now();
  engine.stop();
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(20));
  for (uint64_t id = 1; id <= 10; ++id) {
    EXPECT_EQ(engine.reply(id).finishes, 1) << id;
    EXPECT_EQ(engine.reply(id).finish, FinishReason::error);
  }
  EXPECT_EQ(engine.reply(1).error.code, Code::unavailable);
}

TEST(Engine, PromptLogprobsDoNotDependOnChunks) {
  std::mt19937 random(5);
  const auto tokens = random_tokens(random, 200);
  auto request = request_of(1, tokens, 2);
  request.prompt_logprobs = 2;
  Running whole, chunked({.max_num_seqs = 4, .max_num_batched_tokens = 17});
  whole.ask(request_of(9, tokens, 2));  // its pages are cached, and must not be used
  const Reply a = whole.ask(request), b = chunked.ask(request);
  ASSERT_EQ(a.prompt_logprobs.size(), 200u);
  EXPECT_EQ(a.cached_tokens, 0);
  EXPECT_EQ(a.prompt_ids, tokens);
  EXPECT_EQ(a.prompt_logprobs[0].logprob, 0.0f);
  for (size_t i = 1; i < 200; ++i) {
    EXPECT_EQ(a.prompt_logprobs[i].token, tokens[i]);
    EXPECT_LT(a.prompt_logprobs[i].logprob, 0.0f);
    EXPECT_EQ(a.prompt_logprobs[i].logprob, b.prompt_logprobs[i].logprob);
    EXPECT_EQ(a.prompt_logprobs[i].top.size(), 2u);
  }
}

TEST(Engine, LoadTellsWhatHappened) {
  Running engine;
  engine.ask(request_of(1, std::vector<TokenId>(50, 7), 20));
  const GroupLoad load = engine.engine().load();
  EXPECT_EQ(load.prompt_tokens, 50u);
  EXPECT_EQ(load.generated_tokens, 20u);
  EXPECT_GE(load.steps, 20u);
  EXPECT_GE(load.last_step_age_ms, 0);
  EXPECT_LT(load.last_step_age_ms, 60000);
}

TEST(Engine, LoadTellsHowExpertsAreUsed) {
  Running engine({}, {model::PackType::int8, testing::tiny_deepseek()});
  engine.ask(request_of(1, std::vector<TokenId>(50, 7), 20));
  GroupLoad load = engine.engine().load();
  ASSERT_EQ(load.experts.size(), 2u);
  EXPECT_EQ(load.experts[0].layer, 1);
  // A row picks three of eight experts. The last of the 20 tokens is never computed; the last layer sees only
  // rows that a token was drawn from.
  EXPECT_EQ(load.experts[0].rows, 3u * (50 + 19));
  EXPECT_EQ(load.experts[1].rows, 3u * 20);
  for (const auto& mixture : load.experts) {
    EXPECT_GE(mixture.imbalance, 1);
    EXPECT_LE(mixture.imbalance, 8.0f / 3);
    EXPECT_GE(8 * mixture.busiest_rows, mixture.rows);
    EXPECT_LE(3 * mixture.busiest_rows, mixture.rows);
  }
  // While it works, too, and without a rest.
  const uint64_t before = load.experts[0].rows;
  ASSERT_TRUE(engine.engine().submit(request_of(2, {1, 2, 3}, 1500)).has_value());
  engine.wait_tokens(2, 150);
  load = engine.engine().load();
  EXPECT_GE(load.experts[0].rows, before + 3 * 64);
  EXPECT_GE(load.running, 1);
  engine.engine().cancel(RequestId(2));
  engine.wait(2, 2);
}

// What guesses cost is measured on made-up tokens when the engine starts; they are nobody's.
TEST(Engine, ExpertsAreNotCountedWhereNobodyAsked) {
  auto sizes = testing::tiny_deepseek();
  sizes.mtp = true;
  Running engine({}, {model::PackType::int8, sizes});
  engine.ask(request_of(1, std::vector<TokenId>(50, 7), 1));
  const GroupLoad load = engine.engine().load();
  ASSERT_EQ(load.experts.size(), 3u);
  EXPECT_EQ(load.experts[0].rows, 3u * 50);
}

TEST(Engine, OptionsThatCannotBeAreRefused) {
  const auto code = [](EngineOptions options) {
    return Engine::create(std::make_shared<TinyModel>(model::PackType::int8), options, {}).error().code;
  };
  EXPECT_EQ(code({.max_num_seqs = 0}), Code::invalid_argument);
  EXPECT_EQ(code({.max_model_len = 1 << 20}), Code::invalid_argument);
  EXPECT_EQ(code({.max_model_len = 2048, .kv_cache_bytes = 100000}), Code::resource_exhausted);
  EXPECT_EQ(code({.cpus = {}}), Code::invalid_argument);
}

TEST(Eval, AModelAgainstItselfLosesNothingAndInt8Little) {
  const auto int8 =
      std::make_shared<TinyModel>(model::PackType::int8, testing::TinySizes{.hadamard_block = 1});
  const auto reference = std::make_shared<TinyModel>(model::PackType::float32);
  std::string text;
  std::mt19937 random(6);
  for (int i = 0; i < 700; ++i) text += static_cast<char>('a' + random() % 26);
  const auto same = evaluate(int8, int8, text, {.window = 128}).value();
  EXPECT_EQ(same.perplexity, same.reference_perplexity);
  EXPECT_EQ(same.kl_mean, 0);
  EXPECT_EQ(same.top1_agreement, 1);
  EXPECT_EQ(same.tokens, 700 - 6);
  const auto cost = evaluate(int8, reference, text, {.window = 128, .max_tokens = 300}).value();
  EXPECT_EQ(cost.tokens, 300 - 3);
  EXPECT_GT(cost.kl_mean, 0);
  EXPECT_LT(cost.kl_mean, 0.05);
  EXPECT_GE(cost.kl_max, cost.kl_mean);
  EXPECT_GT(cost.top1_agreement, 0.7);
  EXPECT_NEAR(std::log(cost.perplexity), std::log(cost.reference_perplexity), 0.1);
}

}  // namespace
}  // namespace millrace::engine
