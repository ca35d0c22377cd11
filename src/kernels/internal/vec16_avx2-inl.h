// The 16-lane vocabulary in AVX2 and FMA, two registers to a V. Include vec16-inl.h, which says what each
// name promises, not this.
#pragma once
#include <immintrin.h>

#include <cstdint>

#include "kernels/internal/vec16_target.h"

#if defined(MR_VEC_AVX2)
namespace millrace::kernels::MR_TARGET {
namespace {

struct V {
  __m256 lo, hi;
};
struct I {
  __m256i lo, hi;
};
using Mask = uint32_t;

inline constexpr int kMicroRows = 2;

// Sign bits set in the first n of 8 lanes, as maskload and maskstore want them.
MR_INLINE __m256i first_lanes(int n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

MR_INLINE V load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
MR_INLINE V load_partial(const float* p, int n, V fill) {
  const __m256i lo = first_lanes(n), hi = first_lanes(n - 8);
  return {_mm256_blendv_ps(fill.lo, _mm256_maskload_ps(p, lo), _mm256_castsi256_ps(lo)),
          _mm256_blendv_ps(fill.hi, _mm256_maskload_ps(p + 8, hi), _mm256_castsi256_ps(hi))};
}
MR_INLINE void store(float* p, V a) {
  _mm256_storeu_ps(p, a.lo);
  _mm256_storeu_ps(p + 8, a.hi);
}
MR_INLINE void store_partial(float* p, V a, int n) {
  _mm256_maskstore_ps(p, first_lanes(n), a.lo);
  _mm256_maskstore_ps(p + 8, first_lanes(n - 8), a.hi);
}
MR_INLINE I load_words(const void* p) {
  const __m256i* words = static_cast<const __m256i*>(p);
  return {_mm256_loadu_si256(words), _mm256_loadu_si256(words + 1)};
}
MR_INLINE void store_words(void* p, I a) {
  __m256i* words = static_cast<__m256i*>(p);
  _mm256_storeu_si256(words, a.lo);
  _mm256_storeu_si256(words + 1, a.hi);
}
MR_INLINE V set1(float a) { return {_mm256_set1_ps(a), _mm256_set1_ps(a)}; }
MR_INLINE I set1_word(int32_t a) { return {_mm256_set1_epi32(a), _mm256_set1_epi32(a)}; }

MR_INLINE V add(V a, V b) { return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)}; }
MR_INLINE V sub(V a, V b) { return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)}; }
MR_INLINE V mul(V a, V b) { return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)}; }
MR_INLINE V div(V a, V b) { return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)}; }
MR_INLINE V fma(V a, V b, V c) {
  return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
MR_INLINE V min(V a, V b) { return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)}; }
MR_INLINE V max(V a, V b) { return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)}; }
MR_INLINE Mask lanes_equal(V a, V b) {
  const int lo = _mm256_movemask_ps(_mm256_cmp_ps(a.lo, b.lo, _CMP_EQ_OQ));
  const int hi = _mm256_movemask_ps(_mm256_cmp_ps(a.hi, b.hi, _CMP_EQ_OQ));
  return static_cast<Mask>(lo | hi << 8);
}
MR_INLINE I zero_where_less(V x, V limit, I a) {
  const __m256 lo = _mm256_cmp_ps(x.lo, limit.lo, _CMP_NLT_US),
               hi = _mm256_cmp_ps(x.hi, limit.hi, _CMP_NLT_US);
  return {_mm256_and_si256(_mm256_castps_si256(lo), a.lo), _mm256_and_si256(_mm256_castps_si256(hi), a.hi)};
}

MR_INLINE I bits(V a) { return {_mm256_castps_si256(a.lo), _mm256_castps_si256(a.hi)}; }
MR_INLINE V from_bits(I a) { return {_mm256_castsi256_ps(a.lo), _mm256_castsi256_ps(a.hi)}; }
MR_INLINE I add_words(I a, I b) { return {_mm256_add_epi32(a.lo, b.lo), _mm256_add_epi32(a.hi, b.hi)}; }
MR_INLINE I sub_words(I a, I b) { return {_mm256_sub_epi32(a.lo, b.lo), _mm256_sub_epi32(a.hi, b.hi)}; }
MR_INLINE I and_words(I a, I b) { return {_mm256_and_si256(a.lo, b.lo), _mm256_and_si256(a.hi, b.hi)}; }
MR_INLINE I or_words(I a, I b) { return {_mm256_or_si256(a.lo, b.lo), _mm256_or_si256(a.hi, b.hi)}; }
MR_INLINE I xor_words(I a, I b) { return {_mm256_xor_si256(a.lo, b.lo), _mm256_xor_si256(a.hi, b.hi)}; }
MR_INLINE I max_words(I a, I b) { return {_mm256_max_epi32(a.lo, b.lo), _mm256_max_epi32(a.hi, b.hi)}; }
template <int n>
MR_INLINE I shift_left(I a) {
  return {_mm256_slli_epi32(a.lo, n), _mm256_slli_epi32(a.hi, n)};
}
template <int n>
MR_INLINE I shift_right(I a) {
  return {_mm256_srli_epi32(a.lo, n), _mm256_srli_epi32(a.hi, n)};
}
template <int n>
MR_INLINE I shift_right_signed(I a) {
  return {_mm256_srai_epi32(a.lo, n), _mm256_srai_epi32(a.hi, n)};
}
template <int h>
MR_INLINE V swap_lanes(V a) {
  if constexpr (h == 8) return {a.hi, a.lo};
  if constexpr (h == 4) return {_mm256_permute2f128_ps(a.lo, a.lo, 1), _mm256_permute2f128_ps(a.hi, a.hi, 1)};
  if constexpr (h == 2) return {_mm256_permute_ps(a.lo, 0x4e), _mm256_permute_ps(a.hi, 0x4e)};
  if constexpr (h == 1) return {_mm256_permute_ps(a.lo, 0xb1), _mm256_permute_ps(a.hi, 0xb1)};
}

MR_INLINE I nearest_int(V a) { return {_mm256_cvtps_epi32(a.lo), _mm256_cvtps_epi32(a.hi)}; }
MR_INLINE void store_bytes(int8_t* p, I a, int n) {
  // Packs work within 128-bit halves: [lo 0-3, hi 0-3 | lo 4-7, hi 4-7] as words, then put in order.
  const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(a.lo, a.hi), 0xd8);
  const __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
  if (n >= 16) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), bytes);
  } else if (n > 0) {
    alignas(16) int8_t all[16];
    _mm_store_si128(reinterpret_cast<__m128i*>(all), bytes);
    for (int j = 0; j < n; ++j) p[j] = all[j];
  }
}
MR_INLINE __m256 in_order(__m256 a) {
  return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(a), 0xd8));
}
MR_INLINE void split_pairs(V a, V b, V& even, V& odd) {
  even = {in_order(_mm256_shuffle_ps(a.lo, a.hi, 0x88)), in_order(_mm256_shuffle_ps(b.lo, b.hi, 0x88))};
  odd = {in_order(_mm256_shuffle_ps(a.lo, a.hi, 0xdd)), in_order(_mm256_shuffle_ps(b.lo, b.hi, 0xdd))};
}
MR_INLINE float first_lane(V a) { return _mm256_cvtss_f32(a.lo); }
MR_INLINE int32_t first_lane(I a) { return _mm256_cvtsi256_si32(a.lo); }

}  // namespace
}  // namespace millrace::kernels::MR_TARGET
#endif
