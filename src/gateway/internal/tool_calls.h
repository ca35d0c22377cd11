// Tool calls in the text that a model generates, by a table of the families' syntaxes. Pure; the text is
// whole.
//
// Not wired yet: requests with `tools` are refused. What is here lets replies be read and told again through
// the chat templates (tests/templates).
#pragma once
#include <boost/json/fwd.hpp>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace millrace::gateway {

struct ToolCall {
  std::string id;  // as the model wrote it (Kimi), else ""
  std::string name;
  std::string arguments;  // JSON, verbatim as the model wrote it (tagged: an object of the parameters' texts)
  bool operator==(const ToolCall&) const = default;
};

struct ToolCallSyntax {
  std::string_view family;
  std::string_view section_open, section_close;  // around all calls; "" where there is none
  std::string_view open, close;                  // around one call (of an array: around all)
  std::string_view separator;  // between name and arguments, "" where a JSON object holds both
  enum class Body {
    named,     // NAME separator JSON
    fenced,    // "function" separator NAME newline, JSON in a ```json fence
    numbered,  // functions.NAME:INDEX separator JSON
    object,    // {"name": .., "arguments": ..}
    array,     // [{"name": .., "arguments": ..}, ..]
    tagged,    // <function=NAME> <parameter=KEY> text </parameter> .. </function>
  } body;
};
std::span<const ToolCallSyntax> tool_call_syntaxes();
const ToolCallSyntax* find_tool_call_syntax(std::string_view family);  // null if unknown

struct ToolReply {
  std::string content;  // the text before the calls, without the line ends that part it from them
  std::vector<ToolCall> calls;
};
// A text whose calls are malformed or cut off has none: all of it is content, as it came. Only the closing
// marker of the section may be missing: DeepSeek's first templates tell a single call without it, and models
// say what they were told.
//
// `tools` are the request's, as OpenAI spells them, or null. Tagged parameters are texts. Where the tool's
// schema names a type other than string, a text that is JSON (or a constant as Python spells it) is taken as
// that; all others, and all of an unknown tool, are strings.
ToolReply parse_tool_calls(const ToolCallSyntax& syntax, std::string_view text,
                           const boost::json::value* tools = nullptr);

}  // namespace millrace::gateway
