#include "base/utf8.h"

#include <gtest/gtest.h>

namespace millrace {
namespace {

// Expected values are what Python 3 prints for bytes.decode("utf-8", "replace").
TEST(Utf8Repair, OneReplacementPerMaximalSubpart) {
  const std::string r = "\xEF\xBF\xBD";
  EXPECT_EQ(utf8_repair("a\xFFz"), "a" + r + "z");
  EXPECT_EQ(utf8_repair("\xE4\xBD"), r);
  EXPECT_EQ(utf8_repair("\xE4\xBD\x41"), r + "A");
  EXPECT_EQ(utf8_repair("\xED\xA0\x80"), r + r + r);
  EXPECT_EQ(utf8_repair("\xF0\x80\x80\x80"), r + r + r + r);
  EXPECT_EQ(utf8_repair("\xF0\x9F\x98\x41"), r + "A");
  EXPECT_EQ(utf8_repair("\xC0\xAF"), r + r);
  EXPECT_EQ(utf8_repair("h\xC3\xA9\xF0\x9F\x98\x80"), "h\xC3\xA9\xF0\x9F\x98\x80");
}

TEST(Utf8CompletePrefix, HoldsBackOnlyWhatMoreBytesCouldComplete) {
  EXPECT_EQ(utf8_complete_prefix(""), 0u);
  EXPECT_EQ(utf8_complete_prefix("abc"), 3u);
  EXPECT_EQ(utf8_complete_prefix("a\xE4"), 1u);
  EXPECT_EQ(utf8_complete_prefix("a\xE4\xBD"), 1u);
  EXPECT_EQ(utf8_complete_prefix("a\xE4\xBD\xA0"), 4u);
  EXPECT_EQ(utf8_complete_prefix("a\xF0\x9F\x98"), 1u);
  EXPECT_EQ(utf8_complete_prefix("a\xBF"), 2u);
  EXPECT_EQ(utf8_complete_prefix("a\xE0\x80"), 3u);
}

}  // namespace
}  // namespace millrace
