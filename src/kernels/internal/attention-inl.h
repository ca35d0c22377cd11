// Attention over BF16 pages with vectors: both products reproduce AMX's TDPBF16PS exactly (attention.h).
#pragma once
#include "kernels/internal/attention_common-inl.h"
#ifdef MR_VEC_AVX512
#include "kernels/internal/attention_turn-inl.h"
#endif

namespace millrace::kernels::MR_TARGET {
namespace {

// c[r][0..16) = a[r] . B for `rows` rows, B given as `blocks` tiles of 32 along the sum. a holds BF16 values
// as floats. Per block: a chain of FMAs over the even elements from zero, one over the odd elements, their
// sum, one add.
template <int rows>
MR_INLINE void product(const float* a, int64_t a_stride, const std::byte* const* tiles, int blocks, float* c,
                       int64_t c_stride) {
  V sum[rows];
  MR_UNROLL
  for (int r = 0; r < rows; ++r) sum[r] = set1(0);
  for (int block = 0; block < blocks; ++block) {
    V even[rows], odd[rows];
    MR_UNROLL
    for (int r = 0; r < rows; ++r) even[r] = odd[r] = set1(0);
    for (int k = 0; k < 16; ++k) {
      const I pair = load_words(tiles[block] + k * kTileRowBytes);
      const V b_even = from_bits(shift_left<16>(pair)),
              b_odd = from_bits(and_words(pair, set1_word(kHighHalf)));
      const float* x = a + block * 32 + 2 * k;
      MR_UNROLL
      for (int r = 0; r < rows; ++r) {
        even[r] = fma(set1(x[r * a_stride]), b_even, even[r]);
        odd[r] = fma(set1(x[r * a_stride + 1]), b_odd, odd[r]);
      }
    }
    MR_UNROLL
    for (int r = 0; r < rows; ++r) sum[r] = add(sum[r], add(even[r], odd[r]));
  }
  MR_UNROLL
  for (int r = 0; r < rows; ++r) store(c + r * c_stride, sum[r]);
}

inline void product_rows(const float* a, int64_t a_stride, const std::byte* const* tiles, int blocks,
                         float* c, int64_t c_stride, int rows) {
  int r = 0;
  for (; r + kMicroRows <= rows; r += kMicroRows)
    product<kMicroRows>(a + r * a_stride, a_stride, tiles, blocks, c + r * c_stride, c_stride);
  if constexpr (kMicroRows > 4)
    for (; r + 4 <= rows; r += 4)
      product<4>(a + r * a_stride, a_stride, tiles, blocks, c + r * c_stride, c_stride);
  if constexpr (kMicroRows > 2)
    for (; r + 2 <= rows; r += 2)
      product<2>(a + r * a_stride, a_stride, tiles, blocks, c + r * c_stride, c_stride);
  for (; r < rows; ++r) product<1>(a + r * a_stride, a_stride, tiles, blocks, c + r * c_stride, c_stride);
}

struct Vectors {
#ifdef MR_VEC_AVX512
  static constexpr auto values_of_keys = turn_keys;
#else
  static constexpr auto values_of_keys = internal::values_of_keys;
#endif

  static void gather(const AttentionArgs& args, const Heads& heads, int64_t first_row, int rows,
                     const AttentionScratch& scratch) {
    const int key_dim = args.shape.key_dim;
    for (int r = 0; r < rows; ++r) {
      const float* q = query_row(args, row_place(heads, first_row + r));
      for (int d = 0; d < key_dim; d += 16)
        store(scratch.q + int64_t{r} * key_dim + d, round_bf16(load(q + d)));
    }
  }

  static void scores(const AttentionArgs& args, int kv_head, int64_t first_page, int pages, int rows,
                     const AttentionScratch& scratch) {
    const int key_dim = args.shape.key_dim, blocks = key_dim / 32;
    const std::byte* tiles[kBf16DimMax / 32];
    for (int keys = 0; keys < pages * kPageTokens; keys += 16) {
      const std::byte* part =
          kv_part(args.shape, args.view, args.layer, first_page + keys / kPageTokens, kv_head, Part::key);
      for (int b = 0; b < blocks; ++b)
        tiles[b] = part + internal::key_offset(key_dim, keys % kPageTokens, b * 32);
      product_rows(scratch.q, key_dim, tiles, blocks, scratch.scores + keys, kScoreStride, rows);
    }
  }

  static void values(const AttentionArgs& args, int kv_head, int64_t begin, int pages, int rows,
                     const AttentionScratch& scratch) {
    const int value_dim = args.shape.value_dim;
    const std::byte* tiles[kAttentionChunk / kPageTokens];
    for (int d = 0; d < value_dim; d += 16) {
      for (int page = 0; page < pages; ++page)
        tiles[page] =
            value_part(args, kv_head, begin + page * kPageTokens, scratch) + internal::value_offset(0, d);
      product_rows(scratch.scores, kScoreStride, tiles, pages, scratch.chunk_o + d, value_dim, rows);
    }
  }

  static void chunk(const AttentionArgs& args, const Heads& heads, int64_t first_row, int rows, int64_t begin,
                    int keys, bool turns, const AttentionScratch& scratch) {
    const float c = args.scale * kLog2E;
    const int pages = (keys + kPageTokens - 1) / kPageTokens;
    for (int page = 0; turns && page < pages; ++page)
      turn_values<Vectors>(args, heads.kv_head, begin + page * kPageTokens, scratch);
    scores(args, heads.kv_head, begin / kPageTokens, pages, rows, scratch);
    for (int r = 0; r < rows; ++r) {
      const int64_t visible = args.first_position + row_place(heads, first_row + r).query + 1 - begin;
      softmax_chunk<true>(scratch.scores + r * kScoreStride,
                          static_cast<int>(visible < kAttentionChunk ? visible : kAttentionChunk),
                          pages * kPageTokens, c, scratch.chunk_m + r, scratch.chunk_l + r);
    }
    values(args, heads.kv_head, begin, pages, rows, scratch);
  }
};

inline void attention(const AttentionArgs& args) {
  if (args.shape.type == KvType::f32) return attention_f32(args);
  attend_bf16<Vectors>(args);
}

constexpr AttentionKernels kAttention = {kv_write, attention};

}  // namespace
}  // namespace millrace::kernels::MR_TARGET
