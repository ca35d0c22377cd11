#include <fmt/format.h>

#include <boost/json.hpp>

#include "gateway/internal/api_error.h"
#include "gateway/internal/generation_plan.h"
#include "gateway/internal/request_fields.h"

namespace millrace::gateway {
namespace {

constexpr size_t kMaxModelNameBytes = 512;

Expected<engine::Prompt> text_prompt(const json::string& text, const Fields& fields,
                                     const ServedModel& model) {
  engine::Prompt prompt;
  prompt.add_special = MR_TRY(fields.boolean("add_special_tokens", true));
  // A raw prompt is the whole of what the model sees, so special tokens written in it are meant as such.
  const bool parse_special = MR_TRY(fields.boolean("parse_special_tokens", true));
  if (text.empty() && !(prompt.add_special && !model.tokenizer->spec().prefix.empty()))
    return invalid("'prompt' is empty; it must make at least one token", "prompt");
  prompt.text.push_back({std::string(text.data(), text.size()), parse_special});
  return prompt;
}

Expected<engine::Prompt> token_prompt(const json::array& ids, const ServedModel& model) {
  engine::Prompt prompt;
  if (static_cast<int64_t>(ids.size()) >= model.max_model_len)
    return refuse(
        Code::invalid_argument,
        fmt::format("This model's context length is {} tokens, prompt and reply together; the prompt has {}",
                    model.max_model_len, ids.size()),
        "context_length_exceeded", "prompt");
  prompt.tokens.reserve(ids.size());
  for (const json::value& value : ids) {
    const auto id = whole_number(value, 0, model.tokenizer->vocab_size() - 1);
    if (!id)
      return invalid(
          fmt::format("'prompt' as an array must hold token ids from 0 to {}, or strings, or arrays of ids",
                      model.tokenizer->vocab_size() - 1),
          "prompt");
    prompt.tokens.push_back(static_cast<TokenId>(*id));
  }
  if (prompt.tokens.empty()) return invalid("'prompt' holds an empty array of tokens", "prompt");
  return prompt;
}

// A string, an array of strings, an array of token ids, or an array of such arrays.
Expected<std::vector<engine::Prompt>> read_prompts(const Fields& fields, const ServedModel& model) {
  const json::value* value = fields.find("prompt");
  if (!value)
    return refuse(Code::invalid_argument, "'prompt' is missing", "missing_required_parameter", "prompt");
  std::vector<engine::Prompt> prompts;
  if (value->is_string()) {
    prompts.push_back(MR_TRY(text_prompt(value->get_string(), fields, model)));
    return prompts;
  }
  const json::array& array = *MR_TRY(fields.array("prompt", SIZE_MAX));
  if (array.empty()) return invalid("'prompt' is an empty array", "prompt");
  if (array[0].is_number()) {
    prompts.push_back(MR_TRY(token_prompt(array, model)));
    return prompts;
  }
  if (array.size() > kMaxPrompts)
    return invalid(fmt::format("'prompt' has {} entries; the limit is {}", array.size(), kMaxPrompts),
                   "prompt");
  for (const json::value& entry : array) {
    if (entry.is_string())
      prompts.push_back(MR_TRY(text_prompt(entry.get_string(), fields, model)));
    else if (entry.is_array())
      prompts.push_back(MR_TRY(token_prompt(entry.get_array(), model)));
    else
      return refuse(
          Code::invalid_argument,
          fmt::format("'prompt' must hold strings, token ids or arrays of them, not {}", kind_name(entry)),
          "invalid_type", "prompt");
  }
  return prompts;
}

}  // namespace

Expected<const json::object*> body_object(const json::value& body) {
  if (!body.is_object())
    return refuse(Code::invalid_argument,
                  fmt::format("the request body must be a JSON object, not {}", kind_name(body)),
                  "invalid_type");
  return &body.get_object();
}

Expected<std::string> requested_model(const Fields& fields, const ServedModel& model) {
  const std::string first = model.names.empty() ? "" : model.names[0];
  const std::string name = MR_TRY(fields.string("model", first, kMaxModelNameBytes));
  for (const std::string& served : model.names)
    if (served == name) return name;
  return refuse(Code::not_found,
                fmt::format("the model '{}' does not exist here; GET /v1/models lists what does", name),
                "model_not_found", "model");
}

Expected<GenerationPlan> plan_completion(const json::value& body, const ServedModel& model) {
  const Fields fields(*MR_TRY(body_object(body)));
  GenerationPlan plan;
  plan.model = MR_TRY(requested_model(fields, model));
  engine::GenerateRequest request;
  MR_TRY(plan_sampling(fields, model, plan, request));
  std::vector<engine::Prompt> prompts = MR_TRY(read_prompts(fields, model));
  for (engine::Prompt& prompt : prompts) {
    if (plan.echo)
      plan.prompt_texts.push_back(prompt.text.empty() ? model.tokenizer->decode(prompt.tokens, false)
                                                      : prompt.text[0].text);
    request.prompt = std::move(prompt);
    MR_TRY(add_choices(request, plan));
  }
  return plan;
}

Expected<TokenizeRequest> plan_tokenize(const json::value& body, const ServedModel& model) {
  const Fields fields(*MR_TRY(body_object(body)));
  MR_TRY(requested_model(fields, model));
  MR_TRY(fields.unsupported("tools"));
  MR_TRY(fields.unsupported("chat_template"));
  TokenizeRequest request;
  request.return_token_strs = MR_TRY(fields.boolean("return_token_strs", false));
  if (fields.has("messages")) {
    request.prompt.text = MR_TRY(render_messages(fields, model));
    request.prompt.add_special = MR_TRY(fields.boolean("add_special_tokens", false));
    return request;
  }
  if (!fields.has("prompt"))
    return refuse(Code::invalid_argument, "'prompt' or 'messages' is missing", "missing_required_parameter",
                  "prompt");
  const std::string prompt = MR_TRY(fields.string("prompt", "", SIZE_MAX));
  request.prompt.add_special = MR_TRY(fields.boolean("add_special_tokens", true));
  const bool parse_special = MR_TRY(fields.boolean("parse_special_tokens", true));
  request.prompt.text.push_back({prompt, parse_special});
  return request;
}

}  // namespace millrace::gateway
