#include "gateway/internal/tool_calls.h"

#include <gtest/gtest.h>

#include <boost/json.hpp>

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
    {"qwen3_coder",
     "a\n\n<tool_call>\n<function=f>\n<parameter=x>\n</tool_call>\n</parameter>\n</function>\n</"
     "tool_call>\n<tool_call>\n"
     "<function=g>\n</function>\n</tool_call>",
     "a",
     {{"", "f", R"({"x": "</tool_call>"})"}, {"", "g", "{}"}}},
    {"pangu",
     R"([unused11][{"name": "f", "arguments": {"a": 1}}, {"name": "g", "arguments": {}}][unused12])",
     "",
     {{"", "f", R"({"a": 1})"}, {"", "g", "{}"}}},
};

// Texts are strings; those whose schema has another type are JSON, Python's constants too.
TEST(ToolCalls, TaggedParametersTakeTheirTypesFromTheTool) {
  const ToolCallSyntax& coder = *find_tool_call_syntax("qwen3_coder");
  const boost::json::value tools =
      boost::json::parse(R"([{"type": "function", "function": {"name": "f", "parameters":
      {"type": "object", "properties": {"s": {"type": "string"}, "n": {"type": "number"}, "b": {"type": "boolean"},
       "a": {"type": "array"}, "z": {"type": ["integer", "null"]}, "m": {"type": ["string", "integer"]}, "q": {}}}}}])");
  const std::string text =
      "I "
      "look.\n\n<tool_call>\n<function=f>\n<parameter=s>\n5\n</parameter>\n<parameter=n>\n2.50\n</"
      "parameter>\n"
      "<parameter=b>\nTrue\n</parameter>\n<parameter=a>\n[1, {\"x\": "
      "null}]\n</parameter>\n<parameter=z>\nNone\n</parameter>\n"
      "<parameter=m>\n7\n</parameter>\n<parameter=q>\n8\n</parameter>\n<parameter=other>\n\nline "
      "\"one\"\n</parameter> "
      "two\n\n</parameter>\n</function>\n</tool_call>";
  ToolReply reply = parse_tool_calls(coder, text, &tools);
  EXPECT_EQ(reply.content, "I look.");
  ASSERT_EQ(reply.calls.size(), 1u);
  EXPECT_EQ(reply.calls[0].name, "f");
  EXPECT_EQ(reply.calls[0].arguments,
            R"({"s": "5", "n": 2.50, "b": true, "a": [1, {"x": null}], "z": null, "m": "7", "q": "8", )"
            R"("other": "\nline \"one\"\n</parameter> two\n"})");
  reply = parse_tool_calls(coder, "<tool_call><function=g><parameter=n>1</parameter></function></tool_call>",
                           &tools);
  ASSERT_EQ(reply.calls.size(), 1u) << "on one line, of a tool that is not among them";
  EXPECT_EQ(reply.calls[0].arguments, R"({"n": "1"})");
  reply = parse_tool_calls(
      coder, "<tool_call>\n<function=f>\n<parameter=n>\nmany\n</parameter>\n</function>\n</tool_call>",
      &tools);
  ASSERT_EQ(reply.calls.size(), 1u);
  EXPECT_EQ(reply.calls[0].arguments, R"({"n": "many"})") << "what is no JSON stays the text it is";
  for (const char* bad :
       {"<tool_call><function=></function></tool_call>", "<tool_call><function=f></tool_call>",
        "<tool_call><function=f><parameter=x>1</function></tool_call>",
        "<tool_call><parameter=x></parameter></tool_call>",
        "<tool_call><function=f></function> and</tool_call>",
        "<tool_call><function=f></function></tool_call> and"})
    EXPECT_EQ(parse_tool_calls(coder, bad, &tools).content, bad);
}

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
        // Whole calls, of which none is cut; the last only where the end of the section alone is missing.
        EXPECT_LE(reply.calls.size(), c.calls.size() - (syntax.section_open.empty() ? 1 : 0))
            << c.text.substr(0, length);
    }
  }
  for (const char* text :
       {"<tool_call>{\"name\":\"f\"}</tool_call>", "<tool_call>{\"name\":7,\"arguments\":{}}</tool_call>",
        "<tool_call>{\"name\":\"f\",\"arguments\":[1]}</tool_call>", "<tool_call>nonsense</tool_call>",
        "<tool_call>{\"name\":\"f\",\"arguments\":{}}</tool_call> and more", "plain", ""})
    EXPECT_EQ(parse_tool_calls(*find_tool_call_syntax("qwen"), text).content, text);
  EXPECT_EQ(parse_tool_calls(*find_tool_call_syntax("pangu"), "[unused11][][unused12]").content,
            "[unused11][][unused12]");
  const std::string behind = DS_BEGIN DS_CALL "get" DS_SEP "{}" DS_DONE DS_END " and more";
  EXPECT_EQ(parse_tool_calls(*find_tool_call_syntax("deepseek_v31"), behind).content, behind);
  EXPECT_EQ(find_tool_call_syntax("other"), nullptr);
  EXPECT_EQ(tool_call_syntaxes().size(), 6u);
}

}  // namespace
}  // namespace millrace::gateway
