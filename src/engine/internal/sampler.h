// The next token from a row of logits: a pure function of (logits, parameters, history, seed, index).
//
// The steps and their order are vLLM's (v1 sampler):
//   1. log-probabilities, if asked for, come from the model's own distribution, before everything below;
//   2. min_tokens: tokens that would stop the reply get -infinity (the caller lists them);
//   3. logit_bias is added;
//   4. repetition_penalty r over prompt and reply (x > 0 ? x / r : x * r), then
//      frequency_penalty * count and presence_penalty over the reply are subtracted;
//   5. temperature 0 (below 1e-5): the largest, the lowest id among equals; otherwise divide by the
//      temperature, and
//   6. min_p: drop what is less likely than min_p times the likeliest;
//   7. top_k: keep the k largest (vLLM keeps ties with the k-th; here the lowest ids win, so exactly k
//      stay);
//   8. top_p over what is left: keep the shortest head of the descending order whose probability reaches
//      top_p;
//   9. draw: with u = uniform_at(seed, index) and weights in id order, the first token whose running sum
//      exceeds u * total. (vLLM draws with exponential noise from a generator's state; ours needs no state,
//      so a request that moves to another process draws the same.)
// Weights are the canonical kernels' exponentials, added in double in id order: the same bits on every level.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "engine/request.h"
#include "kernels/rows.h"

namespace millrace::engine {

struct SampleInput {
  const float* logits = nullptr;  // [vocab], not changed
  const SamplingParams* params = nullptr;
  std::span<const TokenId> prompt, generated;  // history, for penalties
  std::span<const TokenId> banned;             // step 2; empty once min_tokens are made
  uint64_t index = 0;                          // of the token to draw in the reply: resumed tokens count
  int top_logprobs = -1;                       // as GenerateRequest::top_logprobs
};

inline constexpr double kGreedyBelow = 1e-5;  // vLLM's limit: smaller temperatures are greedy

// One per thread: it owns scratch memory of the vocabulary's size and nothing else.
class Sampler {
 public:
  Sampler(int vocab_size, const kernels::RowKernels& rows);
  TokenOut sample(const SampleInput& input);
  // The log-probability of `token` and of the `top` likeliest under softmax(logits); for prompts.
  TokenOut logprobs(const float* logits, TokenId token, int top);

 private:
  struct Candidate {
    TokenId id;
    float value;
  };
  const float* processed(const SampleInput& input);
  void apply_penalties(const SampleInput& input);
  TokenId draw(const float* logits, const SamplingParams& params, double u);
  TokenId draw_from_all(const float* logits, float max, float inverse_temperature,
                        const SamplingParams& params, double u);
  double collect(float threshold, double least);
  void cut_top_p(const float* logits, double wanted);
  TokenId draw_candidate(double u) const;
  double sum_blocks();
  void keep_largest(const float* values, int k);  // the k largest of [vocab] into candidates_, descending
  void keep_top_p(double top_p);                  // over candidates_ (with weights), by mass

  const int vocab_;
  const kernels::RowKernels& rows_;
  std::vector<float> logits_, weights_, block_max_;
  std::vector<double> block_sum_;
  std::vector<int32_t> counts_;  // zero between calls
  std::vector<TokenId> touched_;
  std::vector<Candidate> candidates_, border_;
  std::vector<double> bin_mass_;
};

}  // namespace millrace::engine
