// What a packed form costs in accuracy: one text under two packed models of the same checkpoint.
//
// The text is cut into windows of `window` tokens, each a sequence of its own that starts at position 0; in
// every window the tokens after the first are scored. Perplexity = exp(mean -log p(token)); KL is from the
// reference's distribution to the other's, in nats, at each scored position; top-1 agreement is the share of
// positions where both put the same token first (lowest id among equals).
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "model/packed_model.h"

namespace millrace::engine {

struct EvalOptions {
  int window = 512;              // tokens
  int64_t max_tokens = 0;        // of the text, from its start; 0: all
  std::vector<int> cpus = {-1};  // one thread each
  std::function<void(int64_t tokens_done, int64_t tokens_total)> progress;  // after each window; may be empty
};

struct EvalResult {
  double perplexity = 0;  // of `model`
  double reference_perplexity = 0;
  // Nats, reference || model. With a mixture of experts a few positions at which a router picks another
  // expert can be most of the mean; the median says what the others cost.
  double kl_mean = 0, kl_median = 0, kl_max = 0;
  double top1_agreement = 0;  // 0 to 1
  int64_t tokens = 0;         // scored
};

// Both models must have one vocabulary; the text is tokenized by `model`'s tokenizer, special tokens as plain
// text.
Expected<EvalResult> evaluate(std::shared_ptr<const model::PackedModel> model,
                              std::shared_ptr<const model::PackedModel> reference, std::string_view text,
                              const EvalOptions& options);

}  // namespace millrace::engine
