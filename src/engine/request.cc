#include "engine/request.h"

#include <fmt/core.h>

#include <cmath>

#include "base/utf8.h"

namespace millrace::engine {
namespace {

Expected<void> in_range(double value, double low, double high, const char* name) {
  if (value >= low && value <= high) return {};  // false for NaN
  return invalid(fmt::format("{} is {}, it must be between {} and {}", name, value, low, high), name);
}

Expected<void> check_ids(const std::vector<TokenId>& ids, int vocab_size, const char* name) {
  for (const TokenId id : ids)
    if (id < 0 || id >= vocab_size)
      return invalid(
          fmt::format("{} has token id {}, the vocabulary has ids 0 to {}", name, id, vocab_size - 1), name);
  return {};
}

Expected<void> check_sampling(const SamplingParams& sampling, int vocab_size) {
  constexpr double kLargest = 1e6;  // keeps logits finite
  MR_TRY(in_range(sampling.temperature, 0, kLargest, "temperature"));
  if (!(sampling.top_p > 0 && sampling.top_p <= 1))
    return invalid(fmt::format("top_p is {}, it must be above 0 and at most 1", sampling.top_p), "top_p");
  if (sampling.top_k < 0)
    return invalid(fmt::format("top_k is {}, it must be 0 (off) or more", sampling.top_k), "top_k");
  MR_TRY(in_range(sampling.min_p, 0, 1, "min_p"));
  MR_TRY(in_range(sampling.presence_penalty, -kLargest, kLargest, "presence_penalty"));
  MR_TRY(in_range(sampling.frequency_penalty, -kLargest, kLargest, "frequency_penalty"));
  MR_TRY(in_range(sampling.repetition_penalty, 1 / kLargest, kLargest, "repetition_penalty"));  // it divides
  if (sampling.logit_bias.size() > kMaxLogitBias)
    return invalid(fmt::format("logit_bias has {} entries, at most {} are allowed",
                               sampling.logit_bias.size(), kMaxLogitBias),
                   "logit_bias");
  for (const auto& [id, bias] : sampling.logit_bias) {
    if (id < 0 || id >= vocab_size)
      return invalid(
          fmt::format("logit_bias has token id {}, the vocabulary has ids 0 to {}", id, vocab_size - 1),
          "logit_bias");
    MR_TRY(in_range(static_cast<double>(bias), -kLargest, kLargest, "logit_bias"));
  }
  return {};
}

Expected<void> check_stop(const StopParams& stop, int vocab_size) {
  if (stop.max_tokens < 0)
    return invalid(fmt::format("max_tokens is {}, it must be 1 or more", stop.max_tokens), "max_tokens");
  if (stop.min_tokens < 0 || (stop.max_tokens > 0 && stop.min_tokens > stop.max_tokens))
    return invalid(fmt::format("min_tokens is {}, it must be between 0 and max_tokens ({})", stop.min_tokens,
                               stop.max_tokens),
                   "min_tokens");
  if (stop.strings.size() > kMaxStopStrings)
    return invalid(
        fmt::format("stop has {} strings, at most {} are allowed", stop.strings.size(), kMaxStopStrings),
        "stop");
  for (const auto& text : stop.strings) {
    if (text.empty() || text.size() > kMaxStopStringBytes)
      return invalid(
          fmt::format("a stop string has {} bytes, it must have 1 to {}", text.size(), kMaxStopStringBytes),
          "stop");
    if (!utf8_valid(text)) return invalid("a stop string is not valid UTF-8", "stop");
  }
  if (stop.token_ids.size() > kMaxStopTokens)
    return invalid(fmt::format("stop_token_ids has {} ids, at most {} are allowed", stop.token_ids.size(),
                               kMaxStopTokens),
                   "stop_token_ids");
  return check_ids(stop.token_ids, vocab_size, "stop_token_ids");
}

}  // namespace

std::string_view finish_reason_name(FinishReason reason) {
  switch (reason) {
    case FinishReason::none:
      return "none";
    case FinishReason::stop:
      return "stop";
    case FinishReason::length:
      return "length";
    case FinishReason::cancelled:
      return "cancelled";
    case FinishReason::error:
      return "error";
  }
  return "unknown";
}

Expected<void> validate_request(const GenerateRequest& request, int vocab_size) {
  if (request.prompt.text.empty() && request.prompt.tokens.empty())
    return invalid("the prompt is empty: at least one token is needed", "prompt");
  MR_TRY(check_ids(request.prompt.tokens, vocab_size, "prompt"));
  MR_TRY(check_ids(request.resumed, vocab_size, "resumed"));
  MR_TRY(check_sampling(request.sampling, vocab_size));
  MR_TRY(check_stop(request.stop, vocab_size));
  MR_TRY(in_range(request.top_logprobs, -1, kMaxTopLogprobs, "top_logprobs"));
  MR_TRY(in_range(request.prompt_logprobs, -1, kMaxTopLogprobs, "prompt_logprobs"));
  const ReasoningFormat& reasoning = request.reasoning;
  if (reasoning.open.empty() != reasoning.close.empty() || reasoning.open.size() > kMaxMarkerBytes ||
      reasoning.close.size() > kMaxMarkerBytes || reasoning.start < ReasoningFormat::Start::may_open ||
      reasoning.start > ReasoningFormat::Start::answer)
    return invalid(fmt::format("reasoning markers of {} and {} bytes: both must have 1 to {}, or neither any",
                               reasoning.open.size(), reasoning.close.size(), kMaxMarkerBytes),
                   "reasoning");
  if (reasoning.begun.size() > kMaxMarkerBytes)
    return invalid(fmt::format("{} bytes of a marker are said already, at most {} are allowed",
                               reasoning.begun.size(), kMaxMarkerBytes),
                   "reasoning");
  if (request.cache_salt.size() > kMaxCacheSaltBytes)
    return invalid(fmt::format("cache_salt has {} bytes, at most {} are allowed", request.cache_salt.size(),
                               kMaxCacheSaltBytes),
                   "cache_salt");
  return {};
}

}  // namespace millrace::engine
