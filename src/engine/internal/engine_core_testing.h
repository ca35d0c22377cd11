// An engine core on a fake model and virtual time, and what its replies are by definition. Tests only.
#pragma once
#include <gtest/gtest.h>

#include <memory>
#include <random>
#include <vector>

#include "engine/internal/engine_core.h"
#include "engine/internal/testing.h"

namespace millrace::engine::testing {

struct Rig {
  explicit Rig(int64_t pages, SchedulerLimits limits = {}, int64_t max_model_len = 512, int max_drafts = 0)
      : model(limits.max_rows, limits.max_sequences + limits.max_prompt_logit_rows + limits.max_draft_rows,
              max_drafts > 0),
        pool(KvPool::create(pages, FakeModel::kPageBytes).value()),
        core(model, pool, std::make_shared<ByteTokenizer>(), kernels::row_kernels(),
             {.max_model_len = max_model_len,
              .scheduler = limits,
              .eos = {kEos},
              .now_ns = [this] { return (now += 1000) + pass_ns * static_cast<int64_t>(model.guessed); },
              .max_drafts = max_drafts}) {}
  void add(GenerateRequest request) { core.add(std::move(request), events); }
  void step() {
    core.step(events);
    replies.take(events);
    events.clear();
    pool.check();
  }
  void run(int steps_at_most = 100000) {
    while (!core.idle() && steps_at_most-- > 0) step();
    replies.take(events);
    events.clear();
    EXPECT_TRUE(core.idle());
    EXPECT_EQ(pool.pages_free(), pool.pages_total());
  }
  int64_t now = 0, pass_ns = 0;  // the latter for each guess that the MTP layer makes
  FakeModel model;
  KvPool pool;
  EngineCore core;
  std::vector<GenerateEvent> events;
  Replies replies;
};

inline GenerateRequest request_of(uint64_t id, std::vector<TokenId> prompt, int64_t max_tokens) {
  GenerateRequest request{.id = RequestId(id), .prompt = {.tokens = std::move(prompt)}};
  request.stop.max_tokens = max_tokens;
  request.sampling.seed = id * 77 + 1;
  return request;
}

// The reply by definition: one token after the other, no engine.
inline Reply reference(const GenerateRequest& request, int64_t max_model_len = 512) {
  Sampler sampler(kVocab, kernels::row_kernels());
  const int64_t room = request.stop.max_tokens > 0
                           ? request.stop.max_tokens
                           : max_model_len - static_cast<int64_t>(request.prompt.tokens.size());
  OutputText text(std::make_shared<ByteTokenizer>(), request.stop, {kEos}, request.skip_special_tokens, room);
  std::vector<TokenId> tokens = request.prompt.tokens;
  Reply reply;
  std::vector<float> logits(kVocab);
  while (reply.finish == FinishReason::none) {
    FakeModel::logits_of(tokens, logits.data());
    const TokenOut out = sampler.sample({.logits = logits.data(),
                                         .params = &request.sampling,
                                         .prompt = request.prompt.tokens,
                                         .generated = reply.tokens,
                                         .banned = text.banned(),
                                         .index = reply.tokens.size(),
                                         .top_logprobs = request.top_logprobs});
    tokens.push_back(out.token);
    reply.tokens.push_back(out.token);
    const auto end = text.push(out.token, reply.text);
    reply.finish = end.finish;
  }
  return reply;
}

inline void expect_same(const Reply& got, const Reply& want, uint64_t id) {
  EXPECT_EQ(got.tokens, want.tokens) << "request " << id;
  EXPECT_EQ(got.text, want.text) << "request " << id;
  EXPECT_EQ(got.finish, want.finish) << "request " << id;
  EXPECT_EQ(got.finishes, 1) << "request " << id;
}

}  // namespace millrace::engine::testing
