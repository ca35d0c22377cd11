#include "engine/prompt.h"

#include <gtest/gtest.h>

#include "engine/internal/testing.h"

namespace millrace::engine {
namespace {

using testing::kEos;

std::vector<TokenId> encode(std::vector<TextSegment> text) {
  return encode_prompt(testing::ByteTokenizer(), {.text = std::move(text)}, 0).value();
}

TEST(Prompt, SpecialTokensCountOnlyWhereTheyAreTrusted) {
  EXPECT_EQ(encode({{"a<eos>", true}}), (std::vector<TokenId>{'a', kEos}));
  EXPECT_EQ(encode({{"<eos>", true}, {"hi", false}, {"<eos>", true}}),
            (std::vector<TokenId>{kEos, 'h', 'i', kEos}));
  EXPECT_EQ(encode({{"<eos>", true}, {"<eos>", false}}),
            (std::vector<TokenId>{kEos, '<', 'e', 'o', 's', '>'}));
  // A user's words must not complete what the template began.
  EXPECT_EQ(encode({{"<eo", true}, {"s>", false}}), (std::vector<TokenId>{'<', 'e', 'o', 's', '>'}));
}

TEST(Prompt, ReadyIdsPassAndTooManyDoNot) {
  const testing::ByteTokenizer tokenizer;
  EXPECT_EQ(encode_prompt(tokenizer, {.tokens = {1, 2}}, 0).value(), (std::vector<TokenId>{1, 2}));
  EXPECT_TRUE(encode_prompt(tokenizer, {.text = {{"abc", false}}}, 3).has_value());
  EXPECT_FALSE(encode_prompt(tokenizer, {.text = {{"abcd", false}}}, 3).has_value());
}

}  // namespace
}  // namespace millrace::engine
