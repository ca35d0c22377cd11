// A step by rows: panels are claimed, latest positions first (their attention costs most), with one barrier a
// layer.
#include "engine/internal/executor.h"
#include "kernels/gemm_s8.h"

namespace millrace::engine {

void Executor::run_by_rows(int thread) {
  const Scratch& scratch = scratch_[static_cast<size_t>(thread)];
  const int panels = static_cast<int>(panels_.size());
  for (size_t s = 0; s < walk_->stages.size(); ++s) {
    const Stage& stage = walk_->stages[s];
    std::atomic<int>* next = &next_[2 * s];
    if (stage.mixture != nullptr) {
      run_mixture(stage, mixture_rows_, thread, next);
      continue;
    }
    for (int taken; (taken = next->fetch_add(1, std::memory_order_relaxed)) < panels;) {
      const Panel& panel = panels_[static_cast<size_t>(panels - 1 - taken)];
      if (!stage.last || panel.needed) run_panel(stage, panel, scratch);
    }
    team_.barrier();
  }
}

void Executor::run_panel(const Stage& stage, const Panel& panel, const Scratch& scratch) {
  float* x = residual(panel.row_begin);
  const int rows = panel.rows;
  const auto each_piece = [&](auto&& f) {
    for (int i = panel.piece_begin; i < panel.piece_end; ++i) f(pieces_[static_cast<size_t>(i)]);
  };
  const auto product = [&](const model::Linear& weights, const ActRows& in, float* out, int64_t out_stride,
                           bool accumulate) {
    linear(weights, in, rows, 0, static_cast<int>(kernels::padded_n(weights.n)), out, out_stride, accumulate);
  };
  // The end of a branch: onto the residual stream, normed first where the model says so.
  const auto add = [&](const model::Linear& weights, const ActRows& in, const float* post_norm_gain) {
    if (post_norm_gain == nullptr) return product(weights, in, x, residual_stride_, true);
    product(weights, in, scratch.branch, residual_stride_, false);
    add_normed(scratch.branch, post_norm_gain, rows, x);
  };
  for (const Op& op : stage.ops) {
    switch (op.kind) {
      case Op::Kind::embed:
        embed(std::get<model::EmbedModule>(*op.module), panel.row_begin, rows);
        break;
      case Op::Kind::join:
        join(panel.row_begin, rows, scratch.joined, scratch.joined_in);
        product(mtp_->eh, scratch.joined_in, x, residual_stride_, false);
        break;
      case Op::Kind::attention_in: {
        const auto& module = std::get<model::AttentionModule>(*op.module);
        norm(x, module.norm_gain, rows, scratch.in);
        product(module.qkv, scratch.in, qkv(panel.row_begin), qkv_stride_, false);
        each_piece([&](const Piece& piece) { rope_and_write(module, piece); });
        break;
      }
      case Op::Kind::attention_out: {
        const auto& module = std::get<model::AttentionModule>(*op.module);
        each_piece([&](const Piece& piece) {
          float* out = scratch.attended + (piece.row_begin - panel.row_begin) * attended_stride_;
          attend(module, piece, scratch, out, 0, config_.kv_heads);
        });
        add(module.o, quantised(scratch.attended, attended_stride_, module.o.k, rows, scratch.in),
            module.post_norm_gain);
        break;
      }
      case Op::Kind::mla_in: {
        const auto& module = std::get<model::MlaModule>(*op.module);
        norm(x, module.norm_gain, rows, scratch.in);
        product(module.in, scratch.in, qkv(panel.row_begin), qkv_stride_, false);
        each_piece([&](const Piece& piece) { mla_write(module, piece); });
        break;
      }
      case Op::Kind::mla_out: {
        const auto& module = std::get<model::MlaModule>(*op.module);
        panel_mla_out(module, panel, scratch);
        add(module.o, quantised(scratch.attended, attended_stride_, module.o.k, rows, scratch.in),
            module.post_norm_gain);
        break;
      }
      case Op::Kind::ffn: {
        const auto& module = std::get<model::FfnModule>(*op.module);
        norm(x, module.norm_gain, rows, scratch.in);
        product(module.gate_up, scratch.in, scratch.gate_up, gate_up_stride_, false);
        activate(scratch.gate_up, gate_up_stride_, rows, config_.ffn_size, module.hadamard_block, scratch.in);
        add(module.down, scratch.in, module.post_norm_gain);
        break;
      }
      case Op::Kind::route:
        route(*op.mixture, x, rows, scratch, mixture_rows_, panel.row_begin);
        break;
    }
  }
}

}  // namespace millrace::engine
