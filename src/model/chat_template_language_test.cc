// What jinja2 makes of the corpus of tests/templates, as committed fixtures: checks the language without
// Python.
#include <gtest/gtest.h>

#include <boost/json.hpp>

#include "base/file.h"
#include "model/chat_template.h"

namespace millrace::model {
namespace {

TEST(ChatTemplateLanguage, EqualsJinja2OnTheCorpus) {
  const auto file = read_file("tests/fixtures/templates/language.jsonl", size_t{16} << 20);
  ASSERT_TRUE(file) << file.error().to_string();
  json::value context;
  size_t cases = 0, wrong = 0;
  for (size_t begin = 0, end; (end = file->find('\n', begin)) != std::string::npos; begin = end + 1) {
    const json::object line = json::parse(std::string_view(*file).substr(begin, end - begin)).as_object();
    if (line.contains("context")) {
      context = line.at("context");
      continue;
    }
    ++cases;
    const std::string_view source = line.at("template").as_string();
    const auto parsed = ChatTemplate::parse(source);
    const auto segments = parsed ? (*parsed)->render(context)
                                 : Expected<std::vector<RenderedSegment>>(std::unexpected(parsed.error()));
    std::string text;
    if (segments)
      for (const auto& segment : *segments) text += segment.text;
    const bool right = line.contains("error") ? !segments : segments && text == line.at("text").as_string();
    if (right) continue;
    ++wrong;
    ADD_FAILURE() << source << "\n  jinja2: " << json::serialize(line)
                  << "\n  ours:   " << (segments ? text : segments.error().to_string());
    if (wrong > 10) break;
  }
  EXPECT_GT(cases, 900u);
}

}  // namespace
}  // namespace millrace::model
