#include "gateway/tool_history.h"

#include <boost/json.hpp>
#include <string>

#include "base/json.h"

namespace millrace::gateway {
namespace {

json::array told_call() {
  const json::object function{{"name", "probe"}, {"arguments", R"({"key": "value"})"}};
  return {{{"role", "user"}, {"content", "question"}},
          {{"role", "assistant"},
           {"content", nullptr},
           {"tool_calls", json::array{{{"id", "call00000"}, {"type", "function"}, {"function", function}}}}}};
}

bool shows_arguments(const model::ChatTemplate& chat_template, const CallHistory& history) {
  json::array messages = told_call();
  fit_call_history(history, messages);
  const auto rendered = chat_template.render(json::object{{"messages", std::move(messages)},
                                                          {"add_generation_prompt", false},
                                                          {"bos_token", ""},
                                                          {"eos_token", ""}});
  if (!rendered) return false;
  std::string text;
  for (const model::RenderedSegment& segment : *rendered) text += segment.text;
  const auto has = [&](const char* words) { return text.find(words) != text.npos; };
  // An object is told as JSON, however spaced, or parameter by parameter; text that was encoded once more has
  // \" in it.
  return has("probe") && (history.object_arguments ? has("key") && has("value") : has(R"({"key": "value"})"));
}

}  // namespace

CallHistory call_history_of(const model::ChatTemplate& chat_template) {
  for (const bool object : {false, true})
    for (const bool null_content : {false, true})
      if (const CallHistory history{object, null_content}; shows_arguments(chat_template, history))
        return history;
  return {};
}

void fit_call_history(const CallHistory& history, json::array& messages) {
  for (json::value& message : messages) {
    if (!message.is_object()) continue;
    const auto calls = [&message] { return message.get_object().if_contains("tool_calls"); };
    if (calls() == nullptr || !calls()->is_array() || calls()->get_array().empty()) continue;
    json::value& content = message.get_object()["content"];  // a new member may move the others
    if (content.is_null() || content == "")
      content = history.null_content ? json::value(nullptr) : json::value("");
    if (!history.object_arguments) continue;
    for (json::value& call : calls()->get_array()) {
      json::value* function = call.is_object() ? call.get_object().if_contains("function") : nullptr;
      json::value* arguments =
          function && function->is_object() ? function->get_object().if_contains("arguments") : nullptr;
      if (arguments == nullptr || !arguments->is_string()) continue;
      const std::string_view told = arguments->get_string();
      if (told.find_first_not_of(" \t\r\n") == told.npos)
        *arguments = json::object();  // a call without any
      else if (auto object = parse_json(told); object && object->is_object())
        *arguments = std::move(*object);
    }
  }
}

}  // namespace millrace::gateway
