#include "engine/reasoning_detect.h"

#include <gtest/gtest.h>

namespace millrace::engine {
namespace {

using Start = ReasoningFormat::Start;
using Segments = std::vector<model::RenderedSegment>;

std::shared_ptr<const model::Tokenizer> vocabulary(std::vector<std::string> tokens) {
  model::TokenizerSpec spec;
  spec.tokens = std::move(tokens);
  return *model::Tokenizer::create(std::move(spec));
}

TEST(ReasoningDetect, AutoGoesByTemplateAndVocabulary) {
  const auto plain = vocabulary({"a"}), thinks = vocabulary({"a", "<think>", "</think>"});
  const auto pangu = vocabulary({"[unused9]", "[unused16]", "[unused17]"});
  const auto open = [](std::string_view parser, std::string_view source, const model::Tokenizer& tokenizer) {
    return find_reasoning(parser, source, tokenizer)->open;
  };
  EXPECT_EQ(open("auto", "{{ messages }}", *plain), "");
  EXPECT_EQ(open("auto", "{{ content.split('</think>')[-1] }}", *plain), "<think>");
  EXPECT_EQ(open("auto", "{{ messages }}", *thinks), "<think>");
  EXPECT_EQ(open("auto", "", *thinks), "<think>");
  EXPECT_EQ(open("auto", "{{ messages }}", *pangu), "") << "a vocabulary alone does not make a Pangu";
  EXPECT_EQ(open("auto", "{{ '[unused9]' }}", *pangu), "[unused16]");
  EXPECT_EQ(open("none", "</think>", *thinks), "");
  EXPECT_EQ(open("deepseek_r1", "", *plain), "<think>");
  EXPECT_EQ(open("pangu", "", *plain), "[unused16]");
  const auto unknown = find_reasoning("gpt9", "", *plain);
  ASSERT_FALSE(unknown.has_value());
  EXPECT_NE(unknown.error().message.find("gpt9"), std::string::npos);
  EXPECT_NE(unknown.error().message.find("qwen3"), std::string::npos);
}

TEST(ReasoningDetect, ThePromptsEndSaysHowTheReplyBegins) {
  const ReasoningFormat format{"<think>", "</think>"};
  const auto start = [&](const Segments& prompt) { return reply_start(format, prompt); };
  EXPECT_EQ(start({{"<|Assistant|><think>\n", false}}), Start::inside);
  EXPECT_EQ(start({{"<|Assistant|>", false}, {"<th", false}, {"ink>\n", false}, {"\n", true}}),
            Start::inside);
  EXPECT_EQ(start({{"assistant\n<think>\n\n</think>\n\n", false}}), Start::answer);
  EXPECT_EQ(start({{"</think>", false}}), Start::answer);
  EXPECT_EQ(start({{"<think>x</think>", true}, {"<|im_end|>assistant\n", false}}), Start::may_open);
  EXPECT_EQ(start({{"Say <think>", true}}), Start::may_open) << "a user's words open nothing";
  EXPECT_EQ(start({{"<", false}, {"think>", true}}), Start::may_open);
  EXPECT_EQ(start({{"<think> hello", false}}), Start::may_open);
  EXPECT_EQ(start({}), Start::may_open);
  EXPECT_EQ(reply_start({}, Segments{{"<think>", false}}), Start::may_open);
}

TEST(ReasoningDetect, AContinuedMessageSaysItToo) {
  const ReasoningFormat format{"<think>", "</think>"};
  const auto continued = [&](std::string_view words) {
    const ReasoningFormat made = continued_format(format, words);
    EXPECT_EQ(made.open, format.open);
    return std::pair(made.start, made.begun);
  };
  EXPECT_EQ(continued("<think>so far"), std::pair(Start::inside, std::string()));
  EXPECT_EQ(continued("\n<think>"), std::pair(Start::inside, std::string()));
  EXPECT_EQ(continued("<think>so</think> yes"), std::pair(Start::answer, std::string()));
  EXPECT_EQ(continued("<think>so</think>"), std::pair(Start::answer, std::string()));
  EXPECT_EQ(continued("yes, <think>"), std::pair(Start::answer, std::string()));
  EXPECT_EQ(continued(" "), std::pair(Start::may_open, std::string()));
  EXPECT_EQ(continued("\n<thi"), std::pair(Start::may_open, std::string("<thi")));
  EXPECT_EQ(continued("<thi \n"), std::pair(Start::may_open, std::string("<thi")))
      << "the prompt ends with the i";
  EXPECT_EQ(continued("<think>so <</"), std::pair(Start::inside, std::string("</")));
  EXPECT_FALSE(continued_format({}, "<think>").used());
}

TEST(ReasoningDetect, AContinuedReplyIsSplitAsIfItHadNotBeenCut) {
  const ReasoningFormat think{"<think>", "</think>"}, borders{"<<a", "aabaa"};
  struct Case {
    const ReasoningFormat& format;
    std::string_view words, reply, reasoning, answer;
  };
  const Case cases[] = {
      {think, "<thi", "nk>why</think>x", "why", "x"},
      {think, " \n<", "think>why</think>x", "why", "x"},
      {think, "<thi", "s is it", "", "s is it"},
      {think, "<", "html>", "", "html>"},
      {think, "<thi", "", "", ""},
      {think, "<think>a </thi", "nk>b", "", "b"},
      {think, "<think>a </thi", "s b</think>c", "s b", "c"},
      {think, "<think>a <", "</think>b", "", "b"},
      {think, "<think>a </", "", "", ""},
      {think, "<think>a</think", "></think>b", "", "</think>b"},
      {borders, "<<axaaba", "abaab", "", "baab"},
      {borders, "<<axaaba", "xaabaab", "x", "b"},
      {borders, "<<axaa", "abaab", "", "b"},
  };
  for (const Case& c : cases)
    for (size_t cut = 0; cut <= c.reply.size(); ++cut) {
      ReasoningSplitter splitter(continued_format(c.format, c.words));
      ReplyParts parts;
      splitter.push(c.reply.substr(0, cut), parts);
      splitter.push(c.reply.substr(cut), parts);
      splitter.finish(parts);
      EXPECT_EQ(parts.reasoning, c.reasoning) << c.words << " + " << c.reply << " at " << cut;
      EXPECT_EQ(parts.answer, c.answer) << c.words << " + " << c.reply << " at " << cut;
    }
}

}  // namespace
}  // namespace millrace::engine
