// A step by columns, and the head: every product's output channels are shared among the threads.
//
// A barrier stands wherever a thread reads what another wrote. Small work on one row (norm, quantisation) is
// done by every thread for itself instead, which costs less than the barrier.
#include "engine/internal/executor.h"
#include "kernels/gemm_s8.h"

namespace millrace::engine {
namespace {

struct Range {
  int begin, end;
};
Range share(int count, int thread, int threads) {
  return {static_cast<int>(int64_t{count} * thread / threads),
          static_cast<int>(int64_t{count} * (thread + 1) / threads)};
}
Range column_share(int n, int thread, int threads) {
  const int blocks = static_cast<int>(kernels::padded_n(n) / kernels::kGemmNBlock);
  const Range range = share(blocks, thread, threads);
  return {range.begin * kernels::kGemmNBlock, range.end * kernels::kGemmNBlock};
}

}  // namespace

void Executor::run_by_columns(int thread) {
  const int rows = static_cast<int>(batch_.tokens.size());
  const Range mine = share(rows, thread, team_.size());
  size_t counter = 0;
  for (const Stage& stage : stages_) {
    for (const Op& op : stage.ops) {
      switch (op.kind) {
        case Op::Kind::embed:
          embed(std::get<model::EmbedModule>(*op.module), mine.begin, mine.end - mine.begin);
          team_.barrier();
          break;
        case Op::Kind::attention_in:
          columns_attention_in(std::get<model::AttentionModule>(*op.module), thread);
          break;
        case Op::Kind::attention_out:
          columns_attention_out(std::get<model::AttentionModule>(*op.module), thread, next_[counter++]);
          break;
        case Op::Kind::ffn:
          columns_ffn(std::get<model::FfnModule>(*op.module), thread);
          break;
      }
    }
  }
}

// The normed residual rows as every thread may read them.
const Executor::Scratch& Executor::columns_norm(const float* gain, int thread) {
  const int rows = static_cast<int>(batch_.tokens.size());
  if (rows == 1) {
    norm(residual(0), gain, 1, scratch_[static_cast<size_t>(thread)], 0);
    return scratch_[static_cast<size_t>(thread)];
  }
  const Range mine = share(rows, thread, team_.size());
  norm(residual(mine.begin), gain, mine.end - mine.begin, shared_, mine.begin);
  team_.barrier();
  return shared_;
}

void Executor::columns_attention_in(const model::AttentionModule& module, int thread) {
  const int rows = static_cast<int>(batch_.tokens.size());
  const Scratch& input = columns_norm(module.norm_gain, thread);
  const Range columns = column_share(module.qkv.n, thread, team_.size());
  linear(module.qkv, input, input.normed, float_stride_, rows, columns.begin, columns.end, qkv(0),
         qkv_stride_, false);
  team_.barrier();
  if (whole_segments_) return;
  for (size_t i = static_cast<size_t>(thread); i < pieces_.size(); i += static_cast<size_t>(team_.size()))
    rope_and_write(module, pieces_[i]);
  team_.barrier();
}

void Executor::columns_attention_out(const model::AttentionModule& module, int thread,
                                     std::atomic<int>& next) {
  const int rows = static_cast<int>(batch_.tokens.size());
  const Scratch& own = scratch_[static_cast<size_t>(thread)];
  const int pieces = static_cast<int>(pieces_.size());
  const auto attended = [&](int row) { return shared_.attended + row * attended_stride_; };
  const Scratch* input = &shared_;
  if (whole_segments_) {  // a sequence's keys are written and read by the same thread
    for (int i; (i = next.fetch_add(1, std::memory_order_relaxed)) < pieces;) {
      const Piece& piece = pieces_[static_cast<size_t>(i)];
      rope_and_write(module, piece);
      attend(module, piece, own, attended(piece.row_begin), 0, config_.kv_heads);
      quantise(attended(piece.row_begin), attended_stride_, module.o.k, piece.rows, shared_, piece.row_begin);
    }
    team_.barrier();
  } else {
    for (int i; (i = next.fetch_add(1, std::memory_order_relaxed)) < pieces * config_.kv_heads;) {
      const Piece& piece = pieces_[static_cast<size_t>(i / config_.kv_heads)];
      const int head = i % config_.kv_heads;
      attend(module, piece, own, attended(piece.row_begin), head, head + 1);
    }
    team_.barrier();
    if (rows == 1) {
      quantise(attended(0), attended_stride_, module.o.k, 1, own, 0);
      input = &own;
    } else {
      const Range mine = share(rows, thread, team_.size());
      quantise(attended(mine.begin), attended_stride_, module.o.k, mine.end - mine.begin, shared_,
               mine.begin);
      team_.barrier();
    }
  }
  const Range columns = column_share(module.o.n, thread, team_.size());
  linear(module.o, *input, shared_.attended, attended_stride_, rows, columns.begin, columns.end, residual(0),
         residual_stride_, true);
  team_.barrier();
}

void Executor::columns_ffn(const model::FfnModule& module, int thread) {
  const int rows = static_cast<int>(batch_.tokens.size());
  const Scratch* input = &columns_norm(module.norm_gain, thread);
  Range columns = column_share(module.gate_up.n, thread, team_.size());
  linear(module.gate_up, *input, input->normed, float_stride_, rows, columns.begin, columns.end,
         shared_.gate_up, gate_up_stride_, false);
  team_.barrier();
  if (rows == 1) {
    input = &scratch_[static_cast<size_t>(thread)];
    activate(module, 1, shared_, *input, 0);
  } else {
    const Range mine = share(rows, thread, team_.size());
    activate(module, mine.end - mine.begin, shared_, shared_, mine.begin);
    input = &shared_;
    team_.barrier();
  }
  columns = column_share(module.down.n, thread, team_.size());
  linear(module.down, *input, input->normed, float_stride_, rows, columns.begin, columns.end, residual(0),
         residual_stride_, true);
  team_.barrier();
}

void Executor::run_head(int thread) {
  const int rows = static_cast<int>(batch_.logit_rows.size());
  const Scratch* input = &shared_;
  if (rows == 1) {
    input = &scratch_[static_cast<size_t>(thread)];
    norm(residual(batch_.logit_rows[0]), head_->norm_gain, 1, *input, 0);
  } else {
    const Range mine = share(rows, thread, team_.size());
    for (int i = mine.begin; i < mine.end; ++i)
      norm(residual(batch_.logit_rows[static_cast<size_t>(i)]), head_->norm_gain, 1, shared_, i);
    team_.barrier();
  }
  const Range columns = column_share(head_->head.n, thread, team_.size());
  linear(head_->head, *input, input->normed, float_stride_, rows, columns.begin, columns.end,
         logits_.as<float>(), logits_stride_, false);
}

}  // namespace millrace::engine
