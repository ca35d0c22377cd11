// Renders chat templates for tests/templates/*.py: reads JSON lines {"template": "...", "context": {...}} and
// prints for each one JSON line: {"text": "...", "segments": [["...", true], ...]} or {"error": "...",
// "code": "..."}. With "reply": "..." (a model's text behind that prompt) and "tokens": [...] (its vocabulary's special
// ones), the line also has "reasoning" and "content" as the gateway would tell them apart; with "tools": "FAMILY" besides,
// the content's tool calls as "calls": [[id, name, arguments], ...]. With "history": true, earlier tool calls are told as the
// gateway tells them, and the line has "history": how ("text" or "object" of the arguments; "" or null of no content).
#include <boost/json.hpp>
#include <iostream>
#include <optional>
#include <string>

#include "base/json.h"
#include "engine/reasoning_detect.h"
#include "gateway/internal/tool_calls.h"
#include "gateway/tool_history.h"
#include "model/chat_template.h"

namespace {

using namespace millrace;

void split_reply(const json::value& request, const std::vector<model::RenderedSegment>& prompt, json::object& result) {
  model::TokenizerSpec spec{.tokens = {"a"}};
  for (const json::value& token : request.at("tokens").as_array()) spec.tokens.emplace_back(token.as_string());
  const auto tokenizer = model::Tokenizer::create(std::move(spec));
  engine::ReasoningFormat format =
      *engine::find_reasoning("auto", std::string_view(request.at("template").as_string()), **tokenizer);
  format.start = engine::reply_start(format, prompt);
  engine::ReasoningSplitter splitter(format);
  engine::ReplyParts parts;
  for (const char byte : std::string_view(request.at("reply").as_string())) splitter.push({&byte, 1}, parts);
  splitter.finish(parts);
  result["reasoning"] = parts.reasoning;
  result["content"] = parts.answer;
  if (const json::value* family = request.as_object().if_contains("tools")) {
    const auto* syntax = gateway::find_tool_call_syntax(std::string_view(family->as_string()));
    const gateway::ToolReply reply = gateway::parse_tool_calls(
        *syntax, parts.answer, request.at("context").as_object().if_contains("tools"));
    json::array calls;
    for (const gateway::ToolCall& call : reply.calls)
      calls.push_back(json::array{json::value(call.id), json::value(call.name), json::value(call.arguments)});
    result["content"] = reply.content;
    result["calls"] = std::move(calls);
  }
}

json::object render(const json::value& request) {
  auto error = [](const Status& status) {
    return json::object{{"error", status.message}, {"code", std::string(code_name(status.code))}};
  };
  const auto parsed = model::ChatTemplate::parse(std::string_view(request.at("template").as_string()));
  if (!parsed) return error(parsed.error());
  json::value context = request.at("context");
  std::optional<gateway::CallHistory> history;
  if (request.as_object().contains("history")) {
    history = gateway::call_history_of(**parsed);
    gateway::fit_call_history(*history, context.at("messages").as_array());
  }
  const auto segments = (*parsed)->render(context);
  if (!segments) return error(segments.error());
  std::string text;
  json::array marks;
  for (const auto& segment : *segments) {
    text += segment.text;
    marks.push_back(json::array{json::value(segment.text), json::value(segment.from_request)});
  }
  json::object result{{"text", text}, {"segments", std::move(marks)}};
  if (history)
    result["history"] = {history->object_arguments ? "object" : "text",
                         history->null_content ? json::value(nullptr) : json::value("")};
  if (request.as_object().contains("reply")) split_reply(request, *segments, result);
  return result;
}

}  // namespace

int main() {
  std::ios::sync_with_stdio(false);
  std::string line;
  while (std::getline(std::cin, line)) {
    const auto request = parse_json(line, JsonLimits{.max_depth = 256});
    if (!request) {
      std::cerr << request.error().to_string() << "\n";
      return 1;
    }
    std::cout << json::serialize(render(*request)) << "\n" << std::flush;
  }
  return 0;
}
