#include "gateway/internal/tool_calls.h"

#include <gtest/gtest.h>

namespace millrace::gateway {
namespace {

struct Case {
  std::string_view family, text, content;
  std::vector<ToolCall> calls;
};
#define BAR "\uFF5C"
#define LOW "\u2581"
#define DS_BEGIN "<" BAR "tool" LOW "calls" LOW "begin" BAR ">"
#define DS_END "<" BAR "tool" LOW "calls" LOW "end" BAR ">"
#define DS_CALL "<" BAR "tool" LOW "call" LOW "begin" BAR ">"
#define DS_SEP "<" BAR "tool" LOW "sep" BAR ">"
#define DS_DONE "<" BAR "tool" LOW "call" LOW "end" BAR ">"

const std::vector<Case> kCases = {
    {"deepseek_v3",
     "Let me see.\n" DS_BEGIN DS_CALL "function" DS_SEP "get\n```json\n{\"a\": 1}\n```" DS_DONE "\n" DS_CALL
     "function" DS_SEP "put\n```json\n{}\n```" DS_DONE DS_END,
     "Let me see.",
     {{"", "get", R"({"a": 1})"}, {"", "put", "{}"}}},
    {"deepseek_v31",
     DS_BEGIN DS_CALL "get" DS_SEP R"({"a":[1,"}"]})" DS_DONE DS_CALL "put" DS_SEP "{}" DS_DONE DS_END,
     "",
     {{"", "get", R"({"a":[1,"}"]})"}, {"", "put", "{}"}}},
    {"kimi_k2",
     "ok<|tool_calls_section_begin|><|tool_call_begin|>functions.my.tool:x:3<|tool_call_argument_begin|>{"
     "\"q\": \"a:b\"}"
     "<|tool_call_end|><|tool_calls_section_end|>",
     "ok",
     {{"functions.my.tool:x:3", "my.tool:x", R"({"q": "a:b"})"}}},
    {"qwen",
     "a\n<tool_call>\n{\"name\": \"f\", \"arguments\": {\"x\": [1, {\"y\": \"</tool_call>\"}], \"z\": "
     "-1.5e3}}\n</tool_call>",
     "a",
     {{"", "f", R"({"x": [1, {"y": "</tool_call>"}], "z": -1.5e3})"}}},
    {"qwen",
     "<tool_call>{\"arguments\":{},\"name\":\"f\"}</"
     "tool_call>\n<tool_call>{\"name\":\"g\",\"arguments\":\"{\\\"a\\\":1}\"}</tool_call>",
     "",
     {{"", "f", "{}"}, {"", "g", R"({"a":1})"}}},
    {"pangu",
     R"([unused11][{"name": "f", "arguments": {"a": 1}}, {"name": "g", "arguments": {}}][unused12])",
     "",
     {{"", "f", R"({"a": 1})"}, {"", "g", "{}"}}},
};

TEST(ToolCalls, Table) {
  for (const Case& c : kCases) {
    const ToolReply reply = parse_tool_calls(*find_tool_call_syntax(c.family), c.text);
    EXPECT_EQ(reply.content, c.content) << c.text;
    EXPECT_EQ(reply.calls, c.calls) << c.text;
  }
}

TEST(ToolCalls, WhatIsNoWholeCallIsContent) {
  for (const Case& c : kCases) {
    const ToolCallSyntax& syntax = *find_tool_call_syntax(c.family);
    for (size_t length = 0; length < c.text.size(); ++length) {
      const ToolReply reply = parse_tool_calls(syntax, c.text.substr(0, length));
      if (reply.calls.empty())
        EXPECT_EQ(reply.content, c.text.substr(0, length));
      else
        EXPECT_LT(reply.calls.size(), c.calls.size()) << c.text.substr(0, length);
    }
  }
  for (const char* text :
       {"<tool_call>{\"name\":\"f\"}</tool_call>", "<tool_call>{\"name\":7,\"arguments\":{}}</tool_call>",
        "<tool_call>{\"name\":\"f\",\"arguments\":[1]}</tool_call>", "<tool_call>nonsense</tool_call>",
        "<tool_call>{\"name\":\"f\",\"arguments\":{}}</tool_call> and more", "plain", ""})
    EXPECT_EQ(parse_tool_calls(*find_tool_call_syntax("qwen"), text).content, text);
  EXPECT_EQ(parse_tool_calls(*find_tool_call_syntax("pangu"), "[unused11][][unused12]").content,
            "[unused11][][unused12]");
  EXPECT_EQ(find_tool_call_syntax("other"), nullptr);
  EXPECT_EQ(tool_call_syntaxes().size(), 5u);
}

}  // namespace
}  // namespace millrace::gateway
