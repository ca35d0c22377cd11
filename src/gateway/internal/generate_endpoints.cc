// Endpoints that take a JSON body.
#include <fmt/format.h>

#include <boost/json.hpp>

#include "engine/prompt.h"
#include "gateway/internal/api.h"
#include "gateway/internal/api_error.h"
#include "gateway/internal/generation_plan.h"
#include "gateway/internal/generation_reply.h"
#include "gateway/internal/json_writer.h"
#include "gateway/internal/request_fields.h"

namespace millrace::gateway {
namespace {

constexpr size_t kMaxTokenizeTokens = 1'000'000;  // in one /tokenize or /detokenize

Expected<json::value> request_json(const HttpRequest& request) {
  auto body = parse_json(request.body, {.max_bytes = SIZE_MAX});  // the front has bounded it
  if (body) return body;
  return refuse(Code::invalid_argument, "the request body is not valid JSON: " + body.error().message,
                "invalid_json");
}

void generate(const Api& api, const std::shared_ptr<Exchange>& exchange,
              Expected<GenerationPlan> (*make_plan)(const json::value&, const ServedModel&)) {
  auto body = request_json(exchange->request());
  auto plan = body ? make_plan(*body, *api.model) : std::unexpected(std::move(body).error());
  if (!plan) return exchange->respond(error_response(plan.error()));
  start_generation(exchange, std::move(*plan), api.model, api.generator, api.metrics, api.ping_interval_s);
}

std::string token_as_stored(const model::TokenizerSpec& spec, TokenId id) {
  for (const model::AddedToken& added : spec.added)
    if (added.id == id) return added.text;
  return static_cast<size_t>(id) < spec.tokens.size() ? spec.tokens[static_cast<size_t>(id)] : "";
}

Expected<std::string> tokenize(const Api& api, const HttpRequest& request) {
  const json::value body = MR_TRY(request_json(request));
  const TokenizeRequest wanted = MR_TRY(plan_tokenize(body, *api.model));
  const model::Tokenizer& tokenizer = *api.model->tokenizer;
  auto ids = engine::encode_prompt(tokenizer, wanted.prompt, kMaxTokenizeTokens);
  if (!ids)
    return refuse(Code::invalid_argument, "the text cannot be tokenized: " + ids.error().message,
                  "too_many_tokens", "prompt");
  JsonWriter w;
  w.begin_object().key("count").integer(static_cast<int64_t>(ids->size()));
  w.key("max_model_len").integer(api.model->max_model_len).key("tokens").begin_array();
  for (const TokenId id : *ids) w.integer(id);
  w.end_array().key("token_strs");
  if (wanted.return_token_strs) {
    w.begin_array();
    for (const TokenId id : *ids) w.string(token_as_stored(tokenizer.spec(), id));
    w.end_array();
  } else {
    w.null();
  }
  w.end_object();
  return w.take();
}

Expected<std::string> detokenize(const Api& api, const HttpRequest& request) {
  const json::value body = MR_TRY(request_json(request));
  const Fields fields(*MR_TRY(body_object(body)));
  MR_TRY(requested_model(fields, *api.model));
  const json::array* tokens = MR_TRY(fields.array("tokens", kMaxTokenizeTokens));
  if (!tokens)
    return refuse(Code::invalid_argument, "'tokens' is missing", "missing_required_parameter", "tokens");
  const model::Tokenizer& tokenizer = *api.model->tokenizer;
  std::vector<TokenId> ids;
  ids.reserve(tokens->size());
  for (const json::value& value : *tokens) {
    const auto id = whole_number(value, 0, tokenizer.vocab_size() - 1);
    if (!id)
      return invalid(fmt::format("'tokens' must hold token ids from 0 to {}", tokenizer.vocab_size() - 1),
                     "tokens");
    ids.push_back(static_cast<TokenId>(*id));
  }
  JsonWriter w;
  w.begin_object().key("prompt").string(tokenizer.decode(ids, false)).end_object();
  return w.take();
}

void answer(const std::shared_ptr<Exchange>& exchange, Expected<std::string> body) {
  exchange->respond(body ? HttpResponse{.body = std::move(*body)} : error_response(body.error()));
}

}  // namespace

void post_chat_completions(const Api& api, const std::shared_ptr<Exchange>& exchange) {
  generate(api, exchange, plan_chat);
}

void post_completions(const Api& api, const std::shared_ptr<Exchange>& exchange) {
  generate(api, exchange, plan_completion);
}

void post_tokenize(const Api& api, const std::shared_ptr<Exchange>& exchange) {
  answer(exchange, tokenize(api, exchange->request()));
}

void post_detokenize(const Api& api, const std::shared_ptr<Exchange>& exchange) {
  answer(exchange, detokenize(api, exchange->request()));
}

}  // namespace millrace::gateway
