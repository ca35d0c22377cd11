// One operation over some rows, on either kind of weights. These are the only places that call kernels.
#include <bit>
#include <cmath>

#include "engine/internal/executor.h"
#include "kernels/gemm_s8.h"

namespace millrace::engine {

void Executor::embed(const model::EmbedModule& module, int row_begin, int rows) {
  const auto width = static_cast<size_t>(module.width);
  for (int row = row_begin; row < row_begin + rows; ++row) {
    const size_t first = static_cast<size_t>(batch_.tokens[static_cast<size_t>(row)]) * width;
    float* out = residual(row);
    if (module.f32 != nullptr) {
      std::copy_n(module.f32 + first, width, out);
    } else {
      for (size_t i = 0; i < width; ++i)
        out[i] = std::bit_cast<float>(uint32_t{module.bf16[first + i]} << 16);
    }
  }
}

void Executor::norm(const float* x, const float* gain, int rows, const Scratch& scratch,
                    int scratch_row) const {
  const int width = config_.hidden_size;
  if (int8_) {
    rows_.rmsnorm_quant(x, residual_stride_, gain, config_.rms_norm_eps, rows, width,
                        {scratch.q8 + scratch_row * act_stride_, act_stride_, scratch.scale + scratch_row});
  } else {
    rows_.rmsnorm(x, residual_stride_, gain, config_.rms_norm_eps, rows, width,
                  scratch.normed + scratch_row * float_stride_, float_stride_);
  }
}

void Executor::quantise(const float* x, int64_t stride, int width, int rows, const Scratch& scratch,
                        int scratch_row) const {
  if (int8_)
    rows_.quant(x, stride, rows, width,
                {scratch.q8 + scratch_row * act_stride_, act_stride_, scratch.scale + scratch_row});
}

void Executor::activate(const model::FfnModule& module, int rows, const Scratch& from, const Scratch& to,
                        int row) const {
  const float* gate_up = from.gate_up + row * gate_up_stride_;
  if (int8_) {
    rows_.swiglu_hadamard_quant(gate_up, gate_up_stride_, rows, config_.ffn_size, module.hadamard_block,
                                {to.q8 + row * act_stride_, act_stride_, to.scale + row});
  } else {
    rows_.swiglu(gate_up, gate_up_stride_, rows, config_.ffn_size, to.normed + row * float_stride_,
                 float_stride_);
  }
}

void Executor::linear(const model::Linear& weights, const Scratch& scratch, const float* floats,
                      int64_t float_stride, int rows, int n_begin, int n_end, float* out, int64_t out_stride,
                      bool accumulate) const {
  if (n_begin >= n_end) return;
  if (int8_) {
    const kernels::GemmS8Args args{.a = scratch.q8,
                                   .a_stride = act_stride_,
                                   .a_scale = scratch.scale,
                                   .m = rows,
                                   .w = &weights.s8,
                                   .n_begin = n_begin,
                                   .n_end = n_end,
                                   .bias = weights.bias,
                                   .out = out,
                                   .out_stride = out_stride,
                                   .accumulate = accumulate};
    return kernels::gemm_s8_at(isa_, args);
  }
  const kernels::GemmF32Args args{.a = floats,
                                  .a_stride = float_stride,
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
                        .kv_head_begin = head_begin,
                        .kv_head_end = head_end,
                        .scratch = scratch.attention});
}

}  // namespace millrace::engine
