// The hand-written scanners against the regex engine on the same patterns.
#include "model/internal/split_scanners.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "base/utf8.h"
#include "model/internal/split_regex.h"
#include "model/internal/unicode_tables.h"

namespace millrace::model::internal {
namespace {

using testing::HasSubstr;

std::vector<std::pair<size_t, size_t>> by_scanner(Scanner scanner, std::string_view text) {
  std::vector<std::pair<size_t, size_t>> result;
  for (Match m = scanner(text, 0); m.begin < text.size(); m = scanner(text, m.end))
    result.emplace_back(m.begin, m.end);
  return result;
}

std::string random_text(std::mt19937& random) {
  // Characters at the borders between alternatives, more often than their share of Unicode.
  static constexpr std::string_view kParts[] = {"a",
                                                "B",
                                                "s",
                                                "S",
                                                "'",
                                                "'s",
                                                "'LL",
                                                "1",
                                                "23",
                                                " ",
                                                "  ",
                                                "\t",
                                                "\n",
                                                "\r\n",
                                                "\r",
                                                ".",
                                                "!",
                                                "_",
                                                "$",
                                                "+",
                                                "\xC5\xBF",
                                                "\xC3\xA9",
                                                "\xCC\x81",
                                                "\xE0\xA4\x95",
                                                "\xE0\xA5\x8D",
                                                "\xE4\xBD\xA0",
                                                "\xE3\x81\x82",
                                                "\xC2\xA0",
                                                "\xE3\x80\x80",
                                                "\xC2\x85",
                                                "\xE2\x80\xA8",
                                                "\xE1\xA0\x8E",
                                                "\xC2\xBD",
                                                "\xE2\x85\xA7",
                                                "\xF0\x9F\x98\x80",
                                                "\xE2\x80\x8D",
                                                "\xEF\xB8\x8F",
                                                "\x1C",
                                                "\x00",
                                                "\xE2\x82\xAC",
                                                "\xEF\xBC\x91",
                                                "\xF0\x91\xB7\xA0"};
  std::string text;
  const uint32_t count = 1 + random() % 12;
  for (uint32_t i = 0; i < count; ++i) {
    if (random() % 6 == 0) {
      const uint32_t c = random() % 0x20000;
      utf8_append(text, c >= 0xD800 && c < 0xE000 ? 'x' : c);
    } else {
      text += kParts[random() % std::size(kParts)];
    }
  }
  return text;
}

class KnownPatterns : public testing::TestWithParam<std::string_view> {};

TEST_P(KnownPatterns, ScannerEqualsRegexEngine) {
  const Scanner scanner = find_scanner(GetParam());
  ASSERT_NE(scanner, nullptr);
  const auto regex = SplitRegex::compile(GetParam());
  ASSERT_TRUE(regex) << regex.error().message;
  std::mt19937 random(2);
  for (int round = 0; round < 30000; ++round) {
    const std::string text = random_text(random);
    std::vector<std::pair<size_t, size_t>> wanted;
    const auto add = [&](size_t from, size_t to) { wanted.emplace_back(from, to); };
    ASSERT_TRUE((*regex)->for_each_match(text, add));
    ASSERT_EQ(by_scanner(scanner, text), wanted) << testing::PrintToString(text);
  }
}

INSTANTIATE_TEST_SUITE_P(SplitScanners, KnownPatterns,
                         testing::Values(patterns::kGpt2, patterns::kLlama3, patterns::kQwen2,
                                         patterns::kDeepSeekNumbers, patterns::kDeepSeekCjk,
                                         patterns::kDeepSeekWords));

TEST(SplitScanners, PatternsWithControlCharactersInPlaceOfEscapesAreKnownToo) {
  std::string pattern(patterns::kDeepSeekWords);
  for (const auto& [from, to] : {std::pair<std::string, std::string>("\\r", "\r"), {"\\n", "\n"}})
    for (size_t at = 0; (at = pattern.find(from, at)) != std::string::npos;) pattern.replace(at, 2, to);
  EXPECT_EQ(find_scanner(pattern), find_scanner(patterns::kDeepSeekWords));
  EXPECT_EQ(find_scanner("\\p{L}+"), nullptr);
}

TEST(SplitRegex, TranslatesWhatTheDialectsReadAlikeAndRefusesTheRest) {
  for (const char* same : {"(?:a|b)+?", "a{2,3}", "(?<=x)y(?!z)", "[^\\r\\n]", "\\{", "(?i:ab)", "a++"})
    EXPECT_EQ(translate_pattern(same).value_or("refused"), same);
  EXPECT_EQ(*translate_pattern("a{,3}"), "a{0,3}");
  EXPECT_EQ(*translate_pattern("a{b"), "a\\{b");
  EXPECT_EQ(*translate_pattern("\\u4e00"), "\\x{4e00}");
  EXPECT_EQ(*translate_pattern("\\v"), "\\x{B}");
  EXPECT_EQ(*translate_pattern("\\S"), "\\P{White_Space}");
  for (const char* refused :
       {"\\b",     "\\h",    "\\R",    "\\X",         "\\G",    "\\K",   "\\1",     "\\k<a>",
        "(?<a>x)", "(?m:.)", "(*UTF)", "[[:alpha:]]", "[a&&b]", "[]a]",  "a{1,3}+", "a{3}?",
        "\\u12",   "\\x{12", "\\pL",   "\\",          "(?#c)",  "[\\W]", "[abc"})
    EXPECT_FALSE(translate_pattern(refused)) << refused;
  EXPECT_THAT(translate_pattern("xx\\b").error().message, HasSubstr("'\\b' at byte 2"));
}

TEST(SplitRegex, BacktrackingWithoutBoundEndsInAnError) {
  const auto regex = SplitRegex::compile("(?:a+)+$|(?:a|a)+b");
  ASSERT_TRUE(regex);
  const auto result = (*regex)->for_each_match(std::string(5000, 'a') + "c", [](size_t, size_t) {});
  ASSERT_FALSE(result);
  EXPECT_EQ(result.error().code, Code::resource_exhausted);
}

TEST(UnicodeTables, KnowsClassesAcrossVersions) {
  const UnicodeTables& tables = UnicodeTables::get();
  EXPECT_EQ(tables.classes('a'), kLetter);
  EXPECT_EQ(tables.classes('7'), kNumber);
  EXPECT_EQ(tables.classes('_'), kPunctuation);
  EXPECT_EQ(tables.classes('$'), kSymbol);
  EXPECT_EQ(tables.classes(0x85), kSpace);
  EXPECT_EQ(tables.classes(0x180E), 0);                   // PCRE2's \s would take it
  EXPECT_EQ(tables.classes(0x31350) & kLetter, kLetter);  // Unicode 15
  EXPECT_EQ(tables.classes(0x1C89) & kLetter, kLetter);   // Unicode 16
  EXPECT_EQ(tables.classes(0x301), kMark | kCanonical);
  EXPECT_EQ(tables.classes(0x10FFFF), 0);
  EXPECT_TRUE(is_numeric(0x11DE0, tables.classes(0x11DE0)));  // Unicode 17
}

}  // namespace
}  // namespace millrace::model::internal
