// One operation over some rows, on either kind of weights. These are the only places that call kernels.
#include <bit>
#include <cmath>

#include "engine/internal/executor.h"
#include "kernels/gemm_s8.h"

namespace millrace::engine {

void Executor::embed(const model::EmbedModule& module, int row_begin, int rows) {
  for (int row = row_begin; row < row_begin + rows; ++row)
    embed_row(module, batch_.tokens[static_cast<size_t>(row)], residual(row));
}

void Executor::embed_row(const model::EmbedModule& module, TokenId token, float* out) const {
  const auto width = static_cast<size_t>(module.width);
  const size_t first = static_cast<size_t>(token) * width;
  if (module.f32 != nullptr) {
    std::copy_n(module.f32 + first, width, out);
  } else {
    for (size_t i = 0; i < width; ++i) out[i] = std::bit_cast<float>(uint32_t{module.bf16[first + i]} << 16);
  }
}

void Executor::norm(const float* x, const float* gain, int rows, const ActRows& to) const {
  const int width = config_.hidden_size;
  if (int8_) {
    rows_.rmsnorm_quant(x, residual_stride_, gain, config_.rms_norm_eps, rows, width,
                        {to.q8, to.q8_stride, to.scale});
  } else {
    rows_.rmsnorm(x, residual_stride_, gain, config_.rms_norm_eps, rows, width, to.floats, to.float_stride);
  }
}

Executor::ActRows Executor::as_input(float* x, int64_t stride, const ActRows& quantised) const {
  return int8_ ? quantised : ActRows{.floats = x, .float_stride = stride};
}

Executor::ActRows Executor::quantised(float* x, int64_t stride, int width, int rows,
                                      const ActRows& to) const {
  if (int8_) rows_.quant(x, stride, rows, width, {to.q8, to.q8_stride, to.scale});
  return as_input(x, stride, to);
}

void Executor::activate(const float* gate_up, int64_t stride, int rows, int width, int hadamard_block,
                        const ActRows& to) const {
  if (int8_) {
    rows_.swiglu_hadamard_quant(gate_up, stride, rows, width, hadamard_block,
                                {to.q8, to.q8_stride, to.scale});
  } else {
    rows_.swiglu(gate_up, stride, rows, width, to.floats, to.float_stride);
  }
}

void Executor::linear(const model::Linear& weights, const ActRows& in, int rows, int n_begin, int n_end,
                      float* out, int64_t out_stride, bool accumulate, const After& after) const {
  if (n_begin >= n_end) return;
  if (int8_) {
    if (observer_ != nullptr) observer_->rows(weights.s8.tiles, n_begin, in.q8, in.q8_stride, in.scale, rows);
    const kernels::GemmS8Args args{.a = in.q8,
                                   .a_stride = in.q8_stride,
                                   .a_scale = in.scale,
                                   .m = rows,
                                   .w = &weights.s8,
                                   .n_begin = n_begin,
                                   .n_end = n_end,
                                   .bias = weights.bias,
                                   .out = out,
                                   .out_stride = out_stride,
                                   .accumulate = accumulate,
                                   .next = after.weights != nullptr ? &after.weights->s8 : nullptr,
                                   .next_begin = after.n_begin};
    return kernels::gemm_s8_at(isa_, args);
  }
  const kernels::GemmF32Args args{.a = in.floats,
                                  .a_stride = in.float_stride,
                                  .m = rows,
                                  .w = weights.f32,
                                  .n = weights.n,
                                  .k = weights.k,
                                  .n_begin = n_begin,
                                  .n_end = std::min(n_end, weights.n),
                                  .bias = weights.bias,
                                  .out = out,
                                  .out_stride = out_stride,
                                  .accumulate = accumulate};
  kernels::gemm_f32_at(isa_, args);
}

void Executor::add_normed(float* branch, const float* gain, int rows, float* x) const {
  const int width = config_.hidden_size;
  rows_.rmsnorm(branch, residual_stride_, gain, config_.rms_norm_eps, rows, width, branch, residual_stride_);
  for (int row = 0; row < rows; ++row)
    for (int i = 0; i < width; ++i) x[row * residual_stride_ + i] += branch[row * residual_stride_ + i];
}

void Executor::rope_and_write(const model::AttentionModule& module, const Piece& piece) const {
  const int dim = config_.head_dim;
  float* q = qkv(piece.row_begin);
  float* k = q + config_.q_heads * dim;
  const float* v = k + config_.kv_heads * dim;
  if (module.q_norm_gain != nullptr)
    rows_.head_rmsnorm(q, qkv_stride_, piece.rows, config_.q_heads, dim, module.q_norm_gain,
                       config_.rms_norm_eps);
  if (module.k_norm_gain != nullptr)
    rows_.head_rmsnorm(k, qkv_stride_, piece.rows, config_.kv_heads, dim, module.k_norm_gain,
                       config_.rms_norm_eps);
  const float* cos = rope_.cos(piece.first_position);
  const float* sin = rope_.sin(piece.first_position);
  // q and k heads stand side by side and turn alike.
  rows_.rope_half(q, qkv_stride_, piece.rows, config_.q_heads + config_.kv_heads, dim, cos, sin,
                  rope_.stride());
  attention_.kv_write(shape_, {pool_, piece.segment->pages}, module.layer, piece.first_position, piece.rows,
                      k, qkv_stride_, v, qkv_stride_);
}

void Executor::attend(const model::AttentionModule& module, const Piece& piece, const Scratch& scratch,
                      float* out, int head_begin, int head_end) const {
  attention_.attention({.shape = shape_,
                        .view = {pool_, piece.segment->pages},
                        .layer = module.layer,
                        .q_heads = config_.q_heads,
                        .scale = attention_scale_,
                        .first_position = piece.first_position,
                        .rows = piece.rows,
                        .q = qkv(piece.row_begin),
                        .q_stride = qkv_stride_,
                        .out = out,
                        .out_stride = attended_stride_,
                        .q_head_begin = head_begin * (config_.q_heads / config_.kv_heads),
                        .q_head_end = head_end * (config_.q_heads / config_.kv_heads),
                        .scratch = scratch.attention});
}

}  // namespace millrace::engine
