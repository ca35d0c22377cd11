#include "gateway/tool_history.h"

#include <gtest/gtest.h>

#include <boost/json.hpp>

#include "base/json.h"
#include "model/chat_template.h"

namespace millrace::gateway {
namespace {

CallHistory of(std::string_view source) {
  const auto parsed = model::ChatTemplate::parse(source);
  EXPECT_TRUE(parsed.has_value()) << source;
  return call_history_of(**parsed);
}

#define TELL(before, arguments)                                                                   \
  "{% for m in messages %}" before "{% for c in m.tool_calls %}[{{ c.function.name }} " arguments \
  "]{% endfor %}"                                                                                 \
  "{% endfor %}"

TEST(CallHistory, IsWhatShowsTheArguments) {
  const CallHistory text = of(TELL("{{ m.content }}", "{{ c.function.arguments }}"));
  EXPECT_FALSE(text.object_arguments);
  EXPECT_FALSE(text.null_content);
  // Text would be encoded twice; as the name of a filter it fails.
  EXPECT_TRUE(of(TELL("", "{{ c.function.arguments | tojson }}")).object_arguments);
  EXPECT_TRUE(of(TELL("", "{% for k, v in c.function.arguments | items %}<{{ k }}>{{ v }}{% endfor %}"))
                  .object_arguments);
  // Where calls are told in place of content, "" is content.
  EXPECT_TRUE(of("{% for m in messages %}{% if m.content is none %}{% for c in m.tool_calls %}{{ "
                 "c.function.name + ' ' + "
                 "c.function.arguments }}{% endfor %}{% else %}{{ m.content }}{% endif %}{% endfor %}")
                  .null_content);
  // A template without calls: as they came.
  EXPECT_FALSE(of("{% for m in messages %}{{ m.content }}{% endfor %}").object_arguments);
}

TEST(CallHistory, FitsMessages) {
  const std::string_view given = R"([{"role": "user", "content": "q"},
    {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{\"a\": 1}"}},
                                         {"function": {"name": "g", "arguments": "no JSON"}}, 7, {"function": null},
                                         {"function": {"name": "h", "arguments": " "}}]},
    {"role": "assistant", "content": "", "tool_calls": []}, 5,
    {"role": "assistant", "content": "words", "tool_calls": [{"function": {"name": "f", "arguments": {"b": 2}}}]}])";
  json::array messages = parse_json(given)->as_array();
  fit_call_history({.object_arguments = true, .null_content = false}, messages);
  EXPECT_EQ(messages[1].at("content"), "");
  EXPECT_EQ(messages[1].at("tool_calls").at(0).at("function").at("arguments"), (json::object{{"a", 1}}));
  EXPECT_EQ(messages[1].at("tool_calls").at(1).at("function").at("arguments"), "no JSON");
  EXPECT_EQ(messages[1].at("tool_calls").at(4).at("function").at("arguments"), json::object())
      << "none, as vLLM reads it";
  EXPECT_EQ(messages[2].at("content"), "") << "no calls: nothing to fit";
  EXPECT_EQ(messages[4].at("content"), "words");
  EXPECT_EQ(messages[4].at("tool_calls").at(0).at("function").at("arguments"), (json::object{{"b", 2}}));
  messages = parse_json(given)->as_array();
  fit_call_history({.null_content = true}, messages);
  EXPECT_TRUE(messages[1].at("content").is_null());
  EXPECT_EQ(messages[1].at("tool_calls").at(0).at("function").at("arguments"), R"({"a": 1})");
}

}  // namespace
}  // namespace millrace::gateway
