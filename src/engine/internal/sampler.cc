#include "engine/internal/sampler.h"

#include <xmmintrin.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "base/random.h"

namespace millrace::engine {
namespace {

constexpr double kGreedyBelow = 1e-5;  // vLLM's limit: smaller temperatures are greedy
constexpr int kBlock = 64;             // values per block maximum
constexpr float kLowest = -std::numeric_limits<float>::infinity();

bool larger(float a_value, TokenId a, float b_value, TokenId b) {
  return a_value > b_value || (a_value == b_value && a < b);
}

// Largest of `count` values; NaN is ignored (MAXPS returns its second operand then).
float max_of(const float* values, int count) {
  __m128 a = _mm_set1_ps(kLowest), b = a;
  int i = 0;
  for (; i + 8 <= count; i += 8) {
    a = _mm_max_ps(_mm_loadu_ps(values + i), a);
    b = _mm_max_ps(_mm_loadu_ps(values + i + 4), b);
  }
  a = _mm_max_ps(a, b);
  float lanes[4];
  _mm_storeu_ps(lanes, a);
  float max = std::max(std::max(lanes[0], lanes[1]), std::max(lanes[2], lanes[3]));
  for (; i < count; ++i)
    if (values[i] > max) max = values[i];
  return max;
}

double sum_of(const float* weights, int count) {
  double sum = 0;
  for (int i = 0; i < count; ++i) sum += static_cast<double>(weights[i]);
  return sum;
}

// Positive floats order as their bits do: exponent and three bits of mantissa make a bin. Weights are at
// most 1.
constexpr int kBinShift = 20;
constexpr int kBins = (std::bit_cast<int32_t>(1.0f) >> kBinShift) + 1;
int bin_of(float weight) { return std::bit_cast<int32_t>(weight) >> kBinShift; }

}  // namespace

Sampler::Sampler(int vocab_size, const kernels::RowKernels& rows)
    : vocab_(vocab_size),
      rows_(rows),
      logits_(static_cast<size_t>(vocab_size)),
      weights_(static_cast<size_t>(vocab_size)),
      block_max_(static_cast<size_t>(vocab_size + kBlock - 1) / kBlock),
      counts_(static_cast<size_t>(vocab_size)),
      bin_mass_(kBins) {}

TokenOut Sampler::sample(const SampleInput& input) {
  const float* logits = processed(input);
  TokenId token;
  if (input.params->temperature < kGreedyBelow) {
    token = rows_.argmax(logits, vocab_);
  } else {
    token = draw(logits, *input.params, uniform_at(input.params->seed, input.index));
  }
  if (input.top_logprobs < 0) return {.token = token};
  return logprobs(input.logits, token, input.top_logprobs);
}

TokenOut Sampler::logprobs(const float* logits, TokenId token, int top) {
  float max, sum;
  rows_.softmax_stats(logits, vocab_, 1.0f, &max, &sum);
  const double log_total = static_cast<double>(max) + std::log(static_cast<double>(sum));
  // JSON has no infinity: a token that cannot happen shows the largest negative float.
  const auto logprob = [&](float logit) {
    return static_cast<float>(std::max(static_cast<double>(logit) - log_total, -3.4e38));
  };
  TokenOut out{.token = token, .logprob = logprob(logits[token])};
  if (top > 0) {
    keep_largest(logits, std::min(top, vocab_));
    out.top.reserve(candidates_.size());
    for (const auto& candidate : candidates_) out.top.push_back({candidate.id, logprob(candidate.value)});
  }
  return out;
}

// The logits after steps 2 to 4: the row itself when nothing changes it.
const float* Sampler::processed(const SampleInput& input) {
  const SamplingParams& params = *input.params;
  const bool penalties =
      params.repetition_penalty != 1.0 || params.frequency_penalty != 0.0 || params.presence_penalty != 0.0;
  if (input.banned.empty() && params.logit_bias.empty() && !penalties) return input.logits;
  std::copy_n(input.logits, vocab_, logits_.begin());
  for (const TokenId id : input.banned) logits_[static_cast<size_t>(id)] = kLowest;
  for (const auto& [id, bias] : params.logit_bias) logits_[static_cast<size_t>(id)] += bias;
  if (penalties) apply_penalties(input);
  return logits_.data();
}

void Sampler::apply_penalties(const SampleInput& input) {
  const SamplingParams& params = *input.params;
  touched_.clear();
  const auto repetition = static_cast<float>(params.repetition_penalty);
  // counts_: 0 unseen; n > 0: made n - 1 times in the reply (1: in the prompt only).
  const auto see = [&](TokenId id, int32_t times) {
    int32_t& count = counts_[static_cast<size_t>(id)];
    if (count == 0) {
      touched_.push_back(id);
      count = 1;
    }
    count += times;
  };
  if (repetition != 1.0f)
    for (const TokenId id : input.prompt) see(id, 0);
  for (const TokenId id : input.generated) see(id, 1);
  for (const TokenId id : touched_) {
    float& logit = logits_[static_cast<size_t>(id)];
    const int32_t made = std::exchange(counts_[static_cast<size_t>(id)], 0) - 1;
    if (repetition != 1.0f) logit = logit > 0 ? logit / repetition : logit * repetition;
    if (made > 0) {
      logit -= static_cast<float>(params.frequency_penalty) * static_cast<float>(made);
      logit -= static_cast<float>(params.presence_penalty);
    }
  }
}

TokenId Sampler::draw(const float* logits, const SamplingParams& params, double u) {
  const auto inverse_temperature = static_cast<float>(1.0 / params.temperature);
  const float max = max_of(logits, vocab_);
  // All tokens excluded, or an infinite logit: there is no distribution; take the largest.
  if (!std::isfinite(max)) return rows_.argmax(logits, vocab_);
  if (params.top_k <= 0 || params.top_k >= vocab_)
    return draw_from_all(logits, max, inverse_temperature, params, u);

  keep_largest(logits, params.top_k);
  const int kept = static_cast<int>(candidates_.size());
  for (int i = 0; i < kept; ++i) logits_[static_cast<size_t>(i)] = candidates_[static_cast<size_t>(i)].value;
  rows_.softmax_write(logits_.data(), kept, inverse_temperature, max, 1.0f, weights_.data());
  for (int i = 0; i < kept; ++i) candidates_[static_cast<size_t>(i)].value = weights_[static_cast<size_t>(i)];
  if (params.min_p > 0)
    std::erase_if(candidates_,
                  [&](const Candidate& c) { return static_cast<double>(c.value) < params.min_p; });
  if (params.top_p < 1) keep_top_p(params.top_p);
  std::ranges::sort(candidates_, {}, &Candidate::id);
  double total = 0;
  for (const auto& candidate : candidates_) total += static_cast<double>(candidate.value);
  double sum = 0;
  TokenId last = candidates_.front().id;
  for (const auto& candidate : candidates_) {
    if (candidate.value <= 0) continue;
    last = candidate.id;
    sum += static_cast<double>(candidate.value);
    if (sum > u * total) return candidate.id;
  }
  return last;
}

// No top_k: weights of the whole vocabulary. What is dropped gets weight zero.
TokenId Sampler::draw_from_all(const float* logits, float max, float inverse_temperature,
                               const SamplingParams& params, double u) {
  float* weights = weights_.data();
  rows_.softmax_write(logits, vocab_, inverse_temperature, max, 1.0f, weights);
  for (int i = 0; i < vocab_; ++i)  // NaN, and what min_p drops
    if (!(static_cast<double>(weights[i]) >= params.min_p)) weights[i] = 0;
  if (params.top_p < 1) {
    std::ranges::fill(bin_mass_, 0.0);
    for (int i = 0; i < vocab_; ++i)
      bin_mass_[static_cast<size_t>(bin_of(weights[i]))] += static_cast<double>(weights[i]);
    double total = 0;
    for (const double mass : bin_mass_) total += mass;
    // Whole bins from the top while the head falls short of top_p; the bin that reaches it is cut inside.
    int bin = kBins - 1;
    double head = 0;
    while (bin > 0 && head + bin_mass_[static_cast<size_t>(bin)] < params.top_p * total)
      head += bin_mass_[static_cast<size_t>(bin--)];
    candidates_.clear();
    for (int i = 0; i < vocab_; ++i)
      if (weights[i] > 0 && bin_of(weights[i]) == bin) candidates_.push_back({i, logits[i]});
    std::ranges::sort(candidates_, [](const Candidate& a, const Candidate& b) {
      return larger(a.value, a.id, b.value, b.id);
    });
    size_t kept = 0;
    for (; kept < candidates_.size() && (kept == 0 || head < params.top_p * total); ++kept)
      head += static_cast<double>(weights[candidates_[kept].id]);
    for (size_t i = kept; i < candidates_.size(); ++i) weights[candidates_[i].id] = 0;
    for (int i = 0; i < vocab_; ++i)
      if (bin_of(weights[i]) < bin) weights[i] = 0;
  }
  const double target = u * sum_of(weights, vocab_);
  double sum = 0;
  TokenId last = 0;
  for (int i = 0; i < vocab_; ++i) {
    if (weights[i] <= 0) continue;
    last = i;
    sum += static_cast<double>(weights[i]);
    if (sum > target) return i;
  }
  return last;
}

// The k-th largest block maximum bounds the k-th largest value from below, so few values are looked at twice.
void Sampler::keep_largest(const float* values, int k) {
  const int blocks = static_cast<int>(block_max_.size());
  float bound = kLowest;
  if (k < blocks) {
    for (int block = 0; block < blocks; ++block)
      block_max_[static_cast<size_t>(block)] =
          max_of(values + block * kBlock, std::min(kBlock, vocab_ - block * kBlock));
    std::vector<float>& maxima = weights_;  // free here
    std::copy(block_max_.begin(), block_max_.end(), maxima.begin());
    std::nth_element(maxima.begin(), maxima.begin() + (k - 1), maxima.begin() + blocks, std::greater<>());
    bound = maxima[static_cast<size_t>(k - 1)];
  }
  candidates_.clear();
  for (int block = 0; block < blocks; ++block) {
    if (k < blocks && block_max_[static_cast<size_t>(block)] < bound) continue;
    const int end = std::min((block + 1) * kBlock, vocab_);
    for (int i = block * kBlock; i < end; ++i)
      if (values[i] >= bound) candidates_.push_back({i, values[i]});
  }
  const auto order = [](const Candidate& a, const Candidate& b) {
    return larger(a.value, a.id, b.value, b.id);
  };
  const auto wanted = std::min(static_cast<size_t>(k), candidates_.size());
  std::partial_sort(candidates_.begin(), candidates_.begin() + static_cast<int64_t>(wanted),
                    candidates_.end(), order);
  candidates_.resize(wanted);
}

// candidates_ are descending.
void Sampler::keep_top_p(double top_p) {
  double total = 0;
  for (const auto& candidate : candidates_) total += static_cast<double>(candidate.value);
  double head = 0;
  size_t kept = 0;
  while (kept < candidates_.size() && (kept == 0 || head < top_p * total))
    head += static_cast<double>(candidates_[kept++].value);
  candidates_.resize(kept);
}

}  // namespace millrace::engine
