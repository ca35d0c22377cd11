#include "engine/reasoning_detect.h"

#include <fmt/format.h>

namespace millrace::engine {
namespace {

constexpr std::string_view kBlank = " \t\r\n";

const ReasoningFormat& think() {
  static const ReasoningFormat format{"<think>", "</think>"};
  return format;
}
const ReasoningFormat& pangu() {
  static const ReasoningFormat format{"[unused16]", "[unused17]"};
  return format;
}

struct Parser {
  std::string_view name;
  const ReasoningFormat& (*format)();
};
constexpr Parser kParsers[] = {{"think", think}, {"deepseek_r1", think}, {"deepseek_v3", think},
                               {"qwen3", think}, {"kimi_k2", think},     {"pangu", pangu}};

// A reply can hold the marker only if the vocabulary can say it as one token, or the template speaks of it.
ReasoningFormat detect(std::string_view chat_template, const model::Tokenizer& tokenizer) {
  const auto has = [&](const ReasoningFormat& format) {
    return tokenizer.id_of(format.open) >= 0 && tokenizer.id_of(format.close) >= 0;
  };
  // "[unusedN]" stands in many vocabularies; openPangu is who writes turns with it.
  if (chat_template.find("[unused9]") != chat_template.npos && has(pangu())) return pangu();
  if (chat_template.find(think().close) != chat_template.npos || has(think())) return think();
  return {};
}

}  // namespace

Expected<void> check_reasoning_parser(std::string_view parser) {
  std::string known = "auto, none";
  if (parser == "auto" || parser == "none") return {};
  for (const Parser& each : kParsers) {
    if (each.name == parser) return {};
    known += fmt::format(", {}", each.name);
  }
  return invalid(fmt::format("the reasoning parser '{}' is not known; known: {}", parser, known),
                 "reasoning-parser");
}

Expected<ReasoningFormat> find_reasoning(std::string_view parser, std::string_view chat_template,
                                         const model::Tokenizer& tokenizer) {
  MR_TRY(check_reasoning_parser(parser));
  if (parser == "auto") return detect(chat_template, tokenizer);
  for (const Parser& each : kParsers)
    if (each.name == parser) return each.format();
  return ReasoningFormat{};
}

ReasoningFormat::Start reply_start(const ReasoningFormat& format,
                                   std::span<const model::RenderedSegment> prompt) {
  using Start = ReasoningFormat::Start;
  if (!format.used()) return Start::may_open;
  // The template's own words at the end, across the edges of segments.
  std::string tail;
  for (size_t i = prompt.size(); i-- > 0;) {
    const model::RenderedSegment& segment = prompt[i];
    const bool blank = segment.text.find_first_not_of(kBlank) == segment.text.npos;
    if (segment.from_request && !blank) break;
    tail.insert(0, segment.text);
    if (tail.size() > 4 * kMaxMarkerBytes && tail.find_first_not_of(kBlank) != tail.npos) break;
  }
  tail.erase(tail.find_last_not_of(kBlank) + 1);
  if (tail.ends_with(format.close)) return Start::answer;
  return tail.ends_with(format.open) ? Start::inside : Start::may_open;
}

ReasoningFormat continued_format(const ReasoningFormat& format, std::string_view words) {
  using Start = ReasoningFormat::Start;
  words = words.substr(0, words.find_last_not_of(kBlank) + 1);
  ReasoningSplitter splitter(format);
  ReplyParts parts;
  splitter.push(words, parts);
  ReasoningFormat continued = format;
  continued.begun = splitter.begun();
  if (splitter.inside()) {
    continued.start = Start::inside;
  } else if (splitter.opened() || splitter.undecided() < words.size()) {
    continued.start = Start::answer;
  } else {
    continued.start = Start::may_open;
  }
  return continued;
}

}  // namespace millrace::engine
