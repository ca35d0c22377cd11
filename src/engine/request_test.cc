#include "engine/request.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>

namespace millrace::engine {
namespace {

TEST(Request, EveryLimitIsNamed) {
  const auto param_of = [](const std::function<void(GenerateRequest&)>& change) -> std::string {
    GenerateRequest request{.id = RequestId(1), .prompt = {.tokens = {1, 2}}};
    request.stop.max_tokens = 10;
    change(request);
    const auto checked = validate_request(request, 100);
    return checked ? "ok" : checked.error().param;
  };
  const double nan = std::nan("");
  EXPECT_EQ(param_of([](auto&) {}), "ok");
  EXPECT_EQ(param_of([](auto& r) { r.prompt = {}; }), "prompt");
  EXPECT_EQ(param_of([](auto& r) { r.prompt.tokens = {100}; }), "prompt");
  EXPECT_EQ(param_of([](auto& r) { r.resumed = {-1}; }), "resumed");
  EXPECT_EQ(param_of([](auto& r) { r.sampling.temperature = -0.1; }), "temperature");
  EXPECT_EQ(param_of([=](auto& r) { r.sampling.temperature = nan; }), "temperature");
  EXPECT_EQ(param_of([](auto& r) { r.sampling.top_p = 0; }), "top_p");
  EXPECT_EQ(param_of([=](auto& r) { r.sampling.top_p = nan; }), "top_p");
  EXPECT_EQ(param_of([](auto& r) { r.sampling.top_p = 1.01; }), "top_p");
  EXPECT_EQ(param_of([](auto& r) { r.sampling.top_k = -1; }), "top_k");
  EXPECT_EQ(param_of([](auto& r) { r.sampling.min_p = 2; }), "min_p");
  EXPECT_EQ(param_of([=](auto& r) { r.sampling.presence_penalty = nan; }), "presence_penalty");
  EXPECT_EQ(param_of([](auto& r) { r.sampling.frequency_penalty = 1e9; }), "frequency_penalty");
  EXPECT_EQ(param_of([](auto& r) { r.sampling.repetition_penalty = 0; }), "repetition_penalty");
  EXPECT_EQ(param_of([](auto& r) { r.sampling.repetition_penalty = 1e-320; }), "repetition_penalty");
  EXPECT_EQ(param_of([](auto& r) { r.sampling.logit_bias = {{100, 1.0f}}; }), "logit_bias");
  EXPECT_EQ(param_of([](auto& r) {
              r.sampling.logit_bias.assign(kMaxLogitBias + 1, {1, 1.0f});
            }),
            "logit_bias");
  EXPECT_EQ(param_of([](auto& r) { r.stop.max_tokens = -1; }), "max_tokens");
  EXPECT_EQ(param_of([](auto& r) { r.stop.min_tokens = 11; }), "min_tokens");
  EXPECT_EQ(param_of([](auto& r) { r.stop.strings.assign(kMaxStopStrings + 1, "a"); }), "stop");
  EXPECT_EQ(param_of([](auto& r) { r.stop.strings = {""}; }), "stop");
  EXPECT_EQ(param_of([](auto& r) { r.stop.strings = {std::string(kMaxStopStringBytes + 1, 'a')}; }), "stop");
  EXPECT_EQ(param_of([](auto& r) { r.stop.strings = {"\xC3"}; }), "stop");
  EXPECT_EQ(param_of([](auto& r) { r.stop.token_ids = {100}; }), "stop_token_ids");
  EXPECT_EQ(param_of([](auto& r) { r.top_logprobs = kMaxTopLogprobs + 1; }), "top_logprobs");
  EXPECT_EQ(param_of([](auto& r) { r.reasoning.open = "<think>"; }), "reasoning");
  EXPECT_EQ(param_of([](auto& r) { r.reasoning.begun = std::string(kMaxMarkerBytes + 1, '<'); }),
            "reasoning");
  EXPECT_EQ(param_of([](auto& r) { r.prompt_logprobs = -2; }), "prompt_logprobs");
  EXPECT_EQ(param_of([](auto& r) { r.cache_salt = std::string(kMaxCacheSaltBytes + 1, 's'); }), "cache_salt");
}

}  // namespace
}  // namespace millrace::engine
