#include "engine/internal/sampler.h"

#include <emmintrin.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "base/random.h"

namespace millrace::engine {
namespace {

constexpr int kBlock = 64;  // values per block maximum
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
      block_sum_(block_max_.size()),
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
  return draw_candidate(u);
}

// No top_k: weights of the whole vocabulary, of which top_p and min_p usually keep a few.
TokenId Sampler::draw_from_all(const float* logits, float max, float inverse_temperature,
                               const SamplingParams& params, double u) {
  float* weights = weights_.data();
  rows_.softmax_write(logits, vocab_, inverse_temperature, max, 1.0f, weights);
  if (params.min_p > 0) {
    // The float just below may be the double min_p itself, rounded: compare as the definition does.
    const double total = collect(static_cast<float>(params.min_p) * 0.999999f, params.min_p);
    if (params.top_p < 1) cut_top_p(logits, params.top_p * total);
    return candidates_.empty() ? rows_.argmax(logits, vocab_) : draw_candidate(u);
  }
  const double total = sum_blocks();
  if (params.top_p < 1) {
    // Most of the mass is in few tokens: look below 2^-12 of the likeliest only if that is not enough of it.
    for (const float threshold : {0x1p-12f, 0x1p-24f, 0.0f})
      if (collect(threshold, 0) >= params.top_p * total) break;
    cut_top_p(logits, params.top_p * total);
    return draw_candidate(u);
  }
  const double target = u * total;
  double sum = 0;
  TokenId last = 0;
  for (size_t block = 0; block < block_sum_.size(); ++block) {
    if (block_sum_[block] <= 0) continue;
    const int begin = static_cast<int>(block) * kBlock, end = std::min(begin + kBlock, vocab_);
    const bool here = sum + block_sum_[block] > target;
    double within = sum;
    for (int i = here ? begin : end; i < end; ++i) {
      if (!(weights[i] > 0)) continue;
      last = i;
      within += static_cast<double>(weights[i]);
      if (within > target) return i;
    }
    if (here) return last;  // rounding: the block's sum passed the target, its terms one by one did not
    sum += block_sum_[block];
  }
  return rows_.argmax(logits, vocab_);  // u * total rounded up to all of it
}

// Tokens of weight >= threshold (and >= least, and above zero) into candidates_, in id order; returns their
// mass.
double Sampler::collect(float threshold, double least) {
  candidates_.clear();
  double mass = 0;
  for (int begin = 0; begin < vocab_; begin += kBlock) {
    const int count = std::min(kBlock, vocab_ - begin);
    if (!(max_of(weights_.data() + begin, count) >= threshold)) continue;
    for (int i = begin; i < begin + count; ++i) {
      const float weight = weights_[static_cast<size_t>(i)];
      if (!(weight >= threshold) || !(weight > 0) || static_cast<double>(weight) < least) continue;
      candidates_.push_back({i, weight});
      mass += static_cast<double>(weight);
    }
  }
  return mass;
}

// Keeps the shortest head of candidates_' descending order whose mass reaches `wanted`; id order stays.
void Sampler::cut_top_p(const float* logits, double wanted) {
  std::ranges::fill(bin_mass_, 0.0);
  for (const auto& candidate : candidates_)
    bin_mass_[static_cast<size_t>(bin_of(candidate.value))] += static_cast<double>(candidate.value);
  // Whole bins from the top while the head falls short; the bin that reaches it is cut inside.
  int bin = kBins - 1;
  double head = 0;
  while (bin > 0 && head + bin_mass_[static_cast<size_t>(bin)] < wanted)
    head += bin_mass_[static_cast<size_t>(bin--)];
  border_.clear();
  for (const auto& candidate : candidates_)
    if (bin_of(candidate.value) == bin) border_.push_back(candidate);
  const auto order = [logits](const Candidate& a, const Candidate& b) {
    return larger(logits[a.id], a.id, logits[b.id], b.id);
  };
  std::ranges::sort(border_, order);
  size_t kept = 0;
  for (; kept < border_.size() && (kept == 0 || head < wanted); ++kept)
    head += static_cast<double>(border_[kept].value);
  const bool all = kept == border_.size();
  const Candidate first_dropped = all ? Candidate{} : border_[kept];
  std::erase_if(candidates_, [&](const Candidate& candidate) {
    const int own = bin_of(candidate.value);
    return own < bin || (own == bin && !all && !order(candidate, first_dropped));
  });
}

// candidates_ are in id order.
TokenId Sampler::draw_candidate(double u) const {
  double total = 0;
  for (const auto& candidate : candidates_) total += static_cast<double>(candidate.value);
  double sum = 0;
  TokenId last = candidates_.front().id;
  for (const auto& candidate : candidates_) {
    if (!(candidate.value > 0)) continue;
    last = candidate.id;
    sum += static_cast<double>(candidate.value);
    if (sum > u * total) return candidate.id;
  }
  return last;
}

// The sum of all weights, block by block (block_sum_): four sums a block, then their sum, so that adds do not
// wait for each other. NaN counts as nothing.
double Sampler::sum_blocks() {
  double total = 0;
  const __m128d zero = _mm_setzero_pd();
  for (size_t block = 0; block < block_sum_.size(); ++block) {
    const int begin = static_cast<int>(block) * kBlock, count = std::min(kBlock, vocab_ - begin);
    const float* weights = weights_.data() + begin;
    __m128d low = zero, high = zero;
    int i = 0;
    for (; i + 4 <= count; i += 4) {
      const __m128 four = _mm_max_ps(_mm_loadu_ps(weights + i), _mm_setzero_ps());  // NaN: the second operand
      low = _mm_add_pd(low, _mm_cvtps_pd(four));
      high = _mm_add_pd(high, _mm_cvtps_pd(_mm_movehl_ps(four, four)));
    }
    double lanes[2];
    _mm_storeu_pd(lanes, _mm_add_pd(low, high));
    double sum = lanes[0] + lanes[1];
    for (; i < count; ++i)
      if (weights[i] > 0) sum += static_cast<double>(weights[i]);
    block_sum_[block] = sum;
    total += sum;
  }
  return total;
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
