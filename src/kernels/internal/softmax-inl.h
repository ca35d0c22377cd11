// The largest value and its place, and softmax, of one row (rows.h), in the 16-lane vocabulary.
#pragma once
#include "kernels/internal/math-inl.h"
#include "kernels/internal/vec16-inl.h"

namespace millrace::kernels::MR_TARGET {
namespace {

MR_INLINE int whole_lanes(int width) { return width & ~15; }

MR_INLINE V minus_infinity() { return from_bits(set1_word(static_cast<int32_t>(0xff800000))); }

// The largest value; NaN counts as -infinity (max gives its second operand for a NaN).
inline float largest_value(const float* x, int width) {
  V largest = minus_infinity(), second = largest, third = largest, fourth = largest;
  int k = 0;
  for (; k + 64 <= width; k += 64) {  // four maxima: one would wait for itself
    largest = max(load(x + k), largest);
    second = max(load(x + k + 16), second);
    third = max(load(x + k + 32), third);
    fourth = max(load(x + k + 48), fourth);
  }
  largest = max(max(largest, second), max(third, fourth));
  for (; k < whole_lanes(width); k += 16) largest = max(load(x + k), largest);
  if (k < width) largest = max(load_partial(x + k, width - k, minus_infinity()), largest);
  return fold_max(largest);
}

inline int argmax(const float* x, int width) {
  const float largest = largest_value(x, width);
  if (largest == first_lane(minus_infinity())) return 0;  // all equal as the contract counts them
  for (int k = 0; k < width; k += 16) {
    const V a = width - k >= 16 ? load(x + k) : load_partial(x + k, width - k, minus_infinity());
    if (const Mask found = lanes_equal(a, set1(largest)); found != 0) return k + __builtin_ctz(found);
  }
  return 0;
}

// e^((x - max) * inverse_temperature); 0 for NaN and -infinity
MR_INLINE V softmax_term(V x, V max_value, V inverse_temperature) {
  return exp_any(mul(sub(max(x, minus_infinity()), max_value), inverse_temperature));
}

inline void softmax_stats(const float* x, int width, float inverse_temperature, float* max_out,
                          float* sum_out) {
  const float largest = largest_value(x, width);
  *max_out = largest;
  *sum_out = 0;
  if (largest == first_lane(minus_infinity())) return;
  const V top = set1(largest), inverse = set1(inverse_temperature);
  V sum = set1(0);
  int k = 0;
  for (; k < whole_lanes(width); k += 16) sum = add(sum, softmax_term(load(x + k), top, inverse));
  if (k < width) sum = add(sum, softmax_term(load_partial(x + k, width - k, minus_infinity()), top, inverse));
  *sum_out = fold_sum(sum);
}

inline void softmax_write(const float* x, int width, float inverse_temperature, float max_value, float sum,
                          float* out) {
  const V top = set1(max_value), inverse = set1(inverse_temperature), total = set1(sum);
  int k = 0;
  for (; k < whole_lanes(width); k += 16) store(out + k, div(softmax_term(load(x + k), top, inverse), total));
  if (const int n = width - k; n > 0)
    store_partial(out + k, div(softmax_term(load_tail(x + k, n), top, inverse), total), n);
}

}  // namespace
}  // namespace millrace::kernels::MR_TARGET
