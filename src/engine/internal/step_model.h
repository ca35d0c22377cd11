// What the scheduler drives: something that runs one step over a batch of rows. The real one is Executor
// (executor.h); tests put a fake here.
#pragma once
#include <cstdint>
#include <functional>
#include <span>

#include "base/strong_id.h"

namespace millrace::engine {

// Consecutive new tokens of one sequence within a step.
struct StepSegment {
  // The sequence's KV pages; those up to first_position + rows are its own or shared.
  const int32_t* pages = nullptr;
  int64_t first_position = 0;  // the sequence's tokens before this already have their keys and values
  int row_begin = 0;           // rows [row_begin, row_begin + rows) of the step
  int rows = 0;
};

struct StepBatch {
  std::span<const TokenId> tokens;        // one a row
  std::span<const StepSegment> segments;  // in row order, covering every row
  std::span<const int32_t> logit_rows;    // rows whose logits are wanted, ascending
  // Rows whose last state draft() will read, ascending; holds logit_rows, or is empty: none.
  std::span<const int32_t> state_rows;
};

// Rows for the model's MTP layer. A row stands for a position whose state is known and for the token after
// it, and guesses the token after that.
struct DraftBatch {
  std::span<const TokenId> tokens;        // one a row: the token at the row's position + 1
  std::span<const StepSegment> segments;  // positions of the states
  // One a row: the row of the last run() (one of its state_rows) that it goes on from; with `again`, the
  // guess of the last draft().
  std::span<const int32_t> states;
  std::span<const int32_t>
      guess_rows;  // rows whose guess is wanted, ascending; the others leave keys and values
  bool again = false;
};

class StepModel {
 public:
  virtual ~StepModel() = default;
  virtual int vocab_size() const = 0;
  virtual int max_rows() const = 0;        // rows of a step at most
  virtual int max_logit_rows() const = 0;  // logit_rows of a step at most
  // Runs the step: writes keys and values of all rows into `pool`, and the logits of batch.logit_rows.
  virtual void run(const StepBatch& batch, std::byte* pool) = 0;
  // After run(): [vocab_size] logits of batch.logit_rows[index]; valid until the next run().
  virtual const float* logits(int index) const = 0;
  // Guesses ahead (speculative decoding with the model's own MTP layer): has draft().
  virtual bool drafts() const { return false; }
  // Runs the MTP layer: keys and values of all rows into `pool`, and a guess for each of batch.guess_rows.
  // logits() are gone then. Guesses never change what a step computes, so they need not be right.
  virtual void draft(const DraftBatch& /*batch*/, std::byte* /*pool*/) {}
  // After draft(): the likeliest token of batch.guess_rows[index], the lowest id among equals.
  virtual TokenId guess(int /*index*/) const { return 0; }
  virtual float guess_probability(int /*index*/) const { return 0; }  // what the MTP layer gives it
  // f(index, thread) for index in [0, count), spread over this model's compute threads.
  virtual void parallel(int count, const std::function<void(int index, int thread)>& f) = 0;
  virtual int threads() const = 0;
};

}  // namespace millrace::engine
