#include "gateway/prefix_map.h"

#include <gtest/gtest.h>

#include "gateway/boot_total.h"
#include "gateway/retry_after.h"

namespace millrace::gateway {
namespace {

PromptBlocks blocks_of(const std::string& text, const std::string& salt = "") {
  engine::GenerateRequest request;
  request.prompt.text = {{text, false}};
  request.cache_salt = salt;
  return prompt_blocks(request);
}
constexpr size_t kBlockBytes = kBlockTokens * kBytesPerToken;

TEST(PromptBlocks, EqualPrefixesHaveEqualHashes) {
  const std::string prefix(3 * kBlockBytes, 'a');
  const PromptBlocks one = blocks_of(prefix + std::string(kBlockBytes, 'b'));
  const PromptBlocks two = blocks_of(prefix + std::string(kBlockBytes, 'c'));
  ASSERT_EQ(one.hashes.size(), 4u);
  for (size_t i = 0; i < 3; ++i) EXPECT_EQ(one.hashes[i], two.hashes[i]);
  EXPECT_NE(one.hashes[3], two.hashes[3]);
  EXPECT_NE(one.hashes[0], one.hashes[1]);  // chained: the same block elsewhere is another prefix
  EXPECT_NE(one.hashes[0], blocks_of(prefix, "salt").hashes[0]);
}

TEST(PromptBlocks, SegmentsJoin) {
  engine::GenerateRequest request;
  request.prompt.text = {{std::string(100, 'a'), false}, {std::string(kBlockBytes - 100, 'a'), true}};
  EXPECT_EQ(prompt_blocks(request).hashes, blocks_of(std::string(kBlockBytes, 'a')).hashes);
}

TEST(PromptBlocks, TokensAndBounds) {
  engine::GenerateRequest request;
  request.prompt.tokens.assign(1000 * kBlockTokens, 5);
  const PromptBlocks blocks = prompt_blocks(request);
  EXPECT_EQ(blocks.hashes.size(), kMaxPromptBlocks);
  EXPECT_EQ(blocks.estimated_tokens, 1000 * kBlockTokens);
  EXPECT_TRUE(blocks_of("short").hashes.empty());
}

TEST(PrefixMap, MatchesPerGroup) {
  PrefixMap map;
  const std::string a(2 * kBlockBytes, 'a');
  map.record(blocks_of(a), 0);
  map.record(blocks_of(a + std::string(kBlockBytes, 'b')), 1);
  EXPECT_EQ(map.match(blocks_of(a + std::string(kBlockBytes, 'b')), 3), (std::vector<int>{2, 3, 0}));
  EXPECT_EQ(map.match(blocks_of(std::string(kBlockBytes, 'z')), 3), (std::vector<int>{0, 0, 0}));
  map.forget_group(1);
  EXPECT_EQ(map.match(blocks_of(a + std::string(kBlockBytes, 'b')), 2), (std::vector<int>{2, 0}));
}

TEST(PrefixMap, IsBoundedAndForgetsTheOldest) {
  PrefixMap map(10);
  for (char c = 'a'; c <= 'z'; ++c) map.record(blocks_of(std::string(2 * kBlockBytes, c)), 0);
  EXPECT_EQ(map.size(), 10u);
  EXPECT_EQ(map.match(blocks_of(std::string(2 * kBlockBytes, 'a')), 1)[0], 0);
  EXPECT_EQ(map.match(blocks_of(std::string(2 * kBlockBytes, 'z')), 1)[0], 2);
}

TEST(RetryAfter, FollowsTheMeasuredRate) {
  RetryAfter retry;
  double now_s = 100;
  for (int i = 0; i < 600; ++i) retry.observe(now_s += 0.1, 100);  // 1,000 tokens/s
  EXPECT_NEAR(retry.tokens_per_s(), 1000, 1);
  for (int i = 0; i < 200; ++i) retry.finished(4000);  // so 4 s a reply
  EXPECT_NEAR(retry.promise(now_s), 4, 0.1);
  EXPECT_NEAR(retry.promise(now_s), 8, 0.2);  // the next caller gets the next place
  EXPECT_NEAR(retry.promise(now_s + 8), 4, 0.1);
  for (int i = 0; i < 1000; ++i) EXPECT_LE(retry.promise(now_s), 60);
}

TEST(RetryAfter, IsBoundedWithoutData) {
  RetryAfter retry;
  EXPECT_GE(retry.promise(1), 1);
  EXPECT_LE(retry.promise(1), 60);
  retry.observe(2, 1000000);  // over no time that is known
  retry.observe(3, 0);
  EXPECT_EQ(retry.tokens_per_s(), 0);
  EXPECT_LE(retry.promise(3), 60);
}

TEST(BootTotal, GrowsWithinALifeAndStartsAgainWithTheNext) {
  BootTotal total;
  EXPECT_EQ(total.grown(1, 3), 3u);
  EXPECT_EQ(total.grown(1, 3), 0u);
  EXPECT_EQ(total.grown(1, 0), 0u) << "not known for a moment";
  EXPECT_EQ(total.grown(1, 5), 2u);
  EXPECT_EQ(total.grown(2, 6), 6u) << "another life, which has come further already";
  EXPECT_EQ(total.grown(3, 1), 1u);
}

}  // namespace
}  // namespace millrace::gateway
