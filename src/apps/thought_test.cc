#include "apps/thought.h"

#include <gtest/gtest.h>

namespace millrace::apps {
namespace {

using Start = engine::ReasoningFormat::Start;

struct Printed {
  std::string thought, answer, reasoning, said;
};
Printed print(std::string_view reply, size_t piece, Start start, bool dim = false) {
  ThoughtView view({"<think>", "</think>", start}, dim);
  Printed out;
  const auto add = [&](const ThoughtView::Shown& shown) {
    out.thought += shown.thought;
    out.answer += shown.answer;
  };
  for (size_t at = 0; at < reply.size(); at += piece) add(view.push(reply.substr(at, piece)));
  add(view.finish());
  out.reasoning = view.said().reasoning;
  out.said = view.said().answer;
  return out;
}

TEST(ThoughtView, MarksTheThoughtApartHoweverItIsCut) {
  const std::string_view reply = "<think>\nsix times\nseven\n</think>\n\n**42**\n";
  for (size_t piece = 1; piece <= reply.size(); ++piece) {
    const Printed printed = print(reply, piece, Start::may_open);
    EXPECT_EQ(printed.thought, "Thinking...\nsix times\nseven\n...done thinking.\n\n") << piece;
    EXPECT_EQ(printed.answer, "**42**\n");
    EXPECT_EQ(printed.reasoning, "six times\nseven");
    EXPECT_EQ(printed.said, "**42**\n");
  }
}

TEST(ThoughtView, AThoughtThatThePromptOpensOrThatNeverEnds) {
  EXPECT_EQ(print("why</think>this", 3, Start::inside).thought, "Thinking...\nwhy\n...done thinking.\n\n");
  EXPECT_EQ(print("why", 1, Start::inside).thought, "Thinking...\nwhy\n...done thinking.\n\n");
  EXPECT_EQ(print("why", 1, Start::inside).answer, "");
}

TEST(ThoughtView, WhatIsNoThoughtIsPlain) {
  for (const std::string_view reply : {"", "a <think>b</think>", "<think></think>\n\nanswer", "<thinker>"}) {
    const Printed printed = print(reply, 2, Start::may_open, true);
    EXPECT_EQ(printed.thought, "") << reply;
    EXPECT_EQ(printed.answer, reply.starts_with("<think>") ? "answer" : reply);
  }
  EXPECT_EQ(print("</think>x", 1, Start::answer).answer, "</think>x");
}

// Every piece ends plain, so that an interrupted program leaves no dim terminal.
TEST(ThoughtView, DimIsForTerminals) {
  const std::string_view reply = "<think>ab</think>c";
  const Printed printed = print(reply, 1, Start::may_open, true);
  EXPECT_EQ(printed.thought,
            "\x1b[2mThinking...\n\x1b[0m\x1b[2ma\x1b[0m\x1b[2mb\x1b[0m\x1b[2m\n...done thinking.\n\n\x1b[0m");
  EXPECT_EQ(printed.answer, "c");
  EXPECT_EQ(print(reply, 1, Start::may_open).thought.find('\x1b'), std::string::npos);
}

}  // namespace
}  // namespace millrace::apps
