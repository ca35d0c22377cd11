#include "engine/eval.h"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "engine/internal/executor.h"
#include "engine/internal/kv_pool.h"
#include "engine/internal/sequence.h"
#include "model/tokenizer.h"

namespace millrace::engine {
namespace {

constexpr int kChunk = 64;  // rows whose logits are held at once: 12 MiB a model for 49,152 tokens

// One model that reads windows and gives the logits of every position.
struct Reader {
  static Expected<Reader> create(std::shared_ptr<const model::PackedModel> model,
                                 const EvalOptions& options) {
    Reader reader;
    const int64_t pages = Sequence::pages_for(options.window);
    reader.executor = MR_TRY(Executor::create(model, {.cpus = options.cpus,
                                                      .max_rows = kChunk,
                                                      .max_logit_rows = kChunk,
                                                      .max_positions = options.window}));
    reader.pool = MR_TRY(KvPool::create(pages, kv_shape_of(*model).page_bytes()));
    for (int64_t page = 0; page < pages; ++page) reader.pages.push_back(reader.pool.allocate());
    return reader;
  }
  void read(std::span<const TokenId> window, int64_t first, int rows) {
    wanted.resize(static_cast<size_t>(rows));
    std::iota(wanted.begin(), wanted.end(), 0);
    const StepSegment segment{pages.data(), first, 0, rows};
    executor->run(
        {window.subspan(static_cast<size_t>(first), static_cast<size_t>(rows)), {&segment, 1}, wanted},
        pool.base());
  }
  std::unique_ptr<Executor> executor;
  KvPool pool;
  std::vector<int32_t> pages;
  std::vector<int32_t> wanted;
};

struct Position {
  double loss = 0, reference_loss = 0, kl = 0;
  bool same_top = false;
};

// log sum exp(x - max) + max, and the largest's index.
double log_total(const float* logits, int vocab, int& top) {
  top = static_cast<int>(std::max_element(logits, logits + vocab) - logits);
  const auto max = static_cast<double>(logits[top]);
  double sum = 0;
  for (int i = 0; i < vocab; ++i) sum += std::exp(static_cast<double>(logits[i]) - max);
  return max + std::log(sum);
}

Position compare(const float* logits, const float* reference, int vocab, TokenId next) {
  int top = 0, reference_top = 0;
  const double total = log_total(logits, vocab, top);
  const double reference_total = log_total(reference, vocab, reference_top);
  Position out{.loss = total - static_cast<double>(logits[next]),
               .reference_loss = reference_total - static_cast<double>(reference[next]),
               .same_top = top == reference_top};
  for (int i = 0; i < vocab; ++i) {
    const double log_p = static_cast<double>(reference[i]) - reference_total;
    out.kl += std::exp(log_p) * (log_p - (static_cast<double>(logits[i]) - total));
  }
  return out;
}

}  // namespace

Expected<EvalResult> evaluate(std::shared_ptr<const model::PackedModel> model,
                              std::shared_ptr<const model::PackedModel> reference, std::string_view text,
                              const EvalOptions& options) {
  const int vocab = model->config().vocab_size;
  const int64_t longest = std::min(model->config().max_position, reference->config().max_position);
  if (reference->config().vocab_size != vocab)
    return invalid(fmt::format("the models have vocabularies of {} and {} tokens", vocab,
                               reference->config().vocab_size));
  if (options.window < 2 || options.window > longest)
    return invalid(
        fmt::format("the window is {} tokens, it must be between 2 and {}", options.window, longest),
        "window");
  const auto tokenizer = MR_TRY(model::Tokenizer::create(model->tokenizer_spec()));
  std::vector<TokenId> tokens;
  MR_TRY(tokenizer->encode(text, {.add_special = false}, 0, tokens));
  if (options.max_tokens > 0 && std::cmp_greater(tokens.size(), options.max_tokens))
    tokens.resize(static_cast<size_t>(options.max_tokens));
  if (tokens.size() < 2)
    return invalid(fmt::format("the text has {} tokens, at least 2 are needed", tokens.size()), "text");

  Reader own = MR_TRY(Reader::create(std::move(model), options));
  Reader other = MR_TRY(Reader::create(std::move(reference), options));
  EvalResult result;
  double loss = 0, reference_loss = 0, kl = 0;
  int64_t same = 0;
  std::vector<Position> positions(kChunk);
  std::vector<float> kls;
  for (size_t begin = 0; begin + 1 < tokens.size(); begin += static_cast<size_t>(options.window)) {
    const auto window = std::span<const TokenId>(tokens).subspan(
        begin, std::min(static_cast<size_t>(options.window), tokens.size() - begin));
    const auto scored = static_cast<int64_t>(window.size()) - 1;
    for (int64_t first = 0; first < scored; first += kChunk) {
      const int rows = static_cast<int>(std::min<int64_t>(kChunk, scored - first));
      own.read(window, first, rows);
      other.read(window, first, rows);
      own.executor->parallel(rows, [&](int row, int) {
        positions[static_cast<size_t>(row)] = compare(own.executor->logits(row), other.executor->logits(row),
                                                      vocab, window[static_cast<size_t>(first + row + 1)]);
      });
      for (int row = 0; row < rows; ++row) {
        const Position& position = positions[static_cast<size_t>(row)];
        loss += position.loss;
        reference_loss += position.reference_loss;
        kl += position.kl;
        kls.push_back(static_cast<float>(position.kl));
        result.kl_max = std::max(result.kl_max, position.kl);
        same += position.same_top;
      }
      result.tokens += rows;
    }
    if (options.progress)
      options.progress(static_cast<int64_t>(begin + window.size()), static_cast<int64_t>(tokens.size()));
  }
  const auto count = static_cast<double>(result.tokens);
  result.perplexity = std::exp(loss / count);
  result.reference_perplexity = std::exp(reference_loss / count);
  result.kl_mean = kl / count;
  const auto middle = kls.begin() + static_cast<int64_t>(kls.size() / 2);
  std::ranges::nth_element(kls, middle);
  result.kl_median = static_cast<double>(*middle);
  result.top1_agreement = static_cast<double>(same) / count;
  return result;
}

}  // namespace millrace::engine
