#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>

#include "base/file.h"
#include "model/gguf.h"
#include "model/internal/vocabulary_builder.h"
#include "model/tokenizer.h"

namespace millrace::model {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

// Metadata from memory; the real reader has its own tests.
class FakeGguf final : public GgufFile {
 public:
  std::map<std::string, std::string, std::less<>> strings;
  std::map<std::string, int64_t, std::less<>> numbers_;
  std::map<std::string, std::vector<std::string>, std::less<>> lists;
  std::vector<int64_t> types;
  std::vector<float> scores;

  std::optional<std::string_view> text(std::string_view key) const override {
    const auto found = strings.find(key);
    return found == strings.end() ? std::nullopt : std::optional<std::string_view>(found->second);
  }
  std::optional<int64_t> integer(std::string_view key) const override {
    const auto found = numbers_.find(key);
    return found == numbers_.end() ? std::nullopt : std::optional(found->second);
  }
  std::optional<double> number(std::string_view) const override { return std::nullopt; }
  std::optional<bool> boolean(std::string_view key) const override {
    const auto found = integer(key);
    return found ? std::optional(*found != 0) : std::nullopt;
  }
  std::optional<std::vector<std::string_view>> texts(std::string_view key) const override {
    const auto found = lists.find(key);
    if (found == lists.end()) return std::nullopt;
    return std::vector<std::string_view>(found->second.begin(), found->second.end());
  }
  std::optional<std::vector<int64_t>> integers(std::string_view) const override { return types; }
  std::optional<std::vector<float>> numbers(std::string_view) const override { return scores; }
  const std::vector<GgufTensor>& tensors() const override { return none_; }
  const GgufTensor* tensor(std::string_view) const override { return nullptr; }

 private:
  std::vector<GgufTensor> none_;
};

// The fixture's tokenizer.json as the GGUF that a converter would make of it.
FakeGguf gguf_of(const std::string& fixture, const std::string& pre) {
  const auto spec =
      tokenizer_from_json(*read_file("tests/tokenizer/fixtures/" + fixture + ".json", 1 << 20), "");
  FakeGguf file;
  file.strings = {{"tokenizer.ggml.model", "gpt2"}, {"tokenizer.ggml.pre", pre}};
  file.lists["tokenizer.ggml.tokens"] = spec->tokens;
  file.types.assign(spec->tokens.size(), 1);
  for (const AddedToken& token : spec->added)
    file.types[static_cast<size_t>(token.id)] = token.special ? 3 : 4;
  for (const Merge& merge : spec->merges)
    file.lists["tokenizer.ggml.merges"].push_back(spec->tokens[static_cast<size_t>(merge.left)] + " " +
                                                  spec->tokens[static_cast<size_t>(merge.right)]);
  file.numbers_ = {{"tokenizer.ggml.bos_token_id", 0}, {"tokenizer.ggml.eos_token_id", 2}};
  return file;
}

TEST(TokenizerGguf, EqualsTheTokenizerJsonOfTheSameFamily) {
  const std::string text =
      "Hello, WE'LL see 12345 things; \xE4\xBD\xA0\xE5\xA5\xBD e\xCC\x81!\r\n\n  x \xF0\x9F\x98\x80";
  for (const auto& [fixture, pre] : {std::pair("smollm", "smollm"), std::pair("llama3", "llama-bpe"),
                                     std::pair("qwen2", "qwen2"), std::pair("deepseek_v3", "deepseek-v3")}) {
    const auto json = Tokenizer::create(*tokenizer_from_json(
        *read_file(std::string("tests/tokenizer/fixtures/") + fixture + ".json", 1 << 20), ""));
    const auto spec = tokenizer_from_gguf(gguf_of(fixture, pre));
    ASSERT_TRUE(spec) << spec.error().message;
    const auto gguf = Tokenizer::create(*spec);
    ASSERT_TRUE(gguf);
    EXPECT_EQ((*gguf)->encode(text, {.add_special = false}), (*json)->encode(text, {.add_special = false}))
        << pre;
  }
}

TEST(TokenizerGguf, BosAsTheFamilyOrTheFileSays) {
  EXPECT_THAT(tokenizer_from_gguf(gguf_of("llama3", "llama-bpe"))->prefix, ElementsAre(0));
  EXPECT_TRUE(tokenizer_from_gguf(gguf_of("smollm", "smollm"))->prefix.empty());
  FakeGguf file = gguf_of("smollm", "smollm");
  file.numbers_["tokenizer.ggml.add_bos_token"] = 1;
  file.numbers_["tokenizer.ggml.add_eos_token"] = 1;
  EXPECT_THAT(tokenizer_from_gguf(file)->prefix, ElementsAre(0));
  EXPECT_THAT(tokenizer_from_gguf(file)->suffix, ElementsAre(2));
  file.numbers_["tokenizer.ggml.bos_token_id"] = 1 << 20;
  EXPECT_THAT(tokenizer_from_gguf(file).error().message, HasSubstr("bos_token_id"));
}

TEST(TokenizerGguf, RefusesWhatItDoesNotKnow) {
  EXPECT_THAT(tokenizer_from_gguf(gguf_of("smollm", "viking")).error().message, HasSubstr("viking"));
  FakeGguf file = gguf_of("smollm", "smollm");
  file.strings["tokenizer.ggml.model"] = "t5";
  EXPECT_THAT(tokenizer_from_gguf(file).error().message, HasSubstr("t5"));
  file = gguf_of("smollm", "smollm");
  file.lists["tokenizer.ggml.merges"].push_back("nospace");
  EXPECT_THAT(tokenizer_from_gguf(file).error().message, HasSubstr("nospace"));
  file = gguf_of("smollm", "smollm");
  file.types.pop_back();
  EXPECT_THAT(tokenizer_from_gguf(file).error().message, HasSubstr("token_type"));
}

// A SentencePiece vocabulary with scores: merging takes the best-scored neighbours first, left to right.
TEST(TokenizerGguf, ScoresMakeMerges) {
  FakeGguf file;
  file.strings["tokenizer.ggml.model"] = "llama";
  auto& tokens = file.lists["tokenizer.ggml.tokens"];
  const auto add = [&](std::string text, int64_t type, float score) {
    tokens.push_back(std::move(text));
    file.types.push_back(type);
    file.scores.push_back(score);
    return static_cast<TokenId>(tokens.size() - 1);
  };
  const std::string space = "\xE2\x96\x81";
  add("<unk>", 2, 0);
  const TokenId bos = add("<s>", 3, 0);
  TokenId bytes[256];
  for (int b = 0; b < 256; ++b) {
    char name[8];
    std::snprintf(name, sizeof(name), "<0x%02X>", b);
    bytes[b] = add(name, 6, 0);
  }
  add(space, 1, -10);
  const TokenId a = add("a", 1, -11), b = add("b", 1, -12);
  add("ab", 1, -2);
  const TokenId ba = add("ba", 1, -1);  // better than "ab"
  const TokenId space_a = add(space + "a", 1, -3);
  file.numbers_["tokenizer.ggml.bos_token_id"] = bos;
  const auto spec = tokenizer_from_gguf(file);
  ASSERT_TRUE(spec) << spec.error().message;
  const auto tokenizer = Tokenizer::create(*spec);
  ASSERT_TRUE(tokenizer);
  EXPECT_THAT((*tokenizer)->encode("aba"), ElementsAre(bos, space_a, ba));
  EXPECT_THAT((*tokenizer)->encode("b\n", {.add_special = false}), ElementsAre(bytes[0] + 256, b, bytes[10]));
  // "<s>" in a user's text must not become the control token by merging either.
  EXPECT_THAT((*tokenizer)->encode("<s>"), testing::Not(testing::Contains(bos).Times(2)));
  EXPECT_EQ((*tokenizer)->decode(std::vector{space_a, ba, a}, true), "abaa");
}

// A GGUF token may be as long as its file. The ways to cut it in two are not tried, or one token of a
// megabyte would take a day; what published vocabularies have still merges.
TEST(TokenizerGguf, HugeTokensAreNoMerges) {
  FakeGguf file;
  file.strings = {{"tokenizer.ggml.model", "gpt2"}, {"tokenizer.ggml.pre", "kimi-k2"}};
  auto& tokens = file.lists["tokenizer.ggml.tokens"];
  for (const size_t length : {1, 2, 1023, 1024, 1025, 3000}) tokens.emplace_back(length, 'a');
  file.types.assign(tokens.size(), 1);
  const auto spec = tokenizer_from_gguf(file);
  ASSERT_TRUE(spec) << spec.error().message;
  std::vector<size_t> made;
  for (const Merge& merge : spec->merges)
    made.push_back(spec->tokens[static_cast<size_t>(merge.result)].size());
  EXPECT_THAT(made, ElementsAre(2u, 1024u, 1024u));  // a + a, a + a^1023, a^1023 + a
}

// Scores that repeat: longer left parts first, then longer right parts, then as they stand in the vocabulary,
// and the ways to one token by their parts' ids.
TEST(TokenizerGguf, EqualScoresMakeMergesInTheConvertersOrder) {
  const std::vector<std::string> tokens = {"a", "b", "c", "bc", "cb", "ab", "abc", "cbc", "bcb"};
  const std::vector<float> scores(tokens.size(), -1);
  std::vector<std::string> got;
  for (const Merge& m : internal::merges_from_scores(tokens, scores, std::vector<bool>(tokens.size())))
    got.push_back(tokens[static_cast<size_t>(m.left)] + "+" + tokens[static_cast<size_t>(m.right)]);
  EXPECT_THAT(got, ElementsAre("ab+c", "cb+c", "bc+b", "a+bc", "c+bc", "b+cb", "b+c", "c+b", "a+b"));
}

}  // namespace
}  // namespace millrace::model
