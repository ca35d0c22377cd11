// Attention with both products on AMX: what TDPBF16PS does is the arithmetic that attention.h defines.
//
// Tile registers: 0-3 sums (rows 0-15 and 16-31 of the block times two tiles of columns), 4 and 5 the left
// side of the two groups of rows, 6 and 7 the right side. Blocks of at most 16 rows use 0, 1, 4, 6, 7 with
// just as many rows.
#if defined(__GNUC__) && !defined(__clang__)
// GCC 12 finds both in its own intrinsics (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include <immintrin.h>

#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "kernels/internal/amx_config.h"
#include "kernels/internal/attention_levels.h"
#include "kernels/internal/target.h"

#define MR_TARGET amx
#define MR_VEC_AVX512
MR_BEGIN_TARGET(MR_TARGET_AMX ",avx512bf16")
#include "kernels/internal/attention_common-inl.h"
#include "kernels/internal/attention_turn-inl.h"

namespace millrace::kernels::amx {
namespace {

constexpr int kScoreBytes = kScoreStride * 4;

// The tile instructions are opaque to the compiler: what they load must have been stored before, not kept in
// registers.
MR_INLINE void publish_stores() { __asm__ volatile("" ::: "memory"); }

// By rows of a block. Constants: a configuration that was just written is read only when its stores are done.
constexpr auto kConfigOfRows = [] {
  std::array<internal::AmxConfig, kBlockRows + 1> configs;
  for (int rows = 1; rows <= kBlockRows; ++rows) {
    const auto first = static_cast<uint8_t>(rows < 16 ? rows : 16),
               second = static_cast<uint8_t>(rows - first);
    for (const int tile : {0, 1, 4}) configs[rows].rows[tile] = first;
    for (const int tile : {2, 3, 5}) configs[rows].rows[tile] = second > 0 ? second : first;
  }
  return configs;
}();

// Queries as left-side tiles: [row / 16][dim / 32] of 16 rows of 32 BF16.
MR_INLINE std::byte* query_tile(const AttentionScratch& scratch, int key_dim, int rows_tile, int block) {
  return reinterpret_cast<std::byte*>(scratch.q) + size_t(rows_tile * (key_dim / 32) + block) * kTileBytes;
}

// Raw scores of the 32 keys of a page, for one tile of rows or two. `part` is the page's K; the two groups of
// 16 keys lie one after the other. For one tile of rows a second page (`other`) runs beside the first: a
// sum's products wait for each other, so four sums at once are what keeps the unit busy.
template <bool two, bool pair>
MR_INLINE void scores_of_page(const std::byte* part, const std::byte* other, int key_dim, float* scores,
                              const AttentionScratch& scratch) {
  static_assert(!two || !pair);
  const int blocks = key_dim / 32;
  _tile_zero(0);
  _tile_zero(1);
  if constexpr (two || pair) {
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int block = 0; block < blocks; ++block) {
    _tile_loadd(4, query_tile(scratch, key_dim, 0, block), kTileRowBytes);
    _tile_loadd(6, part + block * kTileBytes, kTileRowBytes);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, part + (blocks + block) * kTileBytes, kTileRowBytes);
    _tile_dpbf16ps(1, 4, 7);
    if constexpr (two) {
      _tile_loadd(5, query_tile(scratch, key_dim, 1, block), kTileRowBytes);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
    if constexpr (pair) {
      _tile_loadd(6, other + block * kTileBytes, kTileRowBytes);
      _tile_dpbf16ps(2, 4, 6);
      _tile_loadd(7, other + (blocks + block) * kTileBytes, kTileRowBytes);
      _tile_dpbf16ps(3, 4, 7);
    }
  }
  _tile_stored(0, scores, kScoreBytes);
  _tile_stored(1, scores + 16, kScoreBytes);
  float* const rest = two ? scores + 16 * kScoreStride : scores + kPageTokens;
  if constexpr (two || pair) {
    _tile_stored(2, rest, kScoreBytes);
    _tile_stored(3, rest + 16, kScoreBytes);
  }
}

// bf16_pairs of a query. VCVTNE2PS2BF16 makes zeros of denormals; the other levels would round the largest of
// them up to 2^-126, but threads that flush denormals (attention.h) have none.
MR_INLINE I query_pairs(const float* q) { return {(__m512i)_mm512_cvtne2ps_pbh(load(q + 16).x, load(q).x)}; }

// Dims [dim, dim + 16 * tiles) of a page's keys as tiles of a V part.
template <int tiles>
MR_INLINE const std::byte* turned(const std::byte* keys, int key_dim, int dim, std::byte* values) {
  MR_UNROLL
  for (int tile = 0; tile < tiles; ++tile)
    for (int key = 0; key < kPageTokens; key += 16)
      transpose_groups(keys + internal::key_offset(key_dim, key, dim + 16 * tile),
                       values + internal::value_offset(key, 16 * tile));
  return values;
}

// Sums over the chunk's keys of p times the values of dims [dim, dim + 16 * tiles): up to two tiles of dims
// for two tiles of rows, up to four for one. `parts`: V parts, or K parts that are turned here.
template <bool two, int tiles, bool turns>
MR_INLINE void values_of_dims(const std::byte* const* parts, int pages, int dim, const KvShape& shape,
                              const AttentionScratch& scratch) {
  static_assert(tiles <= (two ? 2 : 4));
  const int value_dim = shape.value_dim;
  const std::byte* p = reinterpret_cast<const std::byte*>(scratch.scores);
  _tile_zero(0);
  if constexpr (tiles > 1) _tile_zero(1);
  if constexpr (two || tiles > 2) _tile_zero(2);
  if constexpr ((two && tiles > 1) || tiles > 3) _tile_zero(3);
  for (int page = 0; page < pages; ++page) {
    const std::byte* tile;
    if constexpr (turns) {  // into two places by turns, which stay in L1
      tile = turned<tiles>(parts[page], shape.key_dim, dim, scratch.values + page % 2 * tiles * kTileBytes);
      publish_stores();
    } else {
      tile = parts[page] + internal::value_offset(0, dim);
    }
    _tile_loadd(4, p + page * kTileRowBytes, kScoreBytes);
    _tile_loadd(6, tile, kTileRowBytes);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (tiles > 1) {
      _tile_loadd(7, tile + kTileBytes, kTileRowBytes);
      _tile_dpbf16ps(1, 4, 7);
    }
    if constexpr (two) {
      _tile_loadd(5, p + 16 * kScoreBytes + page * kTileRowBytes, kScoreBytes);
      _tile_dpbf16ps(2, 5, 6);
      if constexpr (tiles > 1) _tile_dpbf16ps(3, 5, 7);
    }
    if constexpr (tiles > 2) {
      _tile_loadd(6, tile + 2 * kTileBytes, kTileRowBytes);
      _tile_dpbf16ps(2, 4, 6);
    }
    if constexpr (tiles > 3) {
      _tile_loadd(7, tile + 3 * kTileBytes, kTileRowBytes);
      _tile_dpbf16ps(3, 4, 7);
    }
  }
  const int stride = value_dim * 4;
  float* out = scratch.chunk_o + dim;
  _tile_stored(0, out, stride);
  if constexpr (tiles > 1) _tile_stored(1, out + 16, stride);
  if constexpr (two) _tile_stored(2, out + 16 * value_dim, stride);
  if constexpr (two && tiles > 1) _tile_stored(3, out + 16 * value_dim + 16, stride);
  if constexpr (tiles > 2) _tile_stored(2, out + 32, stride);
  if constexpr (tiles > 3) _tile_stored(3, out + 48, stride);
}

template <bool two, bool turns>
MR_INLINE void values(const std::byte* const* parts, int pages, const KvShape& shape,
                      const AttentionScratch& scratch) {
  constexpr int kTiles = two ? 2 : 4;
  int dim = 0;
  for (; dim + 16 * kTiles <= shape.value_dim; dim += 16 * kTiles)
    values_of_dims<two, kTiles, turns>(parts, pages, dim, shape, scratch);
  if constexpr (!two) {
    if (dim + 32 <= shape.value_dim) {
      values_of_dims<two, 2, turns>(parts, pages, dim, shape, scratch);
      dim += 32;
    }
  }
  if (dim < shape.value_dim) values_of_dims<two, 1, turns>(parts, pages, dim, shape, scratch);
}

// exponentiate<true> of attention_common-inl.h with the conversions that this level has instructions for: p
// replaces the scores as BF16, two keys to a word. VCVTNE2PS2BF16 rounds to nearest even, and p is never
// denormal or NaN; VDPBF16PS with ones adds a word's high half, then its low half.
MR_INLINE float exponentiate_bf16(float* s, int total, float c, float m) {
  const V scale = set1(c), offset = set1(-m);
  const __m512bh ones = (__m512bh)_mm512_set1_epi32(0x3f803f80);
  std::byte* p = reinterpret_cast<std::byte*>(s);
  V sum = set1(0);
  for (int k = 0; k < total; k += 32) {
    const V p_0 = exp2_nonpositive<3>(fma(load(s + k), scale, offset));
    const V p_1 = exp2_nonpositive<3>(fma(load(s + k + 16), scale, offset));
    const __m512bh pairs = _mm512_cvtne2ps_pbh(p_1.x, p_0.x);
    store_words(p + k * 2, I{(__m512i)pairs});
    sum = {_mm512_dpbf16_ps(sum.x, pairs, ones)};
  }
  return fold_sum(sum);
}

MR_INLINE void softmax_row(const AttentionScratch& scratch, int r, int64_t visible, int total, float c) {
  float* s = scratch.scores + r * kScoreStride;
  const int clamped = static_cast<int>(visible < total ? visible : total);
  const float top = mask_and_max(s, clamped, total);
  scratch.chunk_m[r] = top;
  scratch.chunk_l[r] = 0;
  if (clamped <= 0) {  // a later query of the block sees this chunk, this row does not: weight exactly zero
    for (int k = 0; k < total / 2; k += 16) store(s + k, set1(0));
    return;
  }
  scratch.chunk_m[r] = c * top;
  scratch.chunk_l[r] = exponentiate_bf16(s, total, c, c * top);
}

template <bool two>
MR_INLINE void products_and_softmax(const AttentionArgs& args, const Heads& heads, int64_t first_row,
                                    int rows, int64_t begin, int keys, bool turns,
                                    const AttentionScratch& scratch) {
  const int key_dim = args.shape.key_dim;
  const float c = args.scale * kLog2E;
  const int pages = (keys + kPageTokens - 1) / kPageTokens;
  const std::byte* parts[kAttentionChunk / kPageTokens];
  const auto key_part = [&](int page) {
    return kv_part(args.shape, args.view, args.layer, begin / kPageTokens + page, heads.kv_head, Part::key);
  };
  for (int page = 0; page < pages; ++page)
    parts[page] =
        turns ? key_part(page) : value_part(args, heads.kv_head, begin + page * kPageTokens, scratch);
  int page = 0;
  if constexpr (!two) {
    for (; page + 2 <= pages; page += 2)
      scores_of_page<false, true>(key_part(page), key_part(page + 1), key_dim,
                                  scratch.scores + page * kPageTokens, scratch);
  }
  for (; page < pages; ++page)
    scores_of_page<two, false>(key_part(page), nullptr, key_dim, scratch.scores + page * kPageTokens,
                               scratch);
  for (int r = 0; r < rows; ++r)
    softmax_row(scratch, r, args.first_position + row_place(heads, first_row + r).query + 1 - begin,
                pages * kPageTokens, c);
  publish_stores();
  if (turns) {
    values<two, true>(parts, pages, args.shape, scratch);
  } else {
    values<two, false>(parts, pages, args.shape, scratch);
  }
}

struct Tiles {
  static constexpr auto values_of_keys = turn_keys;

  static void gather(const AttentionArgs& args, const Heads& heads, int64_t first_row, int rows,
                     const AttentionScratch& scratch) {
    const int key_dim = args.shape.key_dim;
    for (int r = 0; r < rows; ++r) {
      const float* q = query_row(args, row_place(heads, first_row + r));
      for (int block = 0; block < key_dim / 32; ++block)
        store_words(query_tile(scratch, key_dim, r / 16, block) + r % 16 * kTileRowBytes,
                    query_pairs(q + block * 32));
    }
    publish_stores();
  }

  // Configures for each block and chunk: a panel's last block may have fewer rows than the others.
  static void chunk(const AttentionArgs& args, const Heads& heads, int64_t first_row, int rows, int64_t begin,
                    int keys, bool turns, const AttentionScratch& scratch) {
    _tile_loadconfig(&kConfigOfRows[static_cast<size_t>(rows)]);
    if (rows > 16) {
      products_and_softmax<true>(args, heads, first_row, rows, begin, keys, turns, scratch);
    } else {
      products_and_softmax<false>(args, heads, first_row, rows, begin, keys, turns, scratch);
    }
  }
};

void attention(const AttentionArgs& args) {
  if (args.shape.type == KvType::f32) return attention_f32(args);
  attend_bf16<Tiles>(args);
  _tile_release();
}

}  // namespace
}  // namespace millrace::kernels::amx
MR_END_TARGET

namespace millrace::kernels::internal {
constinit const AttentionKernels kAttentionAmx = {amx::kv_write, amx::attention};
}
