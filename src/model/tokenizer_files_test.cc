// tiktoken.model and tokenizer.model: what small files make, and how bad ones are refused. Equality with the
// libraries that own the formats, on megabytes, is tests/tokenizer.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cstring>

#include "model/internal/bpe.h"
#include "model/tokenizer.h"

namespace millrace::model {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

std::string base64(std::string_view bytes) {
  constexpr std::string_view kAlphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string out;
  for (size_t at = 0; at < bytes.size(); at += 3) {
    uint32_t bits = 0;
    for (size_t i = 0; i < 3; ++i)
      bits = bits << 8 | (at + i < bytes.size() ? static_cast<uint8_t>(bytes[at + i]) : 0);
    for (size_t i = 0; i < 4; ++i) out += at + i <= bytes.size() ? kAlphabet[bits >> (18 - 6 * i) & 63] : '=';
  }
  return out;
}

// The 256 bytes, then these tokens.
std::string ranks_file(const std::vector<std::string>& tokens) {
  std::string out;
  size_t rank = 0;
  for (int byte = 0; byte < 256; ++byte) {
    const char c = static_cast<char>(byte);
    out += base64({&c, 1}) + " " + std::to_string(rank++) + "\n";
  }
  for (const std::string& token : tokens) out += base64(token) + " " + std::to_string(rank++) + "\n";
  return out;
}

constexpr std::string_view kKimi =
    R"({"auto_map": {"AutoTokenizer": ["tokenization_kimi.TikTokenTokenizer", null]},
  "bos_token": "[BOS]", "eos_token": {"content": "[EOS]"},
  "added_tokens_decoder": {"260": {"content": "[BOS]", "special": true}, "263": {"content": "[EOS]", "special": true},
                           "261": {"content": "<think>", "special": false}}})";

std::shared_ptr<const Tokenizer> kimi(const std::vector<std::string>& tokens) {
  auto spec = tokenizer_from_tiktoken(ranks_file(tokens), kKimi);
  EXPECT_TRUE(spec.has_value()) << spec.error().message;
  return *Tokenizer::create(*deserialize_tokenizer(serialize(*spec)));
}

TEST(Tiktoken, RanksAreIdsAndSpecialsComeFromTheConfig) {
  const auto tokenizer = kimi({"ab", "abc", "\xE4\xBD", "\xE4\xBD\xA0"});
  EXPECT_EQ(tokenizer->vocab_size(), 260 + 256);
  EXPECT_EQ(tokenizer->spec().bos, 260);
  EXPECT_EQ(tokenizer->spec().eos, 263);
  EXPECT_THAT(tokenizer->encode("abc\xE4\xBD\xA0"), ElementsAre(257, 259)) << "nothing is put around a text";
  EXPECT_THAT(tokenizer->encode("[EOS]", {.parse_special = true}), ElementsAre(263));
  EXPECT_EQ(tokenizer->encode("[EOS]").size(), 5u) << "a user's words are text";
  EXPECT_THAT(tokenizer->encode("<think>"), ElementsAre(261)) << "no control token: found in any text";
  EXPECT_THAT(tokenizer->encode("<|reserved_token_262|>", {.parse_special = true}), ElementsAre(262));
  EXPECT_EQ(tokenizer->decode(std::vector<TokenId>{257, 263, 261, 259}, true), "abc<think>\xE4\xBD\xA0");
}

// What one merge per token cannot do: "aaa" is made of "a" + "aa" or "aa" + "a", whichever stands further
// left.
TEST(Tiktoken, AnyNeighboursThatMakeATokenMergeLeftmostFirst) {
  const auto tokenizer = kimi({"aa", "aaa", "bc", "abc"});
  EXPECT_THAT(tokenizer->encode("aaaaa"), ElementsAre(256, 257));
  EXPECT_THAT(tokenizer->encode("xabc"), ElementsAre('x', 259))
      << "bc merges before ab could, and a + bc is a token";
}

TEST(Tiktoken, BadFilesAreRefusedByName) {
  const auto refusal = [](std::string_view file, std::string_view config = kKimi) {
    const auto spec = tokenizer_from_tiktoken(file, config);
    return spec ? std::string("accepted") : spec.error().message;
  };
  const std::string good = ranks_file({"ab"});
  EXPECT_EQ(refusal(good), "accepted");
  EXPECT_EQ(refusal(good + "\n\r\n"), "accepted");
  EXPECT_THAT(refusal(good + "YQ=="), HasSubstr("line 258 is not a token and a rank"));
  EXPECT_THAT(refusal(good + "YQ= 257"), HasSubstr("line 258 has a token that is not base64"));
  EXPECT_THAT(refusal(good + "YR== 257"), HasSubstr("not base64")) << "bits behind the end";
  EXPECT_THAT(refusal(good + "Y\xC3Q= 257"), HasSubstr("not base64"));
  EXPECT_THAT(refusal(good + "YWJj 256"), HasSubstr("has the rank 256, which is taken"));
  EXPECT_THAT(refusal(good + "YWJj -1"), HasSubstr("'-1'"));
  EXPECT_THAT(refusal(good + "YWJj 99999999999"), HasSubstr("99999999999"));
  EXPECT_THAT(refusal(good + "YWJj 300"), HasSubstr("258 tokens but ranks up to 300"));
  EXPECT_THAT(refusal(good + "YWI= 257"), HasSubstr("a token with two ranks"));
  EXPECT_THAT(refusal(good + base64(std::string(2000, 'a')) + " 257"), HasSubstr("limit of 512 bytes"));
  EXPECT_THAT(refusal("YWI= 0\n"), HasSubstr("no token for the byte 0x00"));
  EXPECT_THAT(refusal(""), HasSubstr("0x00"));
  EXPECT_THAT(refusal(good, "{}"), HasSubstr("auto_map"));
  EXPECT_THAT(refusal(good, "[]"), HasSubstr("not an object"));
  EXPECT_THAT(refusal(good, R"({"auto_map":{"AutoTokenizer":["tokenization_other.X"]}})"),
              HasSubstr("tokenization_other"));
  EXPECT_EQ(
      refusal(good, R"({"auto_map":{"AutoTokenizer":["some-one/kimi--x--tokenization_kimi.X", null]}})"),
      "accepted")
      << "the class of another repository";
  EXPECT_THAT(
      refusal(good, R"({"auto_map":{"AutoTokenizer":["tokenization_kimi.X/y--tokenization_other.X"]}})"),
      HasSubstr("tokenization_other"));
  const auto with_token = [&](std::string_view entry) {
    return refusal(good, R"({"auto_map":{"AutoTokenizer":["tokenization_kimi.X"]},"added_tokens_decoder":{)" +
                             std::string(entry) + "}}");
  };
  EXPECT_THAT(with_token(R"("x":{"content":"<a>"})"), HasSubstr("'x'"));
  EXPECT_THAT(with_token(R"("-1":{"content":"<a>"})"), HasSubstr("'-1'"));
  EXPECT_THAT(with_token(R"("5":{"content":"<a>"})"), HasSubstr("'<a>' has the id 5"));
  EXPECT_THAT(with_token(R"("300":7)"), HasSubstr("added_tokens_decoder.300"));
  EXPECT_THAT(with_token(R"("300":{"content":7})"), HasSubstr("content"));
}

// Their number is bounded by the file's size alone; looking for each among all before it took three minutes
// at 200,000.
TEST(Tiktoken, ManyAddedTokensAreNoWork) {
  std::string entries;
  for (int id = 257; id < 100000; ++id)
    entries +=
        (id > 257 ? ",\"" : "\"") + std::to_string(id) + R"(":{"content":"<)" + std::to_string(id) + "\"}";
  entries += R"(,"00300":{"content":"<300"})";  // again, spelled otherwise: one token
  const auto start = std::chrono::steady_clock::now();
  const auto spec = tokenizer_from_tiktoken(
      ranks_file({"ab"}),
      R"({"auto_map":{"AutoTokenizer":["tokenization_kimi.X"]},"added_tokens_decoder":{)" + entries + "}}");
  ASSERT_TRUE(spec.has_value()) << spec.error().message;
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(8));
  EXPECT_EQ(spec->added.size(), 100000u - 257);
  EXPECT_EQ(spec->added[43].text, "<300");
}

// --- SentencePiece: protocol buffers by hand ---

std::string varint(uint64_t value) {
  std::string out;
  for (; value >= 0x80; value >>= 7) out += static_cast<char>(value | 0x80);
  return out + static_cast<char>(value);
}
std::string bytes_field(int number, std::string_view bytes) {
  return varint(static_cast<uint64_t>(number) << 3 | 2) + varint(bytes.size()) + std::string(bytes);
}
std::string integer_field(int number, uint64_t value) {
  return varint(static_cast<uint64_t>(number) << 3) + varint(value);
}
std::string piece(std::string_view text, float score, int type = 1) {
  std::string bits(4, '\0');
  std::memcpy(bits.data(), &score, 4);
  return bytes_field(
      1, bytes_field(1, text) + varint(2 << 3 | 5) + bits + integer_field(3, static_cast<uint64_t>(type)));
}
const std::string kTrainer = bytes_field(2, integer_field(3, 2) + integer_field(35, 1));
const std::string kNormalizer = bytes_field(3, bytes_field(1, "identity") + integer_field(4, 0));
#define SPACE "\xE2\x96\x81"

std::string small_model() {
  std::string out = piece("<unk>", 0, 2) + piece("<s>", 0, 3) + piece("</s>", 0, 3);
  for (int byte = 0; byte < 256; ++byte) {
    char name[8];
    std::snprintf(name, sizeof name, "<0x%02X>", byte);
    out += piece(name, 0, 6);
  }
  for (const char* text : {SPACE, "a", "b"}) out += piece(text, -100);
  return out + piece(SPACE "a", -1) + piece("ab", -2) + piece("[unused10]", 0, 4);  // 259: SPACE ... 264
}

TEST(SentencePieceModel, MergesByScoreWithByteFallback) {
  const auto spec = tokenizer_from_sentencepiece(small_model() + kTrainer + kNormalizer, "");
  ASSERT_TRUE(spec.has_value()) << spec.error().message;
  const auto tokenizer = *Tokenizer::create(*deserialize_tokenizer(serialize(*spec)));
  EXPECT_THAT(tokenizer->encode("ab"), ElementsAre(1, 262, 261));  // bos, SPACE a, b
  EXPECT_THAT(tokenizer->encode("b ab", {.add_special = false}), ElementsAre(259, 261, 262, 261));
  EXPECT_THAT(tokenizer->encode("\xC3\xA9", {.add_special = false}), ElementsAre(259, 3 + 0xC3, 3 + 0xA9));
  EXPECT_EQ(tokenizer->decode(tokenizer->encode("ab \xC3\xA9"), true), "ab \xC3\xA9");
  EXPECT_EQ(tokenizer->spec().eos, 2);
}

TEST(SentencePieceModel, TheConfigsTokensAreSpecialAndEndTurns) {
  const auto spec =
      tokenizer_from_sentencepiece(small_model() + kTrainer + kNormalizer, R"({"add_bos_token": false,
      "eos_token": "[unused10]", "added_tokens_decoder": {"264": {"content": "[unused10]", "special": true},
                                                           "270": {"content": "<new>", "special": true}}})");
  ASSERT_TRUE(spec.has_value()) << spec.error().message;
  EXPECT_EQ(spec->eos, 264);
  EXPECT_EQ(spec->tokens.size(), 271u);
  const auto tokenizer = *Tokenizer::create(*spec);
  EXPECT_TRUE(tokenizer->is_special(264));
  EXPECT_THAT(tokenizer->encode("a[unused10]a<new>", {.parse_special = true}),
              ElementsAre(262, 264, 262, 270));
  Detokenizer hidden(tokenizer, true), shown(tokenizer, true, {264});
  EXPECT_EQ(hidden.push(264) + hidden.push(262), "a");
  EXPECT_EQ(shown.push(264) + shown.push(262), "[unused10]a") << "a stretch of its own, as it was encoded";
}

TEST(SentencePieceModel, BadFilesAreRefusedByName) {
  const auto refusal = [](std::string_view file, std::string_view config = "") {
    const auto spec = tokenizer_from_sentencepiece(file, config);
    return spec ? std::string("accepted") : spec.error().message;
  };
  const std::string good = small_model() + kTrainer + kNormalizer;
  EXPECT_EQ(refusal(good), "accepted");
  for (size_t length = 0; length < good.size(); length += 7)
    EXPECT_NE(refusal(good.substr(0, length)), "accepted");
  EXPECT_THAT(refusal(""), HasSubstr("no pieces"));
  EXPECT_THAT(refusal(small_model() + kNormalizer), HasSubstr("model type 1"));
  EXPECT_THAT(refusal(small_model() + kTrainer), HasSubstr("remove_extra_whitespaces"));
  EXPECT_THAT(refusal(small_model() + kTrainer + bytes_field(3, bytes_field(2, "map") + integer_field(4, 0))),
              HasSubstr("character map (3 bytes)"));
  EXPECT_THAT(refusal(small_model() + kTrainer + bytes_field(3, integer_field(4, 0) + integer_field(5, 0))),
              HasSubstr("white space"));
  EXPECT_THAT(refusal(good + piece("", 0)), HasSubstr("piece 265 has 0 bytes"));
  EXPECT_THAT(refusal(good + piece("\xFF", 0)), HasSubstr("not UTF-8"));
  EXPECT_THAT(refusal(good + piece("x", 0, 9)), HasSubstr("unknown type 9"));
  EXPECT_THAT(refusal(good + piece("x", std::nanf(""))), HasSubstr("not a number"));
  EXPECT_THAT(refusal(good + "\x0B"), HasSubstr("damaged"));
  EXPECT_THAT(refusal(good + "\x0A\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\x01"), HasSubstr("damaged"));
  EXPECT_THAT(refusal(good, R"({"legacy": false})"), HasSubstr("legacy"));
  EXPECT_THAT(refusal(good, R"({"added_tokens_decoder": {"5": {"content": "x"}}})"),
              HasSubstr("'x' has the id 5"));
}

TEST(TokenizerFolder, WithoutAVocabularyIsRefused) {
  const auto spec = tokenizer_from_hugging_face("/nowhere");
  ASSERT_FALSE(spec.has_value());
  EXPECT_THAT(spec.error().message, HasSubstr("tiktoken.model"));
}

}  // namespace
}  // namespace millrace::model
