#include <fmt/format.h>

#include <boost/json.hpp>

#include "base/random.h"
#include "gateway/internal/api_error.h"
#include "gateway/internal/generation_plan.h"
#include "gateway/internal/request_fields.h"

namespace millrace::gateway {
namespace {

constexpr size_t kMaxTagBytes = 4096;  // user and other short texts

// Fields of OpenAI's and vLLM's APIs that change the reply and that this server cannot honour: refused, never
// ignored.
constexpr std::string_view kUnsupported[] = {"tools",
                                             "tool_choice",
                                             "functions",
                                             "function_call",
                                             "suffix",
                                             "store",
                                             "audio",
                                             "prediction",
                                             "web_search_options",
                                             "guided_json",
                                             "guided_regex",
                                             "guided_choice",
                                             "guided_grammar",
                                             "structured_outputs",
                                             "use_beam_search",
                                             "logits_processors",
                                             "prompt_logprobs",
                                             "prompt_embeds",
                                             "truncate_prompt_tokens",
                                             "allowed_token_ids",
                                             "bad_words",
                                             "kv_transfer_params",
                                             "return_tokens_as_token_ids",
                                             "return_token_ids",
                                             "mm_processor_kwargs",
                                             "chat_template"};

Expected<void> refuse_unsupported(const Fields& fields) {
  for (const std::string_view name : kUnsupported) {
    if (name == "suffix" && fields.has(name) && MR_TRY(fields.string(name, "", SIZE_MAX)).empty()) continue;
    MR_TRY(fields.unsupported(name, name == "tool_choice" || name == "function_call" ? "none" : ""));
  }
  if (const json::object* format = MR_TRY(fields.object("response_format"))) {
    const std::string type = MR_TRY(Fields(*format, "response_format.").string("type", "text", kMaxTagBytes));
    if (type != "text")
      return refuse(
          Code::invalid_argument,
          fmt::format("'response_format' of type '{}' is not supported by this server; only 'text' is", type),
          "unsupported_parameter", "response_format");
  }
  if (const json::array* modalities = MR_TRY(fields.array("modalities", 8))) {
    for (const json::value& modality : *modalities)
      if (!modality.is_string() || modality.get_string() != "text")
        return refuse(Code::invalid_argument,
                      "'modalities' may only hold \"text\": this server makes no other",
                      "unsupported_parameter", "modalities");
  }
  const std::string tier = MR_TRY(fields.string("service_tier", "auto", kMaxTagBytes));
  if (tier != "auto" && tier != "default")
    return refuse(Code::invalid_argument,
                  fmt::format("'service_tier' is '{}'; this server offers 'auto' and 'default'", tier),
                  "unsupported_service_tier", "service_tier");
  return {};
}

Expected<void> read_stop(const Fields& fields, const ServedModel& model, engine::StopParams& stop) {
  const auto add = [&](const json::value& value) -> Expected<void> {
    if (!value.is_string())
      return refuse(Code::invalid_argument, fmt::format("'stop' must hold strings, not {}", kind_name(value)),
                    "invalid_type", "stop");
    const json::string& text = value.get_string();
    if (text.empty() || text.size() > engine::kMaxStopStringBytes)
      return invalid(fmt::format("a 'stop' string has {} bytes; it must have from 1 to {}", text.size(),
                                 engine::kMaxStopStringBytes),
                     "stop");
    stop.strings.emplace_back(text.data(), text.size());
    return {};
  };
  if (const json::value* value = fields.find("stop")) {
    if (value->is_string()) {
      MR_TRY(add(*value));
    } else {
      const json::array* strings = MR_TRY(fields.array("stop", engine::kMaxStopStrings));
      for (const json::value& text : *strings) MR_TRY(add(text));
    }
  }
  if (const json::array* ids = MR_TRY(fields.array("stop_token_ids", engine::kMaxStopTokens))) {
    for (const json::value& value : *ids) {
      const auto id = whole_number(value, 0, model.tokenizer->vocab_size() - 1);
      if (!id)
        return invalid(fmt::format("'stop_token_ids' must hold token ids from 0 to {}",
                                   model.tokenizer->vocab_size() - 1),
                       "stop_token_ids");
      stop.token_ids.push_back(static_cast<TokenId>(*id));
    }
  }
  stop.ignore_eos = MR_TRY(fields.boolean("ignore_eos", false));
  stop.include_stop_in_text = MR_TRY(fields.boolean("include_stop_str_in_output", false));
  return {};
}

Expected<void> read_lengths(const Fields& fields, const ServedModel& model, GenerationPlan& plan,
                            engine::StopParams& stop) {
  // OpenAI has the newer name in chat only, load tools send it everywhere.
  const char* name = fields.has("max_completion_tokens") ? "max_completion_tokens" : "max_tokens";
  const bool may_be_zero = !plan.chat && plan.echo;
  const int64_t low = may_be_zero ? 0 : 1;
  const int64_t wanted = MR_TRY(fields.integer(name, 0, low, INT64_MAX));
  if (wanted > model.max_model_len)
    return refuse(
        Code::invalid_argument,
        fmt::format("'{}' is {}, but this model's maximum context length is {} tokens, prompt and reply "
                    "together",
                    name, wanted, model.max_model_len),
        "context_length_exceeded", name);
  plan.drop_reply = fields.has(name) && wanted == 0;
  stop.max_tokens = plan.drop_reply ? 1 : wanted;  // 0 (left out): what is left of the context
  stop.min_tokens = MR_TRY(fields.integer("min_tokens", 0, 0, model.max_model_len));
  if (stop.max_tokens > 0 && stop.min_tokens > stop.max_tokens)
    return invalid(
        fmt::format("'min_tokens' is {}, above '{}' of {}", stop.min_tokens, name, stop.max_tokens),
        "min_tokens");
  return {};
}

Expected<void> read_logit_bias(const Fields& fields, const ServedModel& model,
                               engine::SamplingParams& sampling) {
  const json::object* biases = MR_TRY(fields.object("logit_bias"));
  if (!biases) return {};
  if (biases->size() > engine::kMaxLogitBias)
    return invalid(
        fmt::format("'logit_bias' has {} entries; the limit is {}", biases->size(), engine::kMaxLogitBias),
        "logit_bias");
  const Fields entries(*biases, "logit_bias.");
  const int64_t last = model.tokenizer->vocab_size() - 1;
  for (const auto& [key, value] : *biases) {
    const std::string_view digits(key.data(), key.size());
    int64_t id = digits.empty() || digits.size() > 9 ? -1 : 0;
    for (const char c : digits) id = id < 0 || c < '0' || c > '9' ? -1 : id * 10 + (c - '0');
    if (id < 0 || id > last)
      return invalid(
          fmt::format("'logit_bias' has the key '{}'; keys are token ids from 0 to {}", digits, last),
          "logit_bias");
    const double bias = MR_TRY(entries.number(digits, 0, -100, 100));
    sampling.logit_bias.emplace_back(static_cast<TokenId>(id), static_cast<float>(bias));
  }
  return {};
}

Expected<void> read_sampling(const Fields& fields, const ServedModel& model,
                             engine::SamplingParams& sampling) {
  const model::GenerationDefaults& defaults = model.config.generation;
  sampling.temperature = MR_TRY(fields.number("temperature", defaults.temperature, 0, 2));
  sampling.top_p = MR_TRY(fields.number("top_p", defaults.top_p, 0, 1));
  if (sampling.top_p == 0) return invalid("'top_p' is 0; it must be above 0 and at most 1", "top_p");
  sampling.top_k = static_cast<int>(MR_TRY(fields.integer("top_k", defaults.top_k, -1, INT32_MAX)));
  if (sampling.top_k < 0) sampling.top_k = 0;  // vLLM's -1 and our 0 both mean off
  sampling.min_p = MR_TRY(fields.number("min_p", defaults.min_p, 0, 1));
  sampling.presence_penalty = MR_TRY(fields.number("presence_penalty", 0, -2, 2));
  sampling.frequency_penalty = MR_TRY(fields.number("frequency_penalty", 0, -2, 2));
  sampling.repetition_penalty =
      MR_TRY(fields.number("repetition_penalty", defaults.repetition_penalty, 0.01, 100));
  MR_TRY(read_logit_bias(fields, model, sampling));
  const int64_t seed = MR_TRY(fields.integer("seed", 0, INT64_MIN, INT64_MAX));
  sampling.seed = fields.has("seed") ? static_cast<uint64_t>(seed) : random_seed();
  return {};
}

Expected<void> read_logprobs(const Fields& fields, GenerationPlan& plan, engine::GenerateRequest& request) {
  if (plan.chat) {
    plan.logprobs = MR_TRY(fields.boolean("logprobs", false));
    const int64_t top = MR_TRY(fields.integer("top_logprobs", 0, 0, engine::kMaxTopLogprobs));
    if (top > 0 && !plan.logprobs)
      return invalid("'top_logprobs' needs 'logprobs' to be true", "top_logprobs");
    plan.top_logprobs = static_cast<int>(top);
  } else {
    plan.logprobs = fields.has("logprobs");
    plan.top_logprobs = static_cast<int>(MR_TRY(fields.integer("logprobs", 0, 0, engine::kMaxTopLogprobs)));
    plan.echo = MR_TRY(fields.boolean("echo", false));
  }
  if (plan.logprobs) request.top_logprobs = plan.top_logprobs;
  if (plan.logprobs && plan.echo) request.prompt_logprobs = plan.top_logprobs;
  return {};
}

Expected<void> read_stream(const Fields& fields, GenerationPlan& plan) {
  plan.stream = MR_TRY(fields.boolean("stream", false));
  const json::object* options = MR_TRY(fields.object("stream_options"));
  if (!options) return {};
  if (!plan.stream)
    return invalid("'stream_options' is only allowed when 'stream' is true", "stream_options");
  const Fields stream(*options, "stream_options.");
  plan.include_usage = MR_TRY(stream.boolean("include_usage", false));
  plan.continuous_usage = MR_TRY(stream.boolean("continuous_usage_stats", false)) && plan.include_usage;
  return {};
}

}  // namespace

Expected<void> plan_sampling(const Fields& fields, const ServedModel& model, GenerationPlan& plan,
                             engine::GenerateRequest& request) {
  MR_TRY(refuse_unsupported(fields));
  plan.n = static_cast<int>(MR_TRY(fields.integer("n", 1, 1, kMaxChoicesPerPrompt)));
  const int64_t best_of = MR_TRY(fields.integer("best_of", plan.n, 1, kMaxChoicesPerPrompt));
  if (best_of != plan.n)
    return refuse(
        Code::invalid_argument,
        fmt::format("'best_of' is {} and 'n' is {}; this server supports only equal values", best_of, plan.n),
        "unsupported_parameter", "best_of");
  MR_TRY(read_stream(fields, plan));
  MR_TRY(read_logprobs(fields, plan, request));
  MR_TRY(read_sampling(fields, model, request.sampling));
  MR_TRY(read_stop(fields, model, request.stop));
  MR_TRY(read_lengths(fields, model, plan, request.stop));
  request.skip_special_tokens = MR_TRY(fields.boolean("skip_special_tokens", true));
  request.priority = static_cast<int>(MR_TRY(fields.integer("priority", 0, INT32_MIN, INT32_MAX)));
  request.cache_salt = MR_TRY(fields.string("cache_salt", "", engine::kMaxCacheSaltBytes));
  MR_TRY(fields.string("user", "", kMaxTagBytes));
  MR_TRY(fields.object("metadata"));
  return {};
}

uint64_t choice_seed(uint64_t seed, int choice) {
  if (choice == 0) return seed;
  const auto bits = philox4x32({static_cast<uint32_t>(choice), 0, 0, 0x6e},
                               {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)});
  return uint64_t{bits[0]} << 32 | bits[1];
}

Expected<void> add_choices(engine::GenerateRequest request, GenerationPlan& plan) {
  if (plan.requests.size() + static_cast<size_t>(plan.n) > kMaxRequestChoices)
    return invalid(fmt::format("the request asks for more than {} choices in all", kMaxRequestChoices), "n");
  size_t bytes = request.prompt.tokens.size() * sizeof(TokenId);
  for (const engine::TextSegment& segment : request.prompt.text) bytes += segment.text.size();
  plan.prompt_bytes += bytes * static_cast<size_t>(plan.n);
  if (plan.prompt_bytes > kMaxPromptBytes)
    return invalid(fmt::format("the prompts, {} times each, have {} bytes or more; the limit is {}", plan.n,
                               plan.prompt_bytes, kMaxPromptBytes),
                   "n");
  const uint64_t seed = request.sampling.seed;
  for (int i = 0; i < plan.n; ++i) {
    request.sampling.seed = choice_seed(seed, i);
    plan.requests.push_back(request);
  }
  return {};
}

}  // namespace millrace::gateway
