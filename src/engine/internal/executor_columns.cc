// A step by columns, and the head: every product's output channels are shared among the threads.
//
// A barrier stands wherever a thread reads what another wrote. Small work on few rows (norm, quantisation) is
// done by every thread for itself instead, which costs less than the barrier (alone()).
#include "engine/internal/executor.h"
#include "engine/internal/shares.h"
#include "kernels/gemm_s8.h"

namespace millrace::engine {
void Executor::run_by_columns(int thread) {
  const int rows = static_cast<int>(batch_.tokens.size());
  const Range mine = share(rows, thread, team_.size());
  MixtureRows routed;
  for (size_t s = 0; s < walk_->stages.size(); ++s) {
    const Stage& stage = walk_->stages[s];
    if (stage.last && wanted_rows().empty()) return;
    if (stage.mixture != nullptr) run_mixture(stage, routed, thread, &next_[2 * s]);
    for (const Op& op : stage.ops) {
      switch (op.kind) {
        case Op::Kind::embed:
          embed(std::get<model::EmbedModule>(*op.module), mine.begin, mine.size());
          team_.barrier();
          break;
        case Op::Kind::join:
          columns_join(thread);
          break;
        case Op::Kind::attention_in:
          columns_attention_in(std::get<model::AttentionModule>(*op.module), thread);
          break;
        case Op::Kind::attention_out:
          columns_attention_out(std::get<model::AttentionModule>(*op.module), thread, next_[2 * s]);
          break;
        case Op::Kind::mla_in:
          columns_mla_in(std::get<model::MlaModule>(*op.module), thread);
          break;
        case Op::Kind::mla_out:
          columns_mla_out(std::get<model::MlaModule>(*op.module), thread, next_[2 * s]);
          break;
        case Op::Kind::ffn:
          columns_ffn(std::get<model::FfnModule>(*op.module), thread);
          break;
        case Op::Kind::route:
          routed = columns_route(*op.mixture, thread);
          break;
      }
    }
  }
}

// The normed residual rows as every thread may read them.
Executor::ActRows Executor::columns_norm(const float* gain, int thread) {
  const int rows = static_cast<int>(batch_.tokens.size());
  if (alone(rows, config_.hidden_size)) {
    const ActRows& own = scratch_[static_cast<size_t>(thread)].in;
    norm(residual(0), gain, rows, own);
    return own;
  }
  const Range mine = share(rows, thread, team_.size());
  norm(residual(mine.begin), gain, mine.size(), shared_.in.at(mine.begin));
  team_.barrier();
  return shared_.in;
}

// The end of a branch: onto the residual stream, normed first where the model says so.
void Executor::columns_branch(const model::Linear& weights, const ActRows& in, const float* post_norm_gain,
                              int thread) {
  const int rows = static_cast<int>(batch_.tokens.size());
  const Range columns = column_share(weights.n, thread, team_.size());
  const bool sandwich = post_norm_gain != nullptr;
  linear(weights, in, rows, columns.begin, columns.end, sandwich ? shared_.branch : residual(0),
         residual_stride_, !sandwich);
  team_.barrier();
  if (!sandwich) return;
  const Range mine = share(rows, thread, team_.size());
  add_normed(shared_.branch + mine.begin * residual_stride_, post_norm_gain, mine.size(),
             residual(mine.begin));
  team_.barrier();
}

void Executor::columns_attention_in(const model::AttentionModule& module, int thread) {
  const int rows = static_cast<int>(batch_.tokens.size());
  const ActRows input = columns_norm(module.norm_gain, thread);
  const Range columns = column_share(module.qkv.n, thread, team_.size());
  linear(module.qkv, input, rows, columns.begin, columns.end, qkv(0), qkv_stride_, false);
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
  const auto quantise_rows = [&](int row, int count, const ActRows& to) {
    return quantised(attended(row), attended_stride_, module.o.k, count, to);
  };
  ActRows input = as_input(shared_.attended, attended_stride_, shared_.in);
  if (whole_segments_) {  // a sequence's keys are written and read by the same thread
    for (int i; (i = next.fetch_add(1, std::memory_order_relaxed)) < pieces;) {
      const Piece& piece = pieces_[static_cast<size_t>(i)];
      rope_and_write(module, piece);
      attend(module, piece, own, attended(piece.row_begin), 0, config_.kv_heads);
      quantise_rows(piece.row_begin, piece.rows, shared_.in.at(piece.row_begin));
    }
    team_.barrier();
  } else {
    for (int i; (i = next.fetch_add(1, std::memory_order_relaxed)) < pieces * config_.kv_heads;) {
      const Piece& piece = pieces_[static_cast<size_t>(i / config_.kv_heads)];
      const int head = i % config_.kv_heads;
      attend(module, piece, own, attended(piece.row_begin), head, head + 1);
    }
    team_.barrier();
    if (alone(rows, module.o.k)) {
      input = quantise_rows(0, rows, own.in);
    } else {
      const Range mine = share(rows, thread, team_.size());
      quantise_rows(mine.begin, mine.size(), shared_.in.at(mine.begin));
      team_.barrier();
    }
  }
  columns_branch(module.o, input, module.post_norm_gain, thread);
}

void Executor::columns_ffn(const model::FfnModule& module, int thread) {
  const int rows = static_cast<int>(batch_.tokens.size());
  ActRows input = columns_norm(module.norm_gain, thread);
  const Range columns = column_share(module.gate_up.n, thread, team_.size());
  linear(module.gate_up, input, rows, columns.begin, columns.end, shared_.gate_up, gate_up_stride_, false);
  team_.barrier();
  const auto activate_rows = [&](int row, int count, const ActRows& to) {
    activate(shared_.gate_up + row * gate_up_stride_, gate_up_stride_, count, config_.ffn_size,
             module.hadamard_block, to);
  };
  if (alone(rows, config_.ffn_size)) {
    input = scratch_[static_cast<size_t>(thread)].in;
    activate_rows(0, rows, input);
  } else {
    const Range mine = share(rows, thread, team_.size());
    input = shared_.in;
    activate_rows(mine.begin, mine.size(), input.at(mine.begin));
    team_.barrier();
  }
  columns_branch(module.down, input, module.post_norm_gain, thread);
}

void Executor::head_norm(const float* x, int thread, const ActRows& to) const {
  if (walk_ == &mtp_walk_ && int8_) {
    guess_norm(x, scratch_[static_cast<size_t>(thread)].joined, to);
  } else {
    norm(x, walk_->head->norm_gain, 1, to);
  }
}

void Executor::run_head(int thread) {
  const model::HeadModule& head = *walk_->head;
  const int rows = static_cast<int>(batch_.logit_rows.size());
  ActRows input = shared_.in;
  const auto norm_rows = [&](Range range) {
    for (int i = range.begin; i < range.end; ++i)
      head_norm(residual(batch_.logit_rows[static_cast<size_t>(i)]), thread, input.at(i));
  };
  if (alone(rows, config_.hidden_size)) {
    input = scratch_[static_cast<size_t>(thread)].in;
    norm_rows({0, rows});
  } else {
    norm_rows(share(rows, thread, team_.size()));
    team_.barrier();
  }
  const Range columns = column_share(head.head.n, thread, team_.size());
  linear(head.head, input, rows, columns.begin, columns.end, logits_.as<float>(), logits_stride_, false);
}

}  // namespace millrace::engine
