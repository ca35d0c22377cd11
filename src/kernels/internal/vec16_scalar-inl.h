// The 16-lane vocabulary in plain C++: the definition that vec16_avx2-inl.h and vec16_avx512-inl.h reproduce
// bit for bit. Include vec16-inl.h, which says what each name promises, not this.
#pragma once
#include <xmmintrin.h>

#include <cmath>
#include <cstdint>
#include <cstring>

#include "kernels/internal/vec16_target.h"

#if !defined(MR_VEC_AVX2) && !defined(MR_VEC_AVX512)
namespace millrace::kernels::MR_TARGET {
namespace {

struct V {
  float x[16];
};
struct I {
  int32_t x[16];
};
using Mask = uint32_t;

inline constexpr int kMicroRows = 2;

#define MR_LANES(type, expression)                    \
  type out;                                           \
  for (int j = 0; j < 16; ++j) out.x[j] = expression; \
  return out

MR_INLINE V load(const float* p) { MR_LANES(V, p[j]); }
MR_INLINE V load_partial(const float* p, int n, V fill) { MR_LANES(V, j < n ? p[j] : fill.x[j]); }
MR_INLINE void store(float* p, V a) { std::memcpy(p, a.x, sizeof a.x); }
MR_INLINE void store_partial(float* p, V a, int n) {
  for (int j = 0; j < 16 && j < n; ++j) p[j] = a.x[j];
}
MR_INLINE I load_words(const void* p) {
  I out;
  std::memcpy(out.x, p, sizeof out.x);
  return out;
}
MR_INLINE void store_words(void* p, I a) { std::memcpy(p, a.x, sizeof a.x); }
MR_INLINE V set1(float a) { MR_LANES(V, a); }
MR_INLINE I set1_word(int32_t a) { MR_LANES(I, a); }

MR_INLINE V add(V a, V b) { MR_LANES(V, a.x[j] + b.x[j]); }
MR_INLINE V sub(V a, V b) { MR_LANES(V, a.x[j] - b.x[j]); }
MR_INLINE V mul(V a, V b) { MR_LANES(V, a.x[j] * b.x[j]); }
MR_INLINE V div(V a, V b) { MR_LANES(V, a.x[j] / b.x[j]); }
MR_INLINE V fma(V a, V b, V c) { MR_LANES(V, std::fma(a.x[j], b.x[j], c.x[j])); }
// Through SSE, which has the wider forms' rules for NaN, zeros and flushed denormals.
MR_INLINE V min(V a, V b) { MR_LANES(V, _mm_cvtss_f32(_mm_min_ss(_mm_set_ss(a.x[j]), _mm_set_ss(b.x[j])))); }
MR_INLINE V max(V a, V b) { MR_LANES(V, _mm_cvtss_f32(_mm_max_ss(_mm_set_ss(a.x[j]), _mm_set_ss(b.x[j])))); }
MR_INLINE Mask lanes_equal(V a, V b) {
  Mask mask = 0;
  for (int j = 0; j < 16; ++j) mask |= Mask{a.x[j] == b.x[j]} << j;
  return mask;
}
// a where !(x < limit), else +0
MR_INLINE I zero_where_less(V x, V limit, I a) { MR_LANES(I, x.x[j] < limit.x[j] ? 0 : a.x[j]); }

MR_INLINE I bits(V a) { return load_words(a.x); }
MR_INLINE V from_bits(I a) {
  V out;
  std::memcpy(out.x, a.x, sizeof a.x);
  return out;
}
MR_INLINE I add_words(I a, I b) {
  MR_LANES(I, static_cast<int32_t>(static_cast<uint32_t>(a.x[j]) + static_cast<uint32_t>(b.x[j])));
}
MR_INLINE I sub_words(I a, I b) {
  MR_LANES(I, static_cast<int32_t>(static_cast<uint32_t>(a.x[j]) - static_cast<uint32_t>(b.x[j])));
}
MR_INLINE I and_words(I a, I b) { MR_LANES(I, a.x[j] & b.x[j]); }
MR_INLINE I or_words(I a, I b) { MR_LANES(I, a.x[j] | b.x[j]); }
MR_INLINE I xor_words(I a, I b) { MR_LANES(I, a.x[j] ^ b.x[j]); }
MR_INLINE I max_words(I a, I b) { MR_LANES(I, a.x[j] > b.x[j] ? a.x[j] : b.x[j]); }
template <int n>
MR_INLINE I shift_left(I a) {
  MR_LANES(I, static_cast<int32_t>(static_cast<uint32_t>(a.x[j]) << n));
}
template <int n>
MR_INLINE I shift_right(I a) {
  MR_LANES(I, static_cast<int32_t>(static_cast<uint32_t>(a.x[j]) >> n));
}
template <int n>
MR_INLINE I shift_right_signed(I a) {
  MR_LANES(I, a.x[j] >> n);
}
template <int h>
MR_INLINE V swap_lanes(V a) {
  MR_LANES(V, a.x[j ^ h]);
}

MR_INLINE I nearest_int(V a) { MR_LANES(I, _mm_cvtss_si32(_mm_set_ss(a.x[j]))); }
MR_INLINE void store_bytes(int8_t* p, I a, int n) {
  for (int j = 0; j < 16 && j < n; ++j)
    p[j] = static_cast<int8_t>(a.x[j] < -128 ? -128 : a.x[j] > 127 ? 127 : a.x[j]);
}
MR_INLINE void split_pairs(V a, V b, V& even, V& odd) {
  for (int j = 0; j < 8; ++j) {
    even.x[j] = a.x[2 * j], odd.x[j] = a.x[2 * j + 1];
    even.x[j + 8] = b.x[2 * j], odd.x[j + 8] = b.x[2 * j + 1];
  }
}
MR_INLINE float first_lane(V a) { return a.x[0]; }
MR_INLINE int32_t first_lane(I a) { return a.x[0]; }
#undef MR_LANES

}  // namespace
}  // namespace millrace::kernels::MR_TARGET
#endif
