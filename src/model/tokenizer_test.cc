#include "model/tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <random>
#include <sstream>
#include <thread>

#include "base/file.h"
#include "base/utf8.h"

namespace millrace::model {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

constexpr const char* kFixtures = "tests/tokenizer/fixtures/";

std::shared_ptr<const Tokenizer> load(const std::string& name) {
  const auto text = read_file(kFixtures + name + ".json", 1 << 20);
  EXPECT_TRUE(text) << text.error().message;
  auto spec = tokenizer_from_json(*text, "");
  EXPECT_TRUE(spec) << spec.error().message;
  auto tokenizer = Tokenizer::create(std::move(*spec));
  EXPECT_TRUE(tokenizer) << tokenizer.error().message;
  return *tokenizer;
}

std::string from_hex(std::string_view hex) {
  std::string out;
  for (size_t i = 0; i + 1 < hex.size(); i += 2)
    out += static_cast<char>(std::stoi(std::string(hex.substr(i, 2)), nullptr, 16));
  return out;
}

// A line of a .cases file; see tests/tokenizer/make_fixtures.py.
struct Case {
  bool parse_special;
  std::string text;
  std::vector<TokenId> ids;
  std::string decoded;
};
std::vector<Case> cases(const std::string& name) {
  std::vector<Case> result;
  std::istringstream file(*read_file(kFixtures + name + ".cases", 4 << 20));
  for (std::string line; std::getline(file, line);) {
    std::vector<std::string> fields(1);
    for (const char c : line) {
      if (c == '\t')
        fields.emplace_back();
      else
        fields.back() += c;
    }
    EXPECT_EQ(fields.size(), 4u);
    Case one{fields[0] == "1", from_hex(fields[1]), {}, from_hex(fields[fields[3] == "=" ? 1 : 3])};
    std::istringstream ids(fields[2]);
    for (TokenId id; ids >> id;) one.ids.push_back(id);
    result.push_back(one);
    one.parse_special = true;
    if (fields[0] == "*") result.push_back(std::move(one));
  }
  EXPECT_GE(result.size(), 40u);
  return result;
}

class Families : public testing::TestWithParam<const char*> {};

TEST_P(Families, IdsAndTextEqualThePackages) {
  const auto tokenizer = load(GetParam());
  for (const Case& one : cases(GetParam())) {
    EXPECT_EQ(tokenizer->encode(one.text, {.parse_special = one.parse_special}), one.ids) << one.text;
    EXPECT_EQ(tokenizer->decode(one.ids, true), one.decoded) << one.text;
  }
}

TEST_P(Families, CompiledFormIsTheSameTokenizer) {
  const auto tokenizer = load(GetParam());
  const std::string bytes = serialize(tokenizer->spec());
  auto spec = deserialize_tokenizer(bytes);
  ASSERT_TRUE(spec);
  EXPECT_EQ(serialize(*spec), bytes);
  const auto again = Tokenizer::create(std::move(*spec));
  ASSERT_TRUE(again);
  for (const Case& one : cases(GetParam()))
    EXPECT_EQ((*again)->encode(one.text, {.parse_special = one.parse_special}), one.ids);
}

TEST_P(Families, StreamedTextEqualsDecodedTextAndNeverSplitsACharacter) {
  const auto tokenizer = load(GetParam());
  std::mt19937 random(11);
  for (int round = 0; round < 200; ++round) {
    std::vector<TokenId> ids(1 + random() % 40);
    for (TokenId& id : ids)
      id = static_cast<TokenId>(random() % static_cast<uint32_t>(tokenizer->vocab_size() + 3)) - 1;
    const bool skip = round % 2 == 0;
    Detokenizer stream(tokenizer, skip);
    std::string text;
    for (const TokenId id : ids) {
      const std::string part = stream.push(id);
      EXPECT_TRUE(utf8_valid(part));
      text += part;
    }
    text += stream.finish();
    EXPECT_EQ(text, tokenizer->decode(ids, skip));
  }
}

INSTANTIATE_TEST_SUITE_P(Tokenizer, Families,
                         testing::Values("gpt2_prefix", "smollm", "llama3", "qwen2", "deepseek_v3",
                                         "merged_next", "general_regex", "sentencepiece_legacy",
                                         "sentencepiece_first"),
                         [](const auto& family) { return std::string(family.param); });

TEST(Tokenizer, SpecialTokensInTextAreTextUnlessAskedForAndAddedOnesAlwaysMatch) {
  const auto tokenizer = load("smollm");
  const TokenId end = tokenizer->id_of("<|im_end|>"), think = tokenizer->id_of("<think>");
  ASSERT_GE(end, 0);
  ASSERT_GE(think, 0);
  EXPECT_TRUE(tokenizer->is_special(end));
  EXPECT_FALSE(tokenizer->is_special(think));
  const EncodeOptions plain{.add_special = false}, parsed{.add_special = false, .parse_special = true};
  EXPECT_THAT(tokenizer->encode("<|im_end|><think>", parsed), ElementsAre(end, think));
  const std::vector<TokenId> ids = tokenizer->encode("<|im_end|><think>", plain);
  EXPECT_THAT(ids, testing::Not(testing::Contains(end)));
  EXPECT_EQ(ids.back(), think);
  EXPECT_EQ(tokenizer->decode(ids, true), "<|im_end|><think>");
  EXPECT_EQ(tokenizer->decode(std::vector{end, think}, true), "<think>");
  EXPECT_EQ(tokenizer->decode(std::vector{end, think}, false), "<|im_end|><think>");
}

TEST(Tokenizer, PrefixAndSuffixAreAskedForSeparately) {
  const auto tokenizer = load("smollm");
  EXPECT_THAT(tokenizer->encode(""), ElementsAre(0, 2));
  EXPECT_TRUE(tokenizer->encode("", {.add_special = false}).empty());
}

TEST(Tokenizer, LimitOfTokensIsExact) {
  const auto tokenizer = load("llama3");
  const std::string text = "some words, and 12345 numbers";
  const size_t all = tokenizer->encode(text).size();
  std::vector<TokenId> out = {7};
  EXPECT_TRUE(tokenizer->encode(text, {}, all, out));
  EXPECT_EQ(out.size(), all + 1);
  out = {7};
  const auto refused = tokenizer->encode(text, {}, all - 1, out);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, Code::resource_exhausted);
  EXPECT_THAT(refused.error().message, HasSubstr(std::to_string(all - 1)));
}

// A quadratic step anywhere would take minutes here; the bound leaves room for sanitizers and a busy machine.
TEST(Tokenizer, LongRunsOfOneKindTakeLinearTime) {
  for (const char* name : {"smollm", "llama3", "qwen2", "deepseek_v3", "sentencepiece_legacy"}) {
    const auto tokenizer = load(name);
    for (const std::string_view unit :
         {"a", " ", "\n", "1", "'", "ab ", " \n", "\xCC\x81", "\xCC\x81\xCC\xA3", "\xE4\xB8\x80",
          "\xE1\x84\x80\xE1\x85\xA1", "\xFF", "<"}) {
      std::string text;
      while (text.size() < 1 << 18) text += unit;
      const auto start = std::chrono::steady_clock::now();
      const std::vector<TokenId> ids = tokenizer->encode(text);
      EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(20))
          << name << " '" << unit << "'";
      EXPECT_GT(ids.size(), 10u);
    }
  }
}

TEST(Tokenizer, OneTokenizerServesManyThreads) {
  const auto tokenizer = load("qwen2");
  const std::vector<Case> all = cases("qwen2");
  std::vector<std::thread> threads;
  std::atomic<int> wrong = 0;
  for (int t = 0; t < 4; ++t)
    threads.emplace_back([&] {
      for (const Case& one : all)
        if (tokenizer->encode(one.text, {.parse_special = one.parse_special}) != one.ids) ++wrong;
    });
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
}

// The cache of pieces is a thread's own and keyed by tokenizer: more tokenizers than it has places must not
// mix.
TEST(Tokenizer, ManyTokenizersOnOneThreadDoNotShareIds) {
  const std::vector<std::string> names = {"smollm",      "llama3",      "qwen2",
                                          "deepseek_v3", "gpt2_prefix", "merged_next"};
  std::vector<std::shared_ptr<const Tokenizer>> tokenizers;
  std::vector<std::vector<Case>> all;
  for (const std::string& name : names) {
    tokenizers.push_back(load(name));
    all.push_back(cases(name));
  }
  for (size_t i = 0; i < all[0].size(); ++i)
    for (size_t n = 0; n < names.size(); ++n)
      EXPECT_EQ(tokenizers[n]->encode(all[n][i].text, {.parse_special = all[n][i].parse_special}),
                all[n][i].ids);
}

TEST(Tokenizer, EveryCutOfTheCompiledFormIsRefused) {
  TokenizerSpec plain = load("sentencepiece_first")->spec(), ranked = plain;
  ASSERT_FALSE(ranked.merges.empty());
  ranked.merge_ranks.assign(ranked.merges.size(), 7);
  for (const TokenizerSpec& spec : {plain, ranked}) {
    const std::string bytes = serialize(spec);
    for (size_t size = 0; size < bytes.size(); size += size < 2000 ? 1 : 37)
      EXPECT_FALSE(deserialize_tokenizer(std::string_view(bytes).substr(0, size))) << size;
    EXPECT_FALSE(deserialize_tokenizer(bytes + "x"));
  }
}

// Found by tokenizer_blob_fuzz: such bytes were read, and written as others.
TEST(Tokenizer, RefusesACompiledFormWithRanksOfNoMerges) {
  TokenizerSpec spec;
  spec.kind = TokenizerSpec::Kind::byte_bpe;
  std::string bytes = serialize(spec);
  ASSERT_TRUE(deserialize_tokenizer(bytes));
  constexpr size_t kFlags = 8 + 4;  // behind the magic and the kind
  bytes[kFlags] = static_cast<char>(bytes[kFlags] | 8);
  EXPECT_FALSE(deserialize_tokenizer(bytes));
}

TEST(Tokenizer, CreateRefusesIdsOutsideTheVocabulary) {
  const TokenizerSpec good = load("smollm")->spec();
  const auto refused = [](TokenizerSpec spec) { return !Tokenizer::create(std::move(spec)).has_value(); };
  EXPECT_FALSE(refused(good));
  const auto beyond = static_cast<TokenId>(good.tokens.size());
  auto spec = good;
  spec.merges[3].result = beyond;
  EXPECT_TRUE(refused(spec));
  spec = good;
  spec.merges[3].left = -1;
  EXPECT_TRUE(refused(spec));
  spec = good;
  spec.added[0].id = beyond;
  EXPECT_TRUE(refused(spec));
  spec = good;
  spec.added[0].text = "other";
  EXPECT_TRUE(refused(spec));
  spec = good;
  spec.prefix = {beyond};
  EXPECT_TRUE(refused(spec));
  spec = good;
  spec.eos = -2;
  EXPECT_TRUE(refused(spec));
  spec = good;
  spec.tokens[5] = "\xFF";
  EXPECT_TRUE(refused(spec));
  EXPECT_TRUE(refused(TokenizerSpec{}));
}

// The mark for "no merge": long pieces would have merged by it, short ones not.
TEST(Tokenizer, CreateRefusesTheRankThatMeansNoMerge) {
  TokenizerSpec spec;
  spec.tokens = {"a", "aa"};
  spec.merges = {{0, 0, 1}};
  spec.merge_ranks = {0xFFFFFFFE};
  EXPECT_TRUE(Tokenizer::create(spec));
  spec.merge_ranks = {0xFFFFFFFF};
  const auto refused = Tokenizer::create(spec);
  ASSERT_FALSE(refused);
  EXPECT_THAT(refused.error().message, HasSubstr("rank"));
}

// The matcher counts its nodes, one a byte, in 24 bits.
TEST(Tokenizer, CreateRefusesMoreAddedTextThanTheMatcherHolds) {
  const auto of_bytes = [](size_t bytes) {
    TokenizerSpec spec;
    for (size_t id = 0; id < bytes / 1024; ++id) {
      std::string text = std::to_string(id);
      text.resize(1024, 'x');
      spec.added.push_back({.id = static_cast<TokenId>(id), .text = text});
      spec.tokens.push_back(std::move(text));
    }
    return Tokenizer::create(std::move(spec));
  };
  EXPECT_TRUE(of_bytes(size_t{8} << 20));
  const auto refused = of_bytes((size_t{8} << 20) + 1024);
  ASSERT_FALSE(refused);
  EXPECT_THAT(refused.error().message, HasSubstr("8389632 bytes are over the limit of 8388608"));
}

// Each was put behind all that came before it: 2^39 probes.
TEST(Tokenizer, ManyTokensOfOneTextAreOneEntry) {
  TokenizerSpec spec;
  spec.tokens.assign(size_t{1} << 20, "a");
  spec.tokens[0] = "b";
  const auto tokenizer = Tokenizer::create(std::move(spec));
  ASSERT_TRUE(tokenizer);
  EXPECT_EQ((*tokenizer)->id_of("a"), 1) << "the first";
}

TEST(Tokenizer, CreateRefusesEndlessNormalizers) {
  TokenizerSpec spec;
  spec.tokens = {"a"};
  spec.normalizer.assign(64, {.kind = NormalizerStep::Kind::replace, .pattern = "a", .content = "b"});
  EXPECT_TRUE(Tokenizer::create(spec));
  spec.normalizer.resize(65);
  const auto refused = Tokenizer::create(spec);
  ASSERT_FALSE(refused);
  EXPECT_THAT(refused.error().message, HasSubstr("normalizer of 65 steps"));
}

TEST(Tokenizer, TokenBytesAndIds) {
  const auto tokenizer = load("smollm");
  const TokenId space = tokenizer->id_of("\xC4\xA0");  // U+0120 is the alphabet's space
  ASSERT_GE(space, 0);
  EXPECT_EQ(tokenizer->token_bytes(space), " ");
  EXPECT_EQ(tokenizer->token_bytes(-1), "");
  EXPECT_EQ(tokenizer->token_bytes(1 << 30), "");
  EXPECT_EQ(tokenizer->id_of("no such token"), -1);
  EXPECT_EQ(tokenizer->id_of(""), -1);
  EXPECT_FALSE(tokenizer->is_special(-1));
  EXPECT_FALSE(tokenizer->is_special(1 << 30));
  const auto words = load("sentencepiece_legacy");
  EXPECT_EQ(words->token_bytes(words->id_of("<0x0A>")), "\n");
}

}  // namespace
}  // namespace millrace::model
