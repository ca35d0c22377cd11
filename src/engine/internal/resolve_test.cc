#include "engine/internal/resolve.h"

#include <gtest/gtest.h>

#include "base/granted_memory.h"
#include "base/units.h"

namespace millrace::engine {
namespace {

constexpr kernels::KvShape kShape{.layers = 32, .kv_heads = 8, .key_dim = 128, .value_dim = 128};  // 4 MiB a page

model::ModelConfig long_context() {
  model::ModelConfig config;
  config.max_position = 1 << 20;
  return config;
}

size_t automatic_cache(int groups) {
  const auto resolved = resolve_options({.groups_on_host = groups}, long_context(), kShape);
  EXPECT_TRUE(resolved) << resolved.error().message;
  return resolved ? resolved->options.kv_cache_bytes : 0;
}

TEST(Resolve, GroupsOfOneHostShareTheAutomaticCache) {
  const size_t alone = automatic_cache(1);
  EXPECT_LE(alone, granted_memory().total_bytes / 4);
  for (const int groups : {2, 3, 8}) EXPECT_EQ(automatic_cache(groups), alone / static_cast<size_t>(groups));
}

TEST(Resolve, TheCacheIsNoLargerThanEverySeatCanUse) {
  for (const int groups : {1, 2}) {
    const auto resolved = resolve_options({.max_model_len = 64, .max_num_seqs = 1, .groups_on_host = groups},
                                          long_context(), kShape);
    ASSERT_TRUE(resolved);
    EXPECT_EQ(resolved->pages, 64 / kernels::kPageTokens + 1);
  }
}

TEST(Resolve, ACacheThatNobodyCanHaveIsRefused) {
  const size_t granted = granted_memory().total_bytes;
  const auto resolve = [](size_t bytes, int groups) {
    return resolve_options({.kv_cache_bytes = bytes, .groups_on_host = groups}, long_context(), kShape);
  };
  EXPECT_TRUE(resolve(granted, 1));
  for (const auto& refused : {resolve(granted + 1, 1), resolve(granted / 2 + 1, 2), resolve(SIZE_MAX, 1)}) {
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().code, Code::invalid_argument);
    EXPECT_EQ(refused.error().param, "kv_cache_bytes");
    EXPECT_NE(refused.error().message.find(std::to_string(granted)), std::string::npos);
  }
}

TEST(Resolve, AGivenCacheIsNotDivided) {
  const auto resolved =
      resolve_options({.kv_cache_bytes = 64 * kMiB, .groups_on_host = 4}, long_context(), kShape);
  ASSERT_TRUE(resolved);
  EXPECT_EQ(resolved->options.kv_cache_bytes, 64 * kMiB);
  EXPECT_EQ(resolve_options({.groups_on_host = 0}, long_context(), kShape).error().code,
            Code::invalid_argument);
}

}  // namespace
}  // namespace millrace::engine
