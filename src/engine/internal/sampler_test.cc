#include "engine/internal/sampler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <random>
#include <set>

#include "base/random.h"

namespace millrace::engine {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// The definition in plain double precision: the kept set with its probabilities.
struct Oracle {
  std::map<TokenId, double> kept;
};
Oracle oracle(const std::vector<float>& logits, const SamplingParams& params,
              const std::vector<TokenId>& prompt = {}, const std::vector<TokenId>& generated = {},
              const std::vector<TokenId>& banned = {}) {
  std::vector<double> x(logits.begin(), logits.end());
  for (const TokenId id : banned) x[static_cast<size_t>(id)] = -kInfinity;
  for (const auto& [id, bias] : params.logit_bias) x[static_cast<size_t>(id)] += bias;
  std::set<TokenId> seen(prompt.begin(), prompt.end());
  seen.insert(generated.begin(), generated.end());
  for (const TokenId id : seen) {
    double& value = x[static_cast<size_t>(id)];
    value = value > 0 ? value / params.repetition_penalty : value * params.repetition_penalty;
    const auto count = std::ranges::count(generated, id);
    value -=
        params.frequency_penalty * static_cast<double>(count) + (count > 0 ? params.presence_penalty : 0);
  }
  std::vector<TokenId> order(x.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<TokenId>(i);
  std::ranges::sort(order, [&](TokenId a, TokenId b) {
    const double va = x[static_cast<size_t>(a)], vb = x[static_cast<size_t>(b)];
    return va > vb || (va == vb && a < b);
  });
  const double temperature = params.temperature < 1e-5 ? 1 : params.temperature;
  const double max = x[static_cast<size_t>(order[0])];
  const auto weight = [&](TokenId id) { return std::exp((x[static_cast<size_t>(id)] - max) / temperature); };
  if (params.temperature < 1e-5) order.resize(1);
  std::erase_if(order, [&](TokenId id) { return weight(id) < params.min_p; });
  if (params.top_k > 0 && static_cast<size_t>(params.top_k) < order.size())
    order.resize(static_cast<size_t>(params.top_k));
  double total = 0, head = 0;
  for (const TokenId id : order) total += weight(id);
  size_t kept = 0;
  while (kept < order.size() && (kept == 0 || head < params.top_p * total)) head += weight(order[kept++]);
  if (params.top_p < 1) order.resize(kept);
  Oracle out;
  total = 0;
  for (const TokenId id : order) total += weight(id);
  for (const TokenId id : order)
    if (weight(id) > 0) out.kept[id] = weight(id) / total;
  return out;
}

std::vector<float> random_logits(std::mt19937& random, int count, float spread) {
  std::normal_distribution<float> normal(0, spread);
  std::vector<float> logits(static_cast<size_t>(count));
  for (float& value : logits) value = normal(random);
  return logits;
}

// Draws with many indices: every token drawn is in the oracle's set, and the counts fit its probabilities.
void check_distribution(const std::vector<float>& logits, const SamplingParams& params,
                        const std::vector<TokenId>& prompt = {}, const std::vector<TokenId>& generated = {},
                        const std::vector<TokenId>& banned = {}, int draws = 20000) {
  Sampler sampler(static_cast<int>(logits.size()), kernels::row_kernels());
  const Oracle want = oracle(logits, params, prompt, generated, banned);
  std::map<TokenId, int> counts;
  for (int i = 0; i < draws; ++i) {
    const TokenId token = sampler
                              .sample({.logits = logits.data(),
                                       .params = &params,
                                       .prompt = prompt,
                                       .generated = generated,
                                       .banned = banned,
                                       .index = static_cast<uint64_t>(i)})
                              .token;
    ASSERT_TRUE(want.kept.contains(token))
        << "token " << token << " is not in the kept set of " << want.kept.size();
    ++counts[token];
  }
  // Chi-square over cells of at least 5 expected draws, the rest together; mean d, deviation sqrt(2 d).
  double chi2 = 0, rest_expected = 0;
  int cells = 0, rest = 0;
  for (const auto& [token, p] : want.kept) {
    const double expected = p * draws;
    if (expected < 5) {
      rest_expected += expected;
      rest += counts[token];
      continue;
    }
    chi2 += (counts[token] - expected) * (counts[token] - expected) / expected;
    ++cells;
  }
  if (rest_expected >= 5) {
    chi2 += (rest - rest_expected) * (rest - rest_expected) / rest_expected;
    ++cells;
  }
  const double degrees = std::max(cells - 1, 1);
  EXPECT_LT(chi2, degrees + 5 * std::sqrt(2 * degrees)) << "over " << cells << " cells";
  if (cells > 30) {
    EXPECT_GT(chi2, degrees - 5 * std::sqrt(2 * degrees)) << "draws too even to be random";
  }
}

TEST(Sampler, DistributionsFitTheOracle) {
  std::mt19937 random(1);
  for (const int vocab : {3, 17, 300, 5000}) {
    const auto logits = random_logits(random, vocab, 2.5f);
    check_distribution(logits, {.seed = 1});
    check_distribution(logits, {.temperature = 0.6, .seed = 2});
    check_distribution(logits, {.top_k = 7, .seed = 3});
    check_distribution(logits, {.top_p = 0.7, .seed = 4});
    check_distribution(logits, {.min_p = 0.1, .seed = 5});
    check_distribution(logits, {.temperature = 1.7, .top_p = 0.9, .top_k = 40, .min_p = 0.02, .seed = 6});
    check_distribution(logits, {.temperature = 5.0, .top_p = 0.99, .seed = 7});
  }
}

TEST(Sampler, PenaltiesBiasAndBansFitTheOracle) {
  std::mt19937 random(2);
  const auto logits = random_logits(random, 40, 2.0f);
  const std::vector<TokenId> prompt = {1, 2, 3, 3}, generated = {3, 4, 4, 4, 5}, banned = {0, 7};
  check_distribution(logits, {.presence_penalty = 0.7, .frequency_penalty = 0.4, .seed = 1}, prompt,
                     generated);
  check_distribution(logits, {.repetition_penalty = 1.5, .seed = 2}, prompt, generated);
  check_distribution(logits, {.logit_bias = {{9, 3.0f}, {10, -100.0f}}, .seed = 3}, prompt, generated,
                     banned);
  check_distribution(logits,
                     {.top_p = 0.8,
                      .top_k = 20,
                      .presence_penalty = -0.5,
                      .frequency_penalty = 0.2,
                      .repetition_penalty = 0.8,
                      .logit_bias = {{4, 2.0f}},
                      .seed = 4},
                     prompt, generated, banned);
  // Twice in a row: no state is left behind.
  Sampler sampler(40, kernels::row_kernels());
  const SamplingParams params{.repetition_penalty = 1.5, .seed = 9};
  const SampleInput input{
      .logits = logits.data(), .params = &params, .prompt = prompt, .generated = generated};
  EXPECT_EQ(sampler.sample(input).token, sampler.sample(input).token);
}

// The sets themselves, by drawing at the edges: with every u the same tokens can come.
TEST(Sampler, KeptSetsAreExact) {
  std::mt19937 random(3);
  for (int round = 0; round < 40; ++round) {
    const int vocab = 64 + static_cast<int>(random() % 2000);
    auto logits = random_logits(random, vocab, 3.0f);
    for (int i = 0; i < vocab / 4; ++i)
      logits[random() % logits.size()] = logits[random() % logits.size()];  // ties
    SamplingParams params{.temperature = 8.0};
    if (round % 2 == 0) params.top_k = 1 + static_cast<int>(random() % 12);
    if (round % 3 == 0) params.top_p = 0.02 + 0.001 * static_cast<double>(random() % 20);
    if (params.top_k == 0 && params.top_p == 1) params.min_p = 0.5;
    const Oracle want = oracle(logits, params);
    if (want.kept.size() > 60) continue;
    Sampler sampler(vocab, kernels::row_kernels());
    std::set<TokenId> seen;
    for (uint64_t index = 0; index < 60 * want.kept.size(); ++index)
      seen.insert(sampler.sample({.logits = logits.data(), .params = &params, .index = index}).token);
    std::set<TokenId> all;
    for (const auto& [token, p] : want.kept) all.insert(token);
    EXPECT_EQ(seen, all) << "round " << round;
  }
}

TEST(Sampler, GreedyTakesTheLargestAndTheLowestIdAmongEquals) {
  Sampler sampler(5, kernels::row_kernels());
  const SamplingParams greedy{.temperature = 0};
  const float logits[] = {1, 3, 3, -kInfinity, 2};
  EXPECT_EQ(sampler.sample({.logits = logits, .params = &greedy}).token, 1);
  const std::vector<TokenId> banned = {1};
  EXPECT_EQ(sampler.sample({.logits = logits, .params = &greedy, .banned = banned}).token, 2);
  const SamplingParams biased{.temperature = 0, .logit_bias = {{4, 1.5f}}};
  EXPECT_EQ(sampler.sample({.logits = logits, .params = &biased}).token, 4);
  const SamplingParams top1{.temperature = 1, .top_k = 1};
  for (uint64_t i = 0; i < 50; ++i)
    EXPECT_EQ(sampler.sample({.logits = logits, .params = &top1, .index = i}).token, 1);
}

TEST(Sampler, LogprobsAreOfTheModelsOwnDistribution) {
  std::mt19937 random(4);
  const auto logits = random_logits(random, 3000, 3.0f);
  Sampler sampler(3000, kernels::row_kernels());
  const SamplingParams params{.temperature = 0.3, .top_k = 5, .logit_bias = {{17, 50.0f}}};
  const TokenOut out = sampler.sample({.logits = logits.data(), .params = &params, .top_logprobs = 20});
  EXPECT_EQ(out.token, 17);
  double max = -kInfinity, sum = 0;
  for (const float x : logits) max = std::max(max, static_cast<double>(x));
  for (const float x : logits) sum += std::exp(x - max);
  EXPECT_NEAR(out.logprob, logits[17] - max - std::log(sum), 1e-5);
  ASSERT_EQ(out.top.size(), 20u);
  std::vector<TokenId> order(3000);
  for (int i = 0; i < 3000; ++i) order[static_cast<size_t>(i)] = i;
  std::ranges::sort(order, [&](TokenId a, TokenId b) {
    return logits[static_cast<size_t>(a)] > logits[static_cast<size_t>(b)];
  });
  for (size_t i = 0; i < 20; ++i) {
    EXPECT_EQ(out.top[i].token, order[i]);
    EXPECT_NEAR(out.top[i].logprob, logits[static_cast<size_t>(order[i])] - max - std::log(sum), 1e-5);
  }
}

TEST(Sampler, BrokenLogitsGiveATokenAndNoCrash) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (const auto& logits : {std::vector<float>(300, nan), std::vector<float>(300, -kInfinity),
                             std::vector<float>(300, kInfinity), std::vector<float>(300, 0.0f)}) {
    Sampler sampler(300, kernels::row_kernels());
    for (const auto& params : {SamplingParams{}, SamplingParams{.top_p = 0.5}, SamplingParams{.top_k = 3},
                               SamplingParams{.temperature = 0}, SamplingParams{.min_p = 1.0},
                               SamplingParams{.temperature = 1e-4, .top_p = 0.1}}) {
      const TokenOut out = sampler.sample({.logits = logits.data(), .params = &params, .top_logprobs = 3});
      EXPECT_GE(out.token, 0);
      EXPECT_LT(out.token, 300);
    }
  }
  // One NaN among numbers is never drawn.
  std::vector<float> logits(300, 0.0f);
  logits[5] = nan;
  Sampler sampler(300, kernels::row_kernels());
  for (uint64_t i = 0; i < 2000; ++i) {
    const SamplingParams all{}, top{.top_k = 299}, nucleus{.top_p = 0.999};
    for (const auto* params : {&all, &top, &nucleus})
      ASSERT_NE(sampler.sample({.logits = logits.data(), .params = params, .index = i}).token, 5);
  }
}

TEST(Sampler, SameSeedAndIndexSameTokenOtherwiseOthers) {
  std::mt19937 random(6);
  const auto logits = random_logits(random, 1000, 1.0f);
  Sampler sampler(1000, kernels::row_kernels());
  std::set<TokenId> by_seed, by_index;
  for (uint64_t i = 0; i < 100; ++i) {
    const SamplingParams params{.seed = i}, fixed{.seed = 1};
    const SampleInput input{.logits = logits.data(), .params = &params};
    EXPECT_EQ(sampler.sample(input).token, sampler.sample(input).token);
    by_seed.insert(sampler.sample(input).token);
    by_index.insert(sampler.sample({.logits = logits.data(), .params = &fixed, .index = i}).token);
  }
  EXPECT_GT(by_seed.size(), 50u);
  EXPECT_GT(by_index.size(), 50u);
}

}  // namespace
}  // namespace millrace::engine
