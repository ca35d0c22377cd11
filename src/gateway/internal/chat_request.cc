#include <fmt/format.h>
#include <string.h>  // memmem

#include <boost/json.hpp>

#include "engine/reasoning_detect.h"
#include "gateway/internal/api_error.h"
#include "gateway/internal/generation_plan.h"
#include "gateway/internal/request_fields.h"

namespace millrace::gateway {
namespace {

constexpr size_t kMaxRoleBytes = 64;
constexpr size_t kMaxNameBytes = 4096;  // of a speaker or a tool call
constexpr size_t kMaxTemplateKwargs = 64;
constexpr size_t kMaxContentParts = 4096;

// What a template is given by this server or takes for its own words: not for a request to set. (Text under
// the names of special tokens is read with its special tokens, see model/chat_template.h.)
constexpr std::string_view kReservedVariables[] = {"messages",
                                                   "tools",
                                                   "add_generation_prompt",
                                                   "continue_final_message",
                                                   "chat_template",
                                                   "tokenize",
                                                   "bos_token",
                                                   "eos_token",
                                                   "unk_token",
                                                   "sep_token",
                                                   "pad_token",
                                                   "cls_token",
                                                   "mask_token",
                                                   "additional_special_tokens"};

std::string_view view(const json::string& text) { return {text.data(), text.size()}; }

// One part of a multi-part content: a string, or {"type":"text","text":...}.
Expected<std::string> part_text(const json::value& part, const std::string& param) {
  if (part.is_string()) return std::string(view(part.get_string()));
  if (!part.is_object())
    return refuse(Code::invalid_argument,
                  fmt::format("'{}' must be an object or a string, not {}", param, kind_name(part)),
                  "invalid_type", param);
  const Fields fields(part.get_object(), param + ".");
  const std::string type = MR_TRY(fields.string("type", "", kMaxRoleBytes));
  if (type != "text")
    return refuse(Code::invalid_argument,
                  fmt::format("'{}' has type '{}'; this model reads only parts of type 'text'", param, type),
                  "unsupported_content", param);
  if (!fields.has("text"))
    return refuse(Code::invalid_argument, fmt::format("'{}.text' is missing", param),
                  "missing_required_parameter", param + ".text");
  return MR_TRY(fields.string("text", "", SIZE_MAX));
}

// The content as one string: what chat templates of text models expect. Parts are joined by newlines.
Expected<std::string> content_text(const json::value& content, const std::string& param) {
  if (content.is_string()) return std::string(view(content.get_string()));
  if (!content.is_array())
    return refuse(
        Code::invalid_argument,
        fmt::format("'{}' must be a string or an array of parts, not {}", param, kind_name(content)),
        "invalid_type", param);
  const json::array& parts = content.get_array();
  if (parts.size() > kMaxContentParts)
    return invalid(fmt::format("'{}' has {} parts; the limit is {}", param, parts.size(), kMaxContentParts),
                   param);
  std::string joined;
  for (size_t i = 0; i < parts.size(); ++i) {
    if (i > 0) joined += '\n';
    joined += MR_TRY(part_text(parts[i], fmt::format("{}[{}]", param, i)));
  }
  return joined;
}

// A message for the template: as given, with its content made a string. The role's meaning is the template's
// business.
Expected<json::object> template_message(const json::value& value, size_t index) {
  const std::string param = fmt::format("messages[{}]", index);
  if (!value.is_object())
    return refuse(Code::invalid_argument,
                  fmt::format("'{}' must be an object, not {}", param, kind_name(value)), "invalid_type",
                  param);
  json::object message = value.get_object();
  const Fields fields(message, param + ".");
  const std::string role = MR_TRY(fields.string("role", "", kMaxRoleBytes));
  if (role.empty())
    return refuse(Code::invalid_argument, fmt::format("'{}.role' is missing", param),
                  "missing_required_parameter", param + ".role");
  MR_TRY(fields.string("name", "", kMaxNameBytes));
  MR_TRY(fields.string("tool_call_id", "", kMaxNameBytes));
  // vLLM's newer name for the thought of an earlier turn, and the one that templates read.
  const std::string reasoning = MR_TRY(fields.string("reasoning", "", SIZE_MAX));
  if (MR_TRY(fields.string("reasoning_content", "", SIZE_MAX)).empty() && !reasoning.empty())
    message["reasoning_content"] = reasoning;
  MR_TRY(fields.unsupported("audio"));
  MR_TRY(fields.unsupported("function_call"));
  const json::array* calls = MR_TRY(fields.array("tool_calls", kMaxContentParts));
  if (const json::value* content = fields.find("content"))
    message["content"] = MR_TRY(content_text(*content, param + ".content"));
  else if (!calls || calls->empty())
    message["content"] = "";
  return message;
}

Expected<json::array> template_messages(const Fields& fields) {
  const json::array* messages = MR_TRY(fields.array("messages", kMaxMessages));
  if (!messages || messages->empty())
    return refuse(Code::invalid_argument, "'messages' is missing or empty", "missing_required_parameter",
                  "messages");
  json::array result;
  result.reserve(messages->size());
  for (size_t i = 0; i < messages->size(); ++i) result.push_back(MR_TRY(template_message((*messages)[i], i)));
  return result;
}

std::string special_text(const model::Tokenizer& tokenizer, TokenId id) {
  const model::TokenizerSpec& spec = tokenizer.spec();
  for (const model::AddedToken& token : spec.added)
    if (token.id == id) return token.text;
  return id >= 0 && static_cast<size_t>(id) < spec.tokens.size() ? spec.tokens[static_cast<size_t>(id)] : "";
}

// Where words stand in text for the last time, or npos: in time linear in both, where rfind takes their
// product.
size_t find_last(std::string_view text, std::string_view words) {
  const std::string text_back(text.rbegin(), text.rend()), words_back(words.rbegin(), words.rend());
  const void* found = ::memmem(text_back.data(), text_back.size(), words_back.data(), words_back.size());
  if (found == nullptr) return text.npos;
  const auto behind = static_cast<size_t>(static_cast<const char*>(found) - text_back.data());
  return text.size() - behind - words.size();
}

// Everything after the last message's own words is dropped, so that the reply goes on from there.
Expected<void> cut_after_final_message(std::vector<model::RenderedSegment>& rendered,
                                       std::string_view content) {
  while (!content.empty() && std::string_view(" \t\r\n").find(content.back()) != std::string_view::npos)
    content.remove_suffix(1);
  while (!content.empty() && std::string_view(" \t\r\n").find(content.front()) != std::string_view::npos)
    content.remove_prefix(1);
  std::string text;
  for (const model::RenderedSegment& segment : rendered) text += segment.text;
  const size_t at = content.empty() ? std::string::npos : find_last(text, content);
  if (at == std::string::npos)
    return invalid(
        "'continue_final_message' is set, but the last message's content is empty or does not appear in what "
        "the chat template made of it",
        "continue_final_message");
  size_t keep = at + content.size();
  for (model::RenderedSegment& segment : rendered) {
    const size_t taken = std::min(keep, segment.text.size());
    segment.text.resize(taken);
    keep -= taken;
  }
  return {};
}

Expected<json::object> template_context(const Fields& fields, const ServedModel& model,
                                        json::array messages) {
  json::object context;
  if (const json::object* kwargs = MR_TRY(fields.object("chat_template_kwargs"))) {
    if (kwargs->size() > kMaxTemplateKwargs)
      return invalid(fmt::format("'chat_template_kwargs' has {} entries; the limit is {}", kwargs->size(),
                                 kMaxTemplateKwargs),
                     "chat_template_kwargs");
    for (const std::string_view name : kReservedVariables)
      if (kwargs->contains(json::string_view(name.data(), name.size())))
        return invalid(fmt::format("'chat_template_kwargs' may not set '{}'", name),
                       fmt::format("chat_template_kwargs.{}", name));
    context = *kwargs;
  }
  const std::string effort = MR_TRY(fields.string("reasoning_effort", "", kMaxRoleBytes));
  if (!effort.empty()) {
    context["reasoning_effort"] = effort;
    // The switches that families' templates know (Qwen and Pangu, DeepSeek), unless the request sets them
    // itself.
    for (const char* name : {"enable_thinking", "thinking"})
      if (!context.contains(name)) context[name] = effort != "none";
  }
  if (const json::array* documents = MR_TRY(fields.array("documents", kMaxMessages))) {
    for (const json::value& document : *documents)
      if (!document.is_object()) return invalid("'documents' must hold objects", "documents");
    context["documents"] = *documents;
  }
  context["messages"] = std::move(messages);
  context["bos_token"] = special_text(*model.tokenizer, model.tokenizer->spec().bos);
  context["eos_token"] = special_text(*model.tokenizer, model.tokenizer->spec().eos);
  return context;
}

}  // namespace

Expected<std::vector<engine::TextSegment>> render_messages(const Fields& fields, const ServedModel& model,
                                                           engine::ReasoningFormat* reasoning) {
  if (!model.chat_template)
    return refuse(Code::invalid_argument,
                  fmt::format("the model '{}' has no chat template; use /v1/completions with a prompt",
                              model.names.empty() ? "" : model.names[0]),
                  "chat_not_supported", "messages");
  json::array messages = MR_TRY(template_messages(fields));
  fit_call_history(model.call_history, messages);
  const bool go_on = MR_TRY(fields.boolean("continue_final_message", false));
  const bool add_prompt = MR_TRY(fields.boolean("add_generation_prompt", !go_on));
  if (go_on && add_prompt)
    return invalid("'continue_final_message' and 'add_generation_prompt' cannot both be true",
                   "continue_final_message");
  std::string final_content;
  if (const json::object& last = messages.back().get_object(); go_on && last.contains("content")) {
    const json::value& content = last.at("content");
    if (content.is_string()) final_content = std::string(view(content.get_string()));
  }
  json::object context = MR_TRY(template_context(fields, model, std::move(messages)));
  context["add_generation_prompt"] = add_prompt;
  auto rendered = model.chat_template->render(json::value(std::move(context)));
  if (!rendered) {
    Status error = std::move(rendered).error();
    if (error.code == Code::invalid_argument && error.param.empty()) error.param = "messages";
    return std::unexpected(std::move(error));
  }
  if (go_on) MR_TRY(cut_after_final_message(*rendered, final_content));
  if (reasoning && go_on) {
    *reasoning = engine::continued_format(model.reasoning, final_content);
  } else if (reasoning) {
    *reasoning = model.reasoning;
    reasoning->start = engine::reply_start(model.reasoning, *rendered);
  }
  const bool parse_words = MR_TRY(fields.boolean("parse_special_tokens", false));
  std::vector<engine::TextSegment> segments;
  for (model::RenderedSegment& segment : *rendered)
    if (!segment.text.empty())
      segments.push_back({std::move(segment.text), parse_words || !segment.from_request});
  if (segments.empty())
    return invalid("the chat template made an empty prompt of these messages", "messages");
  return segments;
}

Expected<GenerationPlan> plan_chat(const json::value& body, const ServedModel& model) {
  const Fields fields(*MR_TRY(body_object(body)));
  GenerationPlan plan{.chat = true};
  plan.model = MR_TRY(requested_model(fields, model));
  engine::GenerateRequest request;
  MR_TRY(fields.unsupported("echo"));
  MR_TRY(plan_sampling(fields, model, plan, request));
  request.prompt.text = MR_TRY(render_messages(fields, model, &request.reasoning));
  plan.include_reasoning = MR_TRY(fields.boolean("include_reasoning", true));
  request.prompt.add_special = MR_TRY(fields.boolean("add_special_tokens", false));
  MR_TRY(add_choices(std::move(request), plan));
  return plan;
}

}  // namespace millrace::gateway
