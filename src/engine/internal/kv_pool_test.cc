#include "engine/internal/kv_pool.h"

#include <gtest/gtest.h>

#include <random>

namespace millrace::engine {
namespace {

constexpr int kTokens = kernels::kPageTokens;

std::vector<TokenId> tokens_from(TokenId first, int count) {
  std::vector<TokenId> tokens;
  for (int i = 0; i < count; ++i) tokens.push_back(first + i);
  return tokens;
}
PageTokens page_of(const std::vector<TokenId>& tokens, int64_t index) {
  return std::span(tokens).subspan(static_cast<size_t>(index) * kTokens).first<kTokens>();
}
// As a sequence does: pages for all tokens, the full ones published.
std::vector<int32_t> compute(KvPool& pool, std::string_view salt, const std::vector<TokenId>& tokens) {
  std::vector<int32_t> pages;
  const auto full = static_cast<int64_t>(tokens.size()) / kTokens;
  int64_t have = pool.match(salt, tokens, full, pages);
  for (; have < full; ++have) {
    const int32_t page = pool.allocate();
    EXPECT_GE(page, 0);
    pages.push_back(pool.publish(salt, have == 0 ? -1 : pages.back(), page_of(tokens, have), page));
  }
  return pages;
}

TEST(KvPool, SharesEqualPrefixesAndNothingElse) {
  auto pool = KvPool::create(16, 64).value();
  const auto tokens = tokens_from(100, 4 * kTokens);
  auto pages = compute(pool, "", tokens);
  std::vector<int32_t> again;
  EXPECT_EQ(pool.match("", tokens, 4, again), 4);
  EXPECT_EQ(again, pages);
  EXPECT_EQ(pool.users(pages[0]), 2);

  std::vector<int32_t> none;
  EXPECT_EQ(pool.match("other salt", tokens, 4, none), 0);
  EXPECT_EQ(pool.match("", tokens, 2, none), 2) << "no more than asked for";
  pool.release_all(none);
  auto changed = tokens;
  changed[static_cast<size_t>(2 * kTokens + 5)] = 7;
  EXPECT_EQ(pool.match("", changed, 4, none), 2) << "one token differs in the third page";
  pool.release_all(none);
  // The same tokens at another place are another page: what came before them counts.
  const std::vector<TokenId> tail(tokens.begin() + kTokens, tokens.end());
  EXPECT_EQ(pool.match("", tail, 3, none), 0);
  pool.release_all(again);
  pool.release_all(pages);
  pool.check();
  EXPECT_EQ(pool.pages_free(), 16);
  EXPECT_EQ(pool.pages_cached(), 4);
}

TEST(KvPool, PublishingAnEqualPageGivesTheOneThatIsThere) {
  auto pool = KvPool::create(4, 64).value();
  const auto tokens = tokens_from(1, kTokens);
  const int32_t first = pool.allocate(), second = pool.allocate();
  EXPECT_EQ(pool.publish("", -1, page_of(tokens, 0), first), first);
  EXPECT_EQ(pool.publish("", -1, page_of(tokens, 0), second), first);
  EXPECT_EQ(pool.users(first), 2);
  EXPECT_EQ(pool.users(second), 0);
  EXPECT_EQ(pool.pages_free(), 3);
  pool.check();
}

TEST(KvPool, EvictsTheLeastRecentlyUsedLeafFirst) {
  auto pool = KvPool::create(4, 64).value();
  auto a = compute(pool, "a", tokens_from(1, 2 * kTokens));
  auto b = compute(pool, "b", tokens_from(1, 2 * kTokens));
  const auto a_pages = a, b_pages = b;
  pool.release_all(a);
  pool.release_all(b);
  EXPECT_EQ(pool.allocate(), a_pages[1]);
  EXPECT_EQ(pool.allocate(), a_pages[0]);
  pool.check();
  std::vector<int32_t> found;
  EXPECT_EQ(pool.match("a", tokens_from(1, 2 * kTokens), 2, found), 0);
  EXPECT_EQ(pool.match("b", tokens_from(1, 2 * kTokens), 2, found), 2);
  EXPECT_EQ(pool.allocate(), -1) << "everything is in use";
}

TEST(KvPool, RandomUseKeepsItsInvariants) {
  std::mt19937 random(7);
  auto pool = KvPool::create(24, 64).value();
  std::vector<std::vector<int32_t>> held;
  for (int round = 0; round < 20000; ++round) {
    if (held.size() < 5 && random() % 2 == 0) {
      // Few different tokens, so prefixes meet often; salts keep some apart.
      std::vector<TokenId> tokens;
      for (unsigned page = 0; page < random() % 5 + 1; ++page)
        tokens.insert(tokens.end(), kTokens, static_cast<TokenId>(random() % 3));
      const std::string salt = random() % 4 == 0 ? "s" : "";
      std::vector<int32_t> pages;
      int64_t have = pool.match(salt, tokens, static_cast<int64_t>(tokens.size()) / kTokens, pages);
      for (; have < static_cast<int64_t>(tokens.size()) / kTokens; ++have) {
        const int32_t page = pool.allocate();
        if (page < 0) break;
        pages.push_back(pool.publish(salt, have == 0 ? -1 : pages.back(), page_of(tokens, have), page));
      }
      held.push_back(std::move(pages));
    } else if (!held.empty()) {
      const size_t which = random() % held.size();
      pool.release_all(held[which]);
      held.erase(held.begin() + static_cast<int64_t>(which));
    }
    pool.check();
  }
  for (auto& pages : held) pool.release_all(pages);
  EXPECT_EQ(pool.pages_free(), pool.pages_total());
}

}  // namespace
}  // namespace millrace::engine
