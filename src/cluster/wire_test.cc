// Every field survives the wire; what no correct peer sends is refused, never believed.
#include "cluster/internal/wire.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace millrace::cluster {
namespace {

using engine::FinishReason;
using engine::GenerateEvent;
using engine::GenerateRequest;

GenerateRequest full_request() {
  GenerateRequest request;
  request.id = RequestId(0xfedcba9876543210);
  request.prompt = {.tokens = {1, 0, 151935},
                    .text = {{"plain <s>", false}, {"broken \xff\xfe", true}},
                    .add_special = false};
  request.resumed = {7, 8, 0};
  request.sampling = {.temperature = 0.1,
                      .top_p = 0.2,
                      .top_k = 3,
                      .min_p = 0.4,
                      .presence_penalty = -0.5,
                      .frequency_penalty = 0.6,
                      .repetition_penalty = 1.7,
                      .logit_bias = {{5, -100.f}, {6, 0.25f}},
                      .seed = 0xffffffffffffffff};
  request.stop = {.max_tokens = 11,
                  .min_tokens = 2,
                  .strings = {"END", std::string("\0\xff", 2)},
                  .token_ids = {2, 3},
                  .ignore_eos = true,
                  .include_stop_in_text = true};
  request.top_logprobs = 5;
  request.prompt_logprobs = -1;
  request.skip_special_tokens = false;
  request.priority = -4;
  request.cache_salt = "salt";
  request.reasoning = {"<think>", "</think>", engine::ReasoningFormat::Start::inside, "</th"};
  return request;
}

TEST(Wire, RequestKeepsEveryField) {
  const GenerateRequest in = full_request();
  wire::Submit message;
  to_wire(in, &message);
  wire::Submit received;
  ASSERT_TRUE(received.ParseFromString(message.SerializeAsString()));
  const auto out = from_wire(received);
  ASSERT_TRUE(out);
  EXPECT_EQ(out->id, in.id);
  EXPECT_EQ(out->prompt.tokens, in.prompt.tokens);
  ASSERT_EQ(out->prompt.text.size(), 2u);
  EXPECT_EQ(out->prompt.text[0].text, in.prompt.text[0].text);
  EXPECT_FALSE(out->prompt.text[0].parse_special);
  EXPECT_EQ(out->prompt.text[1].text, in.prompt.text[1].text);
  EXPECT_TRUE(out->prompt.text[1].parse_special);
  EXPECT_EQ(out->prompt.add_special, in.prompt.add_special);
  EXPECT_EQ(out->resumed, in.resumed);
  EXPECT_EQ(out->sampling.temperature, in.sampling.temperature);
  EXPECT_EQ(out->sampling.top_p, in.sampling.top_p);
  EXPECT_EQ(out->sampling.top_k, in.sampling.top_k);
  EXPECT_EQ(out->sampling.min_p, in.sampling.min_p);
  EXPECT_EQ(out->sampling.presence_penalty, in.sampling.presence_penalty);
  EXPECT_EQ(out->sampling.frequency_penalty, in.sampling.frequency_penalty);
  EXPECT_EQ(out->sampling.repetition_penalty, in.sampling.repetition_penalty);
  EXPECT_EQ(out->sampling.logit_bias, in.sampling.logit_bias);
  EXPECT_EQ(out->sampling.seed, in.sampling.seed);
  EXPECT_EQ(out->stop.max_tokens, in.stop.max_tokens);
  EXPECT_EQ(out->stop.min_tokens, in.stop.min_tokens);
  EXPECT_EQ(out->stop.strings, in.stop.strings);
  EXPECT_EQ(out->stop.token_ids, in.stop.token_ids);
  EXPECT_EQ(out->stop.ignore_eos, in.stop.ignore_eos);
  EXPECT_EQ(out->stop.include_stop_in_text, in.stop.include_stop_in_text);
  EXPECT_EQ(out->top_logprobs, in.top_logprobs);
  EXPECT_EQ(out->prompt_logprobs, in.prompt_logprobs);
  EXPECT_EQ(out->skip_special_tokens, in.skip_special_tokens);
  EXPECT_EQ(out->priority, in.priority);
  EXPECT_EQ(out->cache_salt, in.cache_salt);
  EXPECT_EQ(out->reasoning, in.reasoning);
}

Expected<GenerateEvent> round_trip(GenerateEvent event) {
  wire::Event message;
  to_wire(std::move(event), &message);
  wire::Event received;
  EXPECT_TRUE(received.ParseFromString(message.SerializeAsString()));
  return from_wire(std::move(received));
}

TEST(Wire, EventKeepsEveryField) {
  GenerateEvent event{.id = RequestId(9), .has_prompt = true, .prompt_tokens = 100, .cached_tokens = 64};
  event.prompt_ids = {1, 2, 3};
  event.prompt_logprobs = {{.token = 1}, {.token = 2, .logprob = -0.5f, .top = {{4, -0.1f}, {2, -0.5f}}}};
  event.tokens = {{.token = 5, .logprob = -1.25f, .top = {{5, -1.25f}}},
                  {.token = 6, .logprob = -0.f, .top = {}}};
  event.text = "text \xe2\x82";  // half a character: not ours to judge here
  event.finish = FinishReason::stop;
  event.stop_match = "END";
  event.stop_token = 0;
  event.queue_s = 0.25;
  const auto out = round_trip(event);
  ASSERT_TRUE(out) << out.error().message;
  EXPECT_EQ(out->id, event.id);
  EXPECT_TRUE(out->has_prompt);
  EXPECT_EQ(out->prompt_tokens, 100);
  EXPECT_EQ(out->cached_tokens, 64);
  EXPECT_EQ(out->queue_s, 0.25);
  EXPECT_EQ(out->prompt_ids, event.prompt_ids);
  ASSERT_EQ(out->prompt_logprobs.size(), 2u);
  EXPECT_EQ(out->prompt_logprobs[0].token, 1);
  EXPECT_TRUE(out->prompt_logprobs[0].top.empty());
  ASSERT_EQ(out->prompt_logprobs[1].top.size(), 2u);
  EXPECT_EQ(out->prompt_logprobs[1].top[0].token, 4);
  EXPECT_EQ(out->prompt_logprobs[1].top[1].logprob, -0.5f);
  ASSERT_EQ(out->tokens.size(), 2u);
  EXPECT_EQ(out->tokens[0].token, 5);
  EXPECT_EQ(out->tokens[0].logprob, -1.25f);
  ASSERT_EQ(out->tokens[0].top.size(), 1u);
  EXPECT_EQ(out->tokens[1].token, 6);
  EXPECT_TRUE(std::signbit(out->tokens[1].logprob));
  EXPECT_TRUE(out->tokens[1].top.empty());
  EXPECT_EQ(out->text, event.text);
  EXPECT_EQ(out->finish, FinishReason::stop);
  EXPECT_EQ(out->stop_match, "END");
  EXPECT_EQ(out->stop_token, 0);
}

TEST(Wire, ErrorsKeepTheirFields) {
  GenerateEvent event{.id = RequestId(1), .finish = FinishReason::error};
  event.error = {.code = Code::invalid_argument,
                 .message = "too long",
                 .reason = "context_length_exceeded",
                 .param = "messages",
                 .retry_after_s = 1.5};
  const auto out = round_trip(event);
  ASSERT_TRUE(out);
  EXPECT_EQ(out->error.code, event.error.code);
  EXPECT_EQ(out->error.message, event.error.message);
  EXPECT_EQ(out->error.reason, event.error.reason);
  EXPECT_EQ(out->error.param, event.error.param);
  EXPECT_EQ(out->error.retry_after_s, event.error.retry_after_s);
}

TEST(Wire, LoadKeepsEveryField) {
  const engine::GroupLoad in{.steps = 1,
                             .last_step_age_ms = 2,
                             .running = 3,
                             .waiting = 4,
                             .kv_pages_total = 5,
                             .kv_pages_free = 6,
                             .prompt_tokens = 7,
                             .cached_tokens = 8,
                             .generated_tokens = 9,
                             .preemptions = 10,
                             .drafts = {{.proposed = 9, .accepted = 7}, {.proposed = 7, .accepted = 3}},
                             .experts = {{.layer = 3, .rows = 11, .busiest_rows = 12, .imbalance = 1.5f},
                                         {.layer = 4, .rows = 13, .busiest_rows = 14, .imbalance = 2}}};
  wire::Load message;
  to_wire(in, &message);
  const engine::GroupLoad out = from_wire(message);
  EXPECT_EQ(out.steps, 1u);
  EXPECT_EQ(out.last_step_age_ms, 2);
  EXPECT_EQ(out.running, 3);
  EXPECT_EQ(out.waiting, 4);
  EXPECT_EQ(out.kv_pages_total, 5);
  EXPECT_EQ(out.kv_pages_free, 6);
  EXPECT_EQ(out.prompt_tokens, 7u);
  EXPECT_EQ(out.cached_tokens, 8u);
  EXPECT_EQ(out.generated_tokens, 9u);
  EXPECT_EQ(out.preemptions, 10u);
  ASSERT_EQ(out.drafts.size(), 2u);
  EXPECT_EQ(out.drafts[0].accepted, 7u);
  EXPECT_EQ(out.drafts[1].proposed, 7u);
  ASSERT_EQ(out.experts.size(), 2u);
  EXPECT_EQ(out.experts[1].layer, 4);
  EXPECT_EQ(out.experts[0].imbalance, 1.5f);
  EXPECT_EQ(out.experts[0].rows, 11u);
  EXPECT_EQ(out.experts[1].busiest_rows, 14u);
}

TEST(Wire, TokensThatDoNotAddUpAreRefused) {
  const auto refused = [](const std::function<void(wire::Tokens&)>& change) {
    wire::Event event;
    for (int i = 0; i < 3; ++i) {
      event.mutable_tokens()->add_id(i);
      event.mutable_tokens()->add_logprob(-1);
      event.mutable_tokens()->add_top_count(1);
      event.mutable_tokens()->add_top_id(i);
      event.mutable_tokens()->add_top_logprob(-1);
    }
    EXPECT_TRUE(from_wire(wire::Event(event)));
    change(*event.mutable_tokens());
    return !from_wire(std::move(event));
  };
  EXPECT_TRUE(refused([](wire::Tokens& tokens) { tokens.add_logprob(0); }));
  EXPECT_TRUE(refused([](wire::Tokens& tokens) { tokens.add_top_id(0); }));
  EXPECT_TRUE(refused([](wire::Tokens& tokens) { tokens.set_top_count(2, 2); }));
  EXPECT_TRUE(
      refused([](wire::Tokens& tokens) { tokens.set_top_count(0, std::numeric_limits<uint32_t>::max()); }));
  EXPECT_TRUE(refused([](wire::Tokens& tokens) { tokens.clear_top_count(); }));
}

TEST(Wire, EventsThatContradictThemselvesAreRefused) {
  wire::Event event;
  event.set_finish(5);
  EXPECT_FALSE(from_wire(wire::Event(event)));
  event.set_finish(-1);
  EXPECT_FALSE(from_wire(wire::Event(event)));
  event.set_finish(static_cast<int>(FinishReason::error));  // without an error
  EXPECT_FALSE(from_wire(wire::Event(event)));
  event.mutable_error()->set_code(99);
  EXPECT_FALSE(from_wire(wire::Event(event)));
  event.mutable_error()->set_code(14);
  EXPECT_TRUE(from_wire(wire::Event(event)));
  event.set_finish(0);  // an error that does not end the request
  EXPECT_FALSE(from_wire(wire::Event(event)));
}

TEST(Wire, HellosOfAnotherVersionAreRefused) {
  const GroupInfo info{.id = GroupId(2), .model_fingerprint = 3, .max_model_len = 4, .max_num_seqs = 5};
  wire::Hello hello;
  to_wire(info, &hello);
  EXPECT_EQ(from_wire(hello)->model_fingerprint, 3u);
  hello.set_protocol_version(kProtocolVersion + 1);
  const auto refused = from_wire(hello);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, Code::failed_precondition);
  EXPECT_FALSE(from_wire(wire::Hello()));
}

}  // namespace
}  // namespace millrace::cluster
