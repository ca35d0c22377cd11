// The MTP layer: a decoder layer of its own whose stream starts from the model's state at a position joined
// with the token after it (model/graph.h has the formula).
#include <algorithm>
#include <cmath>

#include "engine/internal/executor.h"
#include "engine/internal/shares.h"

namespace millrace::engine {

void Executor::draft(const DraftBatch& batch, std::byte* pool) {
  MR_CHECK(mtp_ != nullptr, "a model without MTP cannot guess");
  pool_ = pool;
  walk_ = &mtp_walk_;
  stream_ = mtp_residual_.as<float>();
  states_ = batch.states;
  again_ = batch.again;
  plan(
      {.tokens = batch.tokens, .segments = batch.segments, .logit_rows = batch.guess_rows, .state_rows = {}});
  team_.run([this](int thread) {
    if (by_columns_) {
      run_by_columns(thread);
    } else {
      run_by_rows(thread);
    }
    if (batch_.logit_rows.empty()) return;
    run_head(thread);
    run_guesses(thread);
  });
}

// A normed row of the stream times a gain: the stream is rotated in blocks on the INT8 path, gains want it
// unrotated.
void Executor::turned_gain(const float* gain, float* state) const {
  rows_.hadamard(state, config_.hidden_size, mtp_->hadamard_block);
  for (size_t j = 0; j < static_cast<size_t>(config_.hidden_size); ++j) state[j] *= gain[j];
}

// What the model's head reads of a guess, INT8: with the guess's own norm for the one folded into that head.
void Executor::guess_norm(const float* x, float* normed, const ActRows& to) const {
  rows_.rmsnorm(x, 0, nullptr, config_.rms_norm_eps, 1, config_.hidden_size, normed, 0);
  turned_gain(guess_gain_.data(), normed);
  rows_.hadamard(normed, config_.hidden_size, mtp_->hadamard_block);
  quantised(normed, joined_float_stride_, config_.hidden_size, 1, to);
}

// [norm(embed(token)) | norm(state)] of some rows of the batch, as `eh` reads it.
void Executor::join(int row_begin, int rows, float* joined, const ActRows& to) const {
  const auto width = static_cast<size_t>(config_.hidden_size);
  const auto norm_row = [&](const float* x, const float* gain, float* out) {
    rows_.rmsnorm(x, 0, gain, config_.rms_norm_eps, 1, config_.hidden_size, out, 0);
  };
  const float* states = again_ ? guess_state_.as<float>() : residual_.as<float>();
  const float* gain = again_ ? mtp_->head_norm_gain : mtp_->model_norm_gain;
  for (int i = 0; i < rows; ++i) {
    const auto row = static_cast<size_t>(row_begin + i);
    float* embedded = joined + i * joined_float_stride_;
    float* state = embedded + width;
    embed_row(*embed_, batch_.tokens[row], embedded);
    norm_row(embedded, mtp_->embed_norm_gain, embedded);
    norm_row(states + states_[row] * residual_stride_, nullptr, state);
    turned_gain(gain, state);
    norm_row(state, mtp_->hidden_norm_gain, state);
    rows_.hadamard(state, config_.hidden_size, mtp_->hadamard_block);
  }
  quantised(joined, joined_float_stride_, 2 * config_.hidden_size, rows, to);
}

void Executor::columns_join(int thread) {
  const int rows = static_cast<int>(batch_.tokens.size());
  ActRows input = shared_.joined_in;
  if (alone(rows, 4 * config_.hidden_size)) {
    const Scratch& own = scratch_[static_cast<size_t>(thread)];
    input = own.joined_in;
    join(0, rows, own.joined, input);
  } else {
    const Range mine = share(rows, thread, team_.size());
    join(mine.begin, mine.size(), shared_.joined + mine.begin * joined_float_stride_, input.at(mine.begin));
    team_.barrier();
  }
  const Range columns = column_share(mtp_->eh.n, thread, team_.size());
  linear(mtp_->eh, input, rows, columns.begin, columns.end, residual(0), residual_stride_, false);
  team_.barrier();
}

// The likeliest tokens, and the states from which to guess further. A thread looks at the logits it has just
// made; what the threads found is joined by the one that has the row.
void Executor::run_guesses(int thread) {
  const int rows = static_cast<int>(batch_.logit_rows.size());
  const Range columns = column_share(config_.vocab_size, thread, team_.size());
  const int width = std::min(columns.end, config_.vocab_size) - columns.begin;
  GuessPart* const found = &guess_parts_[static_cast<size_t>(thread) * static_cast<size_t>(max_logit_rows_)];
  for (int i = 0; i < rows && width > 0; ++i) {
    const float* part = logits(i) + columns.begin;
    found[i].token = columns.begin + rows_.argmax(part, width);
    rows_.softmax_stats(part, width, 1, &found[i].max, &found[i].sum);
  }
  team_.barrier();
  const Range mine = share(rows, thread, team_.size());
  for (int i = mine.begin; i < mine.end; ++i) {
    std::copy_n(residual(batch_.logit_rows[static_cast<size_t>(i)]), config_.hidden_size,
                guess_state_.as<float>() + i * residual_stride_);
    GuessPart best;
    for (int t = 0; t < team_.size(); ++t) {
      if (column_share(config_.vocab_size, t, team_.size()).size() == 0) continue;
      const GuessPart& part = guess_parts_[static_cast<size_t>(t * max_logit_rows_ + i)];
      if (t == 0 || part.max > best.max) {  // of equals the lowest token
        best = {part.token, part.max, part.sum + best.sum * std::exp(best.max - part.max)};
      } else {
        best.sum += part.sum * std::exp(part.max - best.max);
      }
    }
    guesses_[static_cast<size_t>(i)] = static_cast<TokenId>(best.token);
    guess_probabilities_[static_cast<size_t>(i)] = best.sum > 0 ? 1 / best.sum : 0;
  }
}

}  // namespace millrace::engine
