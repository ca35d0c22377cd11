// The 16-lane vocabulary in AVX-512 (F, DQ, BW, VL). Include vec16-inl.h, which says what each name promises,
// not this.
#pragma once
#include <immintrin.h>

#include <cstdint>

#include "kernels/internal/vec16_target.h"

#if defined(MR_VEC_AVX512)
namespace millrace::kernels::MR_TARGET {
namespace {

struct V {
  __m512 x;
};
struct I {
  __m512i x;
};
using Mask = uint32_t;

inline constexpr int kMicroRows = 8;

MR_INLINE __mmask16 first_lanes(int n) { return static_cast<__mmask16>(n >= 16 ? 0xffff : (1 << n) - 1); }

MR_INLINE V load(const float* p) { return {_mm512_loadu_ps(p)}; }
MR_INLINE V load_partial(const float* p, int n, V fill) {
  return {_mm512_mask_loadu_ps(fill.x, first_lanes(n), p)};
}
MR_INLINE void store(float* p, V a) { _mm512_storeu_ps(p, a.x); }
MR_INLINE void store_partial(float* p, V a, int n) { _mm512_mask_storeu_ps(p, first_lanes(n), a.x); }
MR_INLINE I load_words(const void* p) { return {_mm512_loadu_si512(p)}; }
MR_INLINE void store_words(void* p, I a) { _mm512_storeu_si512(p, a.x); }
MR_INLINE V set1(float a) { return {_mm512_set1_ps(a)}; }
MR_INLINE I set1_word(int32_t a) { return {_mm512_set1_epi32(a)}; }

MR_INLINE V add(V a, V b) { return {_mm512_add_ps(a.x, b.x)}; }
MR_INLINE V sub(V a, V b) { return {_mm512_sub_ps(a.x, b.x)}; }
MR_INLINE V mul(V a, V b) { return {_mm512_mul_ps(a.x, b.x)}; }
MR_INLINE V div(V a, V b) { return {_mm512_div_ps(a.x, b.x)}; }
MR_INLINE V fma(V a, V b, V c) { return {_mm512_fmadd_ps(a.x, b.x, c.x)}; }
MR_INLINE V min(V a, V b) { return {_mm512_min_ps(a.x, b.x)}; }
MR_INLINE V max(V a, V b) { return {_mm512_max_ps(a.x, b.x)}; }
MR_INLINE Mask lanes_equal(V a, V b) { return _mm512_cmp_ps_mask(a.x, b.x, _CMP_EQ_OQ); }
MR_INLINE I zero_where_less(V x, V limit, I a) {
  return {_mm512_maskz_mov_epi32(_mm512_cmp_ps_mask(x.x, limit.x, _CMP_NLT_US), a.x)};
}

MR_INLINE I bits(V a) { return {_mm512_castps_si512(a.x)}; }
MR_INLINE V from_bits(I a) { return {_mm512_castsi512_ps(a.x)}; }
MR_INLINE I add_words(I a, I b) { return {_mm512_add_epi32(a.x, b.x)}; }
MR_INLINE I sub_words(I a, I b) { return {_mm512_sub_epi32(a.x, b.x)}; }
MR_INLINE I and_words(I a, I b) { return {_mm512_and_epi32(a.x, b.x)}; }
MR_INLINE I or_words(I a, I b) { return {_mm512_or_epi32(a.x, b.x)}; }
MR_INLINE I xor_words(I a, I b) { return {_mm512_xor_epi32(a.x, b.x)}; }
MR_INLINE I max_words(I a, I b) { return {_mm512_max_epi32(a.x, b.x)}; }
template <int n>
MR_INLINE I shift_left(I a) {
  return {_mm512_slli_epi32(a.x, n)};
}
template <int n>
MR_INLINE I shift_right(I a) {
  return {_mm512_srli_epi32(a.x, n)};
}
template <int n>
MR_INLINE I shift_right_signed(I a) {
  return {_mm512_srai_epi32(a.x, n)};
}
template <int h>
MR_INLINE V swap_lanes(V a) {
  if constexpr (h == 8) return {_mm512_shuffle_f32x4(a.x, a.x, 0x4e)};
  if constexpr (h == 4) return {_mm512_shuffle_f32x4(a.x, a.x, 0xb1)};
  if constexpr (h == 2) return {_mm512_permute_ps(a.x, 0x4e)};
  if constexpr (h == 1) return {_mm512_permute_ps(a.x, 0xb1)};
}

MR_INLINE I nearest_int(V a) {
  return {_mm512_cvt_roundps_epi32(a.x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
MR_INLINE void store_bytes(int8_t* p, I a, int n) {
  _mm512_mask_cvtsepi32_storeu_epi8(p, first_lanes(n), a.x);
}
MR_INLINE void split_pairs(V a, V b, V& even, V& odd) {
  const __m512i index = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  even = {_mm512_permutex2var_ps(a.x, index, b.x)};
  odd = {_mm512_permutex2var_ps(a.x, _mm512_add_epi32(index, _mm512_set1_epi32(1)), b.x)};
}
MR_INLINE float first_lane(V a) { return _mm512_cvtss_f32(a.x); }
MR_INLINE int32_t first_lane(I a) { return _mm512_cvtsi512_si32(a.x); }

}  // namespace
}  // namespace millrace::kernels::MR_TARGET
#endif
