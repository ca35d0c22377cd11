// Row operations: norms, activation functions, rotations, quantisation. Each row's result depends on that row alone and
// is the same bits on every level: sums run in 16 lanes (lane j takes elements j, j+16, ...; FMA in ascending order) and
// fold 8-4-2-1 (lane i += lane i+8, then i+4, i+2, i+1); transcendental functions are our own polynomials of FMAs.
// Division and square root are IEEE's, never approximations. docs/decisions/0001-canonical-arithmetic.md says why.
//
// Quantised output: q[i][k] = rint(y * (127 / max|y|)) as int8, columns k..padded_k zeroed, scale[i] = max|y| / 127
// (0, and zero bytes, for a row whose values are all below 2^-120). Non-finite input gives scale NaN or Inf and
// unspecified bytes, never a crash.
//
// Thread-safe: pure over their arguments. Run them with denormals flushed (base/thread_team.h).
#pragma once
#include <cstdint>

#include "kernels/isa.h"

namespace millrace::kernels {

struct QuantRows {  // where quantised rows go
  int8_t* q = nullptr;
  int64_t stride = 0;       // bytes, a multiple of 64, at least padded_k(width)
  float* scale = nullptr;   // [m]
};

struct RowKernels {
  // y = x * rsqrt(mean(x^2) + eps) * gain (gain null: 1). RMSNorm of Zhang and Sennrich (2019).
  void (*rmsnorm)(const float* x, int64_t x_stride, const float* gain, float eps, int m, int width, float* out,
                  int64_t out_stride);
  void (*rmsnorm_quant)(const float* x, int64_t x_stride, const float* gain, float eps, int m, int width,
                        QuantRows out);
  void (*quant)(const float* x, int64_t x_stride, int m, int width, QuantRows out);
  // y = silu(gate) * up; gate and up are columns [0, width) and [width, 2*width) of gate_up.
  void (*swiglu)(const float* gate_up, int64_t stride, int m, int width, float* out, int64_t out_stride);
  // The same, then an orthonormal Walsh-Hadamard transform of each block of `block` columns (a power of two that
  // divides width; 1: none), then quantisation: what feeds down_proj on the INT8 path.
  void (*swiglu_hadamard_quant)(const float* gate_up, int64_t stride, int m, int width, int block, QuantRows out);
  // Orthonormal Walsh-Hadamard transform of each block of `block` values of x in place, natural order; block is a power
  // of two that divides width.
  void (*hadamard)(float* x, int width, int block);
  // Half-split rotary embedding in place on `heads` heads of `head_dim`: (x_i, x_{i+D/2}) rotated by cos[i], sin[i] of
  // the row's position. cos and sin: [m] rows of head_dim/2, stride floats apart.
  void (*rope_half)(float* x, int64_t x_stride, int m, int heads, int head_dim, const float* cos, const float* sin,
                    int64_t table_stride);
  // RMSNorm over each head separately, in place (Qwen3's q/k norm); gain [head_dim].
  void (*head_rmsnorm)(float* x, int64_t x_stride, int m, int heads, int head_dim, const float* gain, float eps);
  // Sampling: index of the largest value (the lowest index among equals); NaN counts as -infinity.
  int (*argmax)(const float* x, int width);
  // max and sum of exp((x - max) * inverse_temperature), canonical order; NaN counts as -infinity; if all are
  // -infinity the sum is 0.
  void (*softmax_stats)(const float* x, int width, float inverse_temperature, float* max, float* sum);
  // out = exp((x - max) * inverse_temperature) / sum
  void (*softmax_write)(const float* x, int width, float inverse_temperature, float max, float sum, float* out);
};
const RowKernels& row_kernels();         // at the active level
const RowKernels& row_kernels_at(Isa isa);

// The same of one block in plain code: the same bits; used when weights are rotated at pack time.
void hadamard(float* x, int size);

}  // namespace millrace::kernels
