// A model's text for every family's tool-call syntax: no crash, arguments are JSON objects, and a text
// without calls is all content.
#include <boost/json.hpp>
#include <cstdlib>

#include "base/json.h"
#include "gateway/internal/tool_calls.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace millrace;
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  static const boost::json::value tools = boost::json::parse(R"([{"function": {"name": "f", "parameters":
      {"properties": {"n": {"type": "number"}, "a": {"type": ["array", "null"]}}}}}])");
  for (const gateway::ToolCallSyntax& syntax : gateway::tool_call_syntaxes()) {
    const gateway::ToolReply reply = gateway::parse_tool_calls(syntax, text, &tools);
    if (reply.calls.empty() && reply.content != text) std::abort();
    for (const gateway::ToolCall& call : reply.calls) {
      const auto arguments = parse_json(call.arguments);
      if (call.name.empty() || !arguments || !arguments->is_object()) std::abort();
    }
  }
  return 0;
}
