// V's layout from K's with AVX-512 registers, for the levels that have them (see values_of_keys in
// attention_levels.h).
#pragma once
#include "kernels/internal/attention_levels.h"
#include "kernels/internal/target.h"

namespace millrace::kernels::MR_TARGET {
namespace {

using internal::kTileRowBytes;

// internal::values_of_keys, eight rows of a tile at a time.
MR_INLINE void transpose_groups(const std::byte* from, std::byte* to) {
  const __m512i keys =
      _mm512_broadcast_i32x4(_mm_setr_epi8(0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15));
  __m512i even[4], odd[4];  // groups 0, 2, 4, 6 and 1, 3, 5, 7 of rows 2i and 2i + 1
  MR_UNROLL
  for (int i = 0; i < 4; ++i) {
    const __m512i a = _mm512_shuffle_epi8(_mm512_loadu_si512(from + 2 * i * kTileRowBytes), keys);
    const __m512i b = _mm512_shuffle_epi8(_mm512_loadu_si512(from + (2 * i + 1) * kTileRowBytes), keys);
    even[i] = _mm512_unpacklo_epi64(a, b);
    odd[i] = _mm512_unpackhi_epi64(a, b);
  }
  const auto quarters = [to](const __m512i* x, int first) {  // a transposition of 4 x 4 quarters of registers
    const __m512i low_0 = _mm512_shuffle_i64x2(x[0], x[1], 0x44),
                  low_1 = _mm512_shuffle_i64x2(x[2], x[3], 0x44);
    const __m512i high_0 = _mm512_shuffle_i64x2(x[0], x[1], 0xee),
                  high_1 = _mm512_shuffle_i64x2(x[2], x[3], 0xee);
    _mm512_storeu_si512(to + first * kTileRowBytes, _mm512_shuffle_i64x2(low_0, low_1, 0x88));
    _mm512_storeu_si512(to + (first + 2) * kTileRowBytes, _mm512_shuffle_i64x2(low_0, low_1, 0xdd));
    _mm512_storeu_si512(to + (first + 4) * kTileRowBytes, _mm512_shuffle_i64x2(high_0, high_1, 0x88));
    _mm512_storeu_si512(to + (first + 6) * kTileRowBytes, _mm512_shuffle_i64x2(high_0, high_1, 0xdd));
  };
  quarters(even, 0);
  quarters(odd, 1);
}

// internal::values_of_keys: the scalar code takes most of the time of attention with few rows.
inline void turn_keys(const std::byte* keys, int key_dim, int value_dim, std::byte* values) {
  for (int dim = 0; dim < value_dim; dim += 16)
    for (int key = 0; key < kPageTokens; key += 16)
      transpose_groups(keys + internal::key_offset(key_dim, key, dim),
                       values + internal::value_offset(key, dim));
}

}  // namespace
}  // namespace millrace::kernels::MR_TARGET
