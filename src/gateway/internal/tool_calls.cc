#include "gateway/internal/tool_calls.h"

#include <algorithm>
#include <boost/json.hpp>
#include <optional>

#include "base/json.h"

namespace millrace::gateway {
namespace {

using Body = ToolCallSyntax::Body;

// Model cards and templates; DeepSeek's bars are U+FF5C, its underscores U+2581.
constexpr ToolCallSyntax kSyntaxes[] = {
    {"deepseek_v3", "<\uFF5Ctool\u2581calls\u2581begin\uFF5C>", "<\uFF5Ctool\u2581calls\u2581end\uFF5C>",
     "<\uFF5Ctool\u2581call\u2581begin\uFF5C>", "<\uFF5Ctool\u2581call\u2581end\uFF5C>",
     "<\uFF5Ctool\u2581sep\uFF5C>", Body::fenced},
    {"deepseek_v31", "<\uFF5Ctool\u2581calls\u2581begin\uFF5C>", "<\uFF5Ctool\u2581calls\u2581end\uFF5C>",
     "<\uFF5Ctool\u2581call\u2581begin\uFF5C>", "<\uFF5Ctool\u2581call\u2581end\uFF5C>",
     "<\uFF5Ctool\u2581sep\uFF5C>", Body::named},
    {"kimi_k2", "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>", "<|tool_call_begin|>",
     "<|tool_call_end|>", "<|tool_call_argument_begin|>", Body::numbered},
    {"qwen", "", "", "<tool_call>", "</tool_call>", "", Body::object},
    {"qwen3_coder", "", "", "<tool_call>", "</tool_call>", "", Body::tagged},
    {"pangu", "", "", "[unused11]", "[unused12]", "", Body::array},
};

constexpr std::string_view kBlank = " \t\r\n";

std::string_view trimmed(std::string_view text) {
  const size_t begin = text.find_first_not_of(kBlank);
  if (begin == text.npos) return {};
  return text.substr(begin, text.find_last_not_of(kBlank) + 1 - begin);
}

bool is_object(std::string_view text) {
  const auto value = parse_json(text);
  return value && value->is_object();
}

// Behind the JSON value whose first character is at `at`, in valid JSON.
size_t behind_value(std::string_view text, size_t at) {
  const auto behind_string = [&](size_t i) {
    for (++i; i < text.size() && text[i] != '"'; ++i)
      if (text[i] == '\\') ++i;
    return std::min(i + 1, text.size());
  };
  if (text[at] == '"') return behind_string(at);
  if (text[at] != '{' && text[at] != '[') return std::min(text.find_first_of(",:]} \t\r\n", at), text.size());
  int depth = 0;
  while (at < text.size()) {
    const char c = text[at];
    at = c == '"' ? behind_string(at) : at + 1;
    if (c == '{' || c == '[') ++depth;
    if ((c == '}' || c == ']') && --depth == 0) break;
  }
  return at;
}

// The text of the last member `key` of an object that is valid JSON, as it stands there.
std::string_view member_text(std::string_view object, std::string_view key) {
  std::string_view found;
  const std::string quoted = '"' + std::string(key) + '"';
  for (size_t at = object.find('{') + 1; at < object.size();) {
    const size_t name = object.find_first_not_of(" \t\r\n,", at);
    if (name == object.npos || object[name] == '}') break;
    const size_t name_end = behind_value(object, name);
    const size_t value = object.find_first_not_of(" \t\r\n:", name_end);
    if (value == object.npos) break;
    const size_t end = behind_value(object, value);
    if (object.substr(name, name_end - name) == quoted) found = object.substr(value, end - value);
    at = end;
  }
  return found;
}

// {"name": "..", "arguments": {..}}
std::optional<ToolCall> from_object(std::string_view text) {
  const auto value = parse_json(text);
  if (!value || !value->is_object()) return std::nullopt;
  const json::value* name = value->get_object().if_contains("name");
  const json::value* arguments = value->get_object().if_contains("arguments");
  if (!name || !name->is_string() || name->get_string().empty()) return std::nullopt;
  ToolCall call{.name = std::string(name->get_string())};
  if (!arguments) return std::nullopt;
  if (arguments->is_string())  // JSON in a string
    call.arguments = arguments->get_string();
  else
    call.arguments = trimmed(member_text(text, "arguments"));
  if (!is_object(call.arguments)) return std::nullopt;
  return call;
}

bool from_array(std::string_view text, std::vector<ToolCall>& calls) {
  const auto value = parse_json(text);
  if (!value || !value->is_array()) return false;
  for (size_t at = text.find('[') + 1;;) {
    const size_t begin = text.find_first_not_of(" \t\r\n,", at);
    if (begin == text.npos || text[begin] == ']') return true;
    const size_t end = behind_value(text, begin);
    auto call = from_object(text.substr(begin, end - begin));
    if (!call) return false;
    calls.push_back(std::move(*call));
    at = end;
  }
}

std::optional<ToolCall> from_separated(const ToolCallSyntax& syntax, std::string_view text) {
  const size_t at = text.find(syntax.separator);
  if (at == text.npos) return std::nullopt;
  const std::string_view before = trimmed(text.substr(0, at));
  std::string_view after = text.substr(at + syntax.separator.size());
  ToolCall call{.name = std::string(before)};
  if (syntax.body == Body::numbered) {
    const size_t dot = before.find('.'), colon = before.rfind(':');
    if (dot == before.npos || colon == before.npos || colon <= dot) return std::nullopt;
    call.id = before;
    call.name = before.substr(dot + 1, colon - dot - 1);
  } else if (syntax.body == Body::fenced) {
    constexpr std::string_view kFence = "```";
    const size_t fence = after.find("\n```json");
    if (fence == after.npos) return std::nullopt;
    call.name = trimmed(after.substr(0, fence));
    after = trimmed(after.substr(fence + 8));
    if (!after.ends_with(kFence)) return std::nullopt;
    after.remove_suffix(kFence.size());
  }
  call.arguments = trimmed(after);
  if (call.name.empty() || !is_object(call.arguments)) return std::nullopt;
  return call;
}

const json::value* member(const json::value* value, std::string_view key) {
  return value != nullptr && value->is_object() ? value->get_object().if_contains(key) : nullptr;
}

// The schemas of a tool's parameters by name, or null.
const json::value* parameters_of(const json::value* tools, std::string_view tool) {
  if (tools == nullptr || !tools->is_array()) return nullptr;
  for (const json::value& each : tools->get_array()) {
    const json::value* function = member(&each, "function");
    const json::value* name = member(function, "name");
    if (name == nullptr || !name->is_string() || name->get_string() != tool) continue;
    return member(member(function, "parameters"), "properties");
  }
  return nullptr;
}

// Is text of this parameter a string, whatever it looks like?
bool is_text(const json::value* schema) {
  const json::value* type = member(schema, "type");
  if (type == nullptr) return true;
  if (type->is_string()) return type->get_string() == "string";
  if (!type->is_array()) return true;
  return std::ranges::any_of(type->get_array(), [](const json::value& t) { return t == "string"; });
}

// A tagged parameter's text as JSON.
std::string json_of(std::string_view text, const json::value* schema) {
  if (!is_text(schema)) {
    const std::string_view value = trimmed(text);
    // Templates tell earlier calls' constants as Python spells them, so models do too.
    for (const auto& [python, spelling] : {std::pair{"True", "true"}, {"False", "false"}, {"None", "null"}})
      if (value == python) return spelling;
    if (parse_json(value)) return std::string(value);
  }
  return json::serialize(json::string(text));
}

// <function=NAME> and its parameters; a line end on either side of a text is the syntax's.
std::optional<ToolCall> from_tagged(std::string_view text, const json::value* tools) {
  constexpr std::string_view kFunction = "<function=", kParameter = "<parameter=",
                             kParameterEnd = "</parameter>", kFunctionEnd = "</function>";
  const auto skip_blank = [](std::string_view& rest) {
    rest.remove_prefix(std::min(rest.find_first_not_of(kBlank), rest.size()));
  };
  const auto take_name = [](std::string_view& rest, std::string_view tag) -> std::optional<std::string_view> {
    const size_t end = rest.find('>');
    if (!rest.starts_with(tag) || end == rest.npos) return std::nullopt;
    const std::string_view name = rest.substr(tag.size(), end - tag.size());
    rest.remove_prefix(end + 1);
    return name;
  };
  std::string_view rest = trimmed(text);
  const auto name = take_name(rest, kFunction);
  if (!name || trimmed(*name).empty()) return std::nullopt;
  ToolCall call{.name = std::string(trimmed(*name)), .arguments = "{"};
  const json::value* parameters = parameters_of(tools, call.name);  // once: there may be many of both
  while (skip_blank(rest), !rest.starts_with(kFunctionEnd)) {
    const auto key = take_name(rest, kParameter);
    if (!key) return std::nullopt;
    // The text may hold the closing tag itself; what follows the real one is known.
    size_t end = rest.find(kParameterEnd);
    for (; end != rest.npos; end = rest.find(kParameterEnd, end + 1)) {
      std::string_view behind = rest.substr(end + kParameterEnd.size());
      skip_blank(behind);
      if (behind.starts_with(kParameter) || behind.starts_with(kFunctionEnd)) break;
    }
    if (end == rest.npos) return std::nullopt;
    std::string_view value = rest.substr(0, end);
    if (value.starts_with('\n')) value.remove_prefix(1);
    if (value.ends_with('\n')) value.remove_suffix(1);
    if (call.arguments.size() > 1) call.arguments += ", ";
    call.arguments += json::serialize(json::string(*key)) + ": " + json_of(value, member(parameters, *key));
    rest.remove_prefix(end + kParameterEnd.size());
  }
  call.arguments += '}';
  if (!trimmed(rest.substr(kFunctionEnd.size())).empty() || !is_object(call.arguments)) return std::nullopt;
  return call;
}

bool add_call(const ToolCallSyntax& syntax, std::string_view body, const json::value* tools,
              std::vector<ToolCall>& calls) {
  if (syntax.body == Body::array) {
    std::vector<ToolCall> several;
    if (!from_array(trimmed(body), several)) return false;
    calls.insert(calls.end(), several.begin(), several.end());
    return true;
  }
  auto call = syntax.body == Body::object   ? from_object(trimmed(body))
              : syntax.body == Body::tagged ? from_tagged(body, tools)
                                            : from_separated(syntax, body);
  if (call) calls.push_back(std::move(*call));
  return call.has_value();
}

// A call at the front of text, which is consumed. A closing marker inside a JSON string closes nothing, so
// each is tried, up to a bound that keeps this linear for hostile text.
bool take_call(const ToolCallSyntax& syntax, const json::value* tools, std::string_view& text,
               std::vector<ToolCall>& calls) {
  constexpr int kTries = 8;
  if (!text.starts_with(syntax.open)) return false;
  size_t close = text.find(syntax.close, syntax.open.size());
  for (int i = 0; i < kTries && close != text.npos; ++i) {
    if (add_call(syntax, text.substr(syntax.open.size(), close - syntax.open.size()), tools, calls)) {
      text.remove_prefix(close + syntax.close.size());
      return true;
    }
    close = text.find(syntax.close, close + 1);
  }
  return false;
}

}  // namespace

std::span<const ToolCallSyntax> tool_call_syntaxes() { return kSyntaxes; }

const ToolCallSyntax* find_tool_call_syntax(std::string_view family) {
  for (const ToolCallSyntax& syntax : kSyntaxes)
    if (syntax.family == family) return &syntax;
  return nullptr;
}

ToolReply parse_tool_calls(const ToolCallSyntax& syntax, std::string_view text, const json::value* tools) {
  const ToolReply plain{.content = std::string(text), .calls = {}};
  const bool section = !syntax.section_open.empty();
  const std::string_view first = section ? syntax.section_open : syntax.open;
  const size_t begin = text.find(first);
  if (begin == text.npos) return plain;
  ToolReply reply{.content = std::string(text.substr(0, begin)), .calls = {}};
  while (!reply.content.empty() && (reply.content.back() == '\n' || reply.content.back() == '\r'))
    reply.content.pop_back();
  std::string_view rest = text.substr(begin + (section ? first.size() : 0));
  const auto skip_blank = [&] { rest.remove_prefix(std::min(rest.find_first_not_of(kBlank), rest.size())); };
  while (skip_blank(), !rest.empty()) {
    if (section && rest.starts_with(syntax.section_close)) {
      rest.remove_prefix(syntax.section_close.size());
      skip_blank();
      break;
    }
    if (!take_call(syntax, tools, rest, reply.calls)) return plain;
  }
  return rest.empty() && !reply.calls.empty() ? reply : plain;
}

}  // namespace millrace::gateway
