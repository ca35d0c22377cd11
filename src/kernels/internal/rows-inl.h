// The row operations of rows.h, written once in the 16-lane vocabulary and compiled per target.
#pragma once
#include "kernels/internal/hadamard-inl.h"
#include "kernels/internal/math-inl.h"
#include "kernels/internal/rows_levels.h"
#include "kernels/internal/softmax-inl.h"
#include "kernels/internal/vec16-inl.h"
#include "kernels/rows.h"

namespace millrace::kernels::MR_TARGET {
namespace {

constexpr int kByteBlock = 64;  // rows of bytes are padded to it (kGemmKBlock)

MR_INLINE float sum_of_squares(const float* x, int width) {
  V sum = set1(0);
  int k = 0;
  for (; k < whole_lanes(width); k += 16) {
    const V a = load(x + k);
    sum = fma(a, a, sum);
  }
  if (k < width) {
    const V a = load_tail(x + k, width - k);  // the missing lanes add 0 * 0
    sum = fma(a, a, sum);
  }
  return fold_sum(sum);
}

MR_INLINE float inverse_rms(const float* x, int width, float eps) {
  return 1.0f / std::sqrt(sum_of_squares(x, width) / static_cast<float>(width) + eps);
}

// y = (x * r) * gain, in that order; element k on.
MR_INLINE V normed(const float* x, V r, const float* gain, int k, int n) {
  if (n >= 16) {
    const V y = mul(load(x + k), r);
    return gain ? mul(y, load(gain + k)) : y;
  }
  const V y = mul(load_tail(x + k, n), r);
  return gain ? mul(y, load_tail(gain + k, n)) : y;
}

inline void norm_row(const float* x, const float* gain, float eps, int width, float* out) {
  const V r = set1(inverse_rms(x, width, eps));
  int k = 0;
  for (; k < whole_lanes(width); k += 16) store(out + k, normed(x, r, gain, k, 16));
  if (k < width) store_partial(out + k, normed(x, r, gain, k, width - k), width - k);
}

inline void rmsnorm(const float* x, int64_t x_stride, const float* gain, float eps, int m, int width,
                    float* out, int64_t out_stride) {
  for (int i = 0; i < m; ++i) norm_row(x + i * x_stride, gain, eps, width, out + i * out_stride);
}

inline void head_rmsnorm(float* x, int64_t x_stride, int m, int heads, int head_dim, const float* gain,
                         float eps) {
  for (int i = 0; i < m; ++i) {
    for (int h = 0; h < heads; ++h) {
      float* head = x + i * x_stride + int64_t{h} * head_dim;
      norm_row(head, gain, eps, head_dim, head);
    }
  }
}

// The largest magnitude so far, compared as integers: order does not matter, and a NaN wins over everything.
MR_INLINE I max_magnitude(I largest, V y) {
  return max_words(largest, and_words(bits(y), set1_word(0x7fffffff)));
}

MR_INLINE float fold_magnitude(I a) {
  a = max_words(a, bits(swap_lanes<8>(from_bits(a))));
  a = max_words(a, bits(swap_lanes<4>(from_bits(a))));
  a = max_words(a, bits(swap_lanes<2>(from_bits(a))));
  return first_lane(from_bits(max_words(a, bits(swap_lanes<1>(from_bits(a))))));
}

// Sets the row's scale and returns the factor 127 / largest that its values are multiplied with. Rows whose
// largest magnitude is below 2^-120 count as zero: their factor could overflow.
MR_INLINE V quant_factor(float largest, float* scale) {
  if (largest < 0x1p-120f) {
    *scale = 0;
    return set1(0);
  }
  *scale = largest / 127.0f;
  return set1(127.0f / largest);
}

inline void clear_padding(int8_t* q, int width) {
  const int end = (width + kByteBlock - 1) / kByteBlock * kByteBlock;
  for (int k = width; k < end; ++k) q[k] = 0;
}

inline void quant_row(const float* x, int width, int8_t* q, float* scale) {
  I largest = set1_word(0);
  int k = 0;
  for (; k < whole_lanes(width); k += 16) largest = max_magnitude(largest, load(x + k));
  if (k < width) largest = max_magnitude(largest, load_tail(x + k, width - k));
  const V factor = quant_factor(fold_magnitude(largest), scale);
  for (k = 0; k < whole_lanes(width); k += 16) store_bytes(q + k, nearest_int(mul(load(x + k), factor)), 16);
  if (k < width) store_bytes(q + k, nearest_int(mul(load_tail(x + k, width - k), factor)), width - k);
  clear_padding(q, width);
}

inline void quant(const float* x, int64_t x_stride, int m, int width, QuantRows out) {
  for (int i = 0; i < m; ++i) quant_row(x + i * x_stride, width, out.q + i * out.stride, out.scale + i);
}

inline void rmsnorm_quant(const float* x, int64_t x_stride, const float* gain, float eps, int m, int width,
                          QuantRows out) {
  for (int i = 0; i < m; ++i) {
    const float* row = x + i * x_stride;
    int8_t* q = out.q + i * out.stride;
    const V r = set1(inverse_rms(row, width, eps));
    I largest = set1_word(0);
    // The normed values are made twice rather than kept: two products are cheaper than a trip through memory.
    for (int k = 0; k < width; k += 16) largest = max_magnitude(largest, normed(row, r, gain, k, width - k));
    const V factor = quant_factor(fold_magnitude(largest), out.scale + i);
    for (int k = 0; k < width; k += 16)
      store_bytes(q + k, nearest_int(mul(normed(row, r, gain, k, width - k), factor)), width - k);
    clear_padding(q, width);
  }
}

// silu(gate) * up, with silu(x) = x / (1 + e^-x)
MR_INLINE V swiglu_lanes(V gate, V up) {
  const V negated = from_bits(xor_words(bits(gate), set1_word(INT32_MIN)));
  return mul(div(gate, add(set1(1), exp_any(negated))), up);
}

inline void swiglu_row(const float* gate, const float* up, int width, float* out) {
  int k = 0;
  for (; k < whole_lanes(width); k += 16) store(out + k, swiglu_lanes(load(gate + k), load(up + k)));
  if (k < width) {
    const int n = width - k;
    store_partial(out + k, swiglu_lanes(load_tail(gate + k, n), load_tail(up + k, n)), n);
  }
}

inline void swiglu(const float* gate_up, int64_t stride, int m, int width, float* out, int64_t out_stride) {
  for (int i = 0; i < m; ++i)
    swiglu_row(gate_up + i * stride, gate_up + i * stride + width, width, out + i * out_stride);
}

inline void swiglu_hadamard_quant(const float* gate_up, int64_t stride, int m, int width, int block,
                                  QuantRows out) {
  float* y = internal::row_scratch(static_cast<size_t>(width));
  for (int i = 0; i < m; ++i) {
    const float* gate = gate_up + i * stride;
    swiglu_row(gate, gate + width, width, y);
    hadamard_blocks(y, width, block);
    quant_row(y, width, out.q + i * out.stride, out.scale + i);
  }
}

// (a, b) rotated: a cos - b sin as fma(a, cos, -(b sin)); b cos + a sin as fma(b, cos, a sin).
MR_INLINE void rotate(V& a, V& b, V cos, V sin) {
  const V turned = fma(a, cos, from_bits(xor_words(bits(mul(b, sin)), set1_word(INT32_MIN))));
  b = fma(b, cos, mul(a, sin));
  a = turned;
}

inline void rope_half(float* x, int64_t x_stride, int m, int heads, int head_dim, const float* cos,
                      const float* sin, int64_t table_stride) {
  const int half = head_dim / 2;
  for (int i = 0; i < m; ++i) {
    const float* c = cos + i * table_stride;
    const float* s = sin + i * table_stride;
    for (int h = 0; h < heads; ++h) {
      float* low = x + i * x_stride + int64_t{h} * head_dim;
      float* high = low + half;
      int k = 0;
      for (; k < whole_lanes(half); k += 16) {
        V a = load(low + k), b = load(high + k);
        rotate(a, b, load(c + k), load(s + k));
        store(low + k, a);
        store(high + k, b);
      }
      if (const int n = half - k; n > 0) {
        V a = load_tail(low + k, n), b = load_tail(high + k, n);
        rotate(a, b, load_tail(c + k, n), load_tail(s + k, n));
        store_partial(low + k, a, n);
        store_partial(high + k, b, n);
      }
    }
  }
}

constexpr RowKernels kRows = {rmsnorm,         rmsnorm_quant, quant,        swiglu, swiglu_hadamard_quant,
                              hadamard_blocks, rope_half,     head_rmsnorm, argmax, softmax_stats,
                              softmax_write};

}  // namespace
}  // namespace millrace::kernels::MR_TARGET
