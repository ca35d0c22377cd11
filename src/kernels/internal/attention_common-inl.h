// The parts of attention that every level shares, in the 16-lane vocabulary: softmax of a chunk, merging of
// chunks, the float path, writing K and V. What multiplies tiles is in attention-inl.h (vectors) and
// attention_amx.cc.
#pragma once
#include "kernels/internal/attention_levels.h"
#include "kernels/internal/math-inl.h"
#include "kernels/internal/vec16-inl.h"

namespace millrace::kernels::MR_TARGET {
namespace {

using internal::AttentionScratch;
using internal::kBlockRows;
using internal::kPanelRows;
using internal::kScoreStride;
using internal::kTileBytes;
using internal::kTileRowBytes;
using internal::kv_part;
using internal::Part;

constexpr float kLog2E = 0x1.715476p+0f;

MR_INLINE V minus_infinity_lanes() { return from_bits(set1_word(static_cast<int32_t>(0xff800000))); }

// The query heads [first, first + count) of one KV head.
struct Heads {
  int kv_head, first, count;
};
template <typename F>
inline void for_each_kv_head(const AttentionArgs& args, F&& f) {
  const int group = args.q_heads / args.shape.kv_heads;
  for (int head = args.q_head_begin; head < args.q_head_end;) {
    const int kv_head = head / group, end = (kv_head + 1) * group;
    const int stop = end < args.q_head_end ? end : args.q_head_end;
    f(Heads{kv_head, head, stop - head});
    head = stop;
  }
}

// Where row `index` of those heads' (query, head) rows lies in q and out.
struct RowPlace {
  int64_t query;
  int64_t head;
};
MR_INLINE RowPlace row_place(const Heads& heads, int64_t index) {
  return {index / heads.count, heads.first + index % heads.count};
}
MR_INLINE const float* query_row(const AttentionArgs& args, RowPlace place) {
  return args.q + place.query * args.q_stride + place.head * args.shape.key_dim;
}
MR_INLINE float* out_row(const AttentionArgs& args, RowPlace place) {
  return args.out + place.query * args.out_stride + place.head * args.shape.value_dim;
}

// A row's first max(visible, 0) keys of a chunk count; the scores after them, up to `total`, become
// -infinity. Returns the largest score of the visible ones (-infinity if there are none).
inline float mask_and_max(float* s, int visible, int total) {
  // Whole vectors: lanes stored one by one would have the loads below wait for the stores.
  int hidden = visible < 0 ? 0 : visible;
  if (hidden % 16 != 0) {
    const int k = hidden / 16 * 16;
    store(s + k, load_partial(s + k, hidden - k, minus_infinity_lanes()));
    hidden = k + 16;
  }
  for (; hidden < total; hidden += 16) store(s + hidden, minus_infinity_lanes());
  V top_0 = minus_infinity_lanes(), top_1 = top_0;
  for (int k = 0; k < total; k += 32) {
    top_0 = max(load(s + k), top_0);
    top_1 = max(load(s + k + 16), top_1);
  }
  return fold_max(max(top_0, top_1));
}

// Turns a row's raw scores (q . k) of a chunk into p in place and returns their sum. In units of log2, m = c
// * max and p = 2^(fma(score, c, -m)). The sum has 16 lanes; of every 32 keys lane i adds p[2i+1], then p[2i]
// (the order of VDPBF16PS, which does it on the amx level).
template <bool bf16>
MR_INLINE float exponentiate(float* s, int total, float c, float m) {
  constexpr int degree = bf16 ? 3 : 6;  // of the polynomial: p is rounded to BF16, or kept
  const V scale = set1(c), offset = set1(-m);
  V sum = set1(0);
  for (int k = 0; k < total; k += 32) {
    V p_0 = exp2_nonpositive<degree>(fma(load(s + k), scale, offset));
    V p_1 = exp2_nonpositive<degree>(fma(load(s + k + 16), scale, offset));
    if constexpr (bf16) p_0 = round_bf16_number(p_0), p_1 = round_bf16_number(p_1);
    store(s + k, p_0);
    store(s + k + 16, p_1);
    V even, odd;
    split_pairs(p_0, p_1, even, odd);
    sum = add(add(sum, odd), even);
  }
  return fold_sum(sum);
}

template <bool bf16>
inline void softmax_chunk(float* s, int visible, int total, float c, float* chunk_m, float* chunk_l) {
  const float top = mask_and_max(s, visible, total);
  if (visible <= 0) {  // a later query of the block sees this chunk, this row does not: weight exactly zero
    for (int k = 0; k < total; k += 16) store(s + k, set1(0));
    *chunk_m = top;
    *chunk_l = 0;
    return;
  }
  *chunk_m = c * top;
  *chunk_l = exponentiate<bf16>(s, total, c, *chunk_m);
}

inline void start_block(const AttentionScratch& scratch, int rows, int64_t row_floats) {
  for (int r = 0; r < kBlockRows; r += 16) {
    store(scratch.m + r, minus_infinity_lanes());
    store(scratch.l + r, set1(0));
    store(scratch.chunk_m + r, minus_infinity_lanes());
    store(scratch.chunk_l + r, set1(0));
  }
  for (int64_t k = 0; k < rows * row_floats; k += 16) store(scratch.o + k, set1(0));
}

// Joins a chunk to what came before it. The first chunk passes unchanged: a = 2^-infinity = 0 and b = 1; a
// chunk that a row does not see has b = 0 and a = 1.
struct Merge {
  float *m, *l;  // [rows, up to a multiple of 16]
  const float *chunk_m, *chunk_l;
  float* o;  // [rows][row_floats]
  const float* chunk_o;
};
inline void merge_chunk(const Merge& x, int rows, int64_t row_floats) {
  alignas(64) float a[kBlockRows], b[kBlockRows];
  for (int r = 0; r < rows; r += 16) {
    const V old_m = load(x.m + r), chunk_m = load(x.chunk_m + r);
    const V new_m = max(old_m, chunk_m);
    const V keep = exp2_nonpositive<6>(sub(old_m, new_m)), take = exp2_nonpositive<6>(sub(chunk_m, new_m));
    store(x.m + r, new_m);
    store(x.l + r, fma(load(x.l + r), keep, mul(load(x.chunk_l + r), take)));
    store(a + r, keep);
    store(b + r, take);
  }
  for (int r = 0; r < rows; ++r) {
    const V keep = set1(a[r]), take = set1(b[r]);
    float* o = x.o + r * row_floats;
    const float* chunk_o = x.chunk_o + r * row_floats;
    for (int64_t d = 0; d < row_floats; d += 16)
      store(o + d, fma(load(o + d), keep, mul(load(chunk_o + d), take)));
  }
}

inline Merge merge_of(const AttentionScratch& scratch) {
  return {scratch.m, scratch.l, scratch.chunk_m, scratch.chunk_l, scratch.o, scratch.chunk_o};
}

// out = o / l. The added zero makes every zero +0: whether a zero arose as -0 may depend on how many masked
// keys were multiplied along.
inline void finish_row(const float* o, float l, int value_dim, float* out) {
  const V total = set1(l);
  int d = 0;
  for (; d + 16 <= value_dim; d += 16) store(out + d, div(add(load(o + d), set1(0)), total));
  if (d < value_dim)
    store_partial(out + d, div(add(load_tail(o + d, value_dim - d), set1(0)), total), value_dim - d);
}

// ---- the order of the work: panels of blocks, each chunk of keys taken by all blocks of the panel before
// the next Level::gather(args, heads, first_row, rows, scratch) rounds a block's queries into scratch.q;
// Level::chunk(args, heads, first_row, rows, begin, keys, turns, scratch) leaves chunk_m, chunk_l and
// chunk_o; if it `turns`, the V parts of value_is_key_prefix are not in scratch yet and it makes them.

MR_INLINE size_t value_part_offset(const KvShape& shape, int64_t position) {
  return size_t(position % kAttentionChunk / kPageTokens) * AttentionScratch::part_bytes(shape);
}
// The V part of the page that holds `position`, a position of the chunk at hand.
MR_INLINE const std::byte* value_part(const AttentionArgs& args, int kv_head, int64_t position,
                                      const AttentionScratch& scratch) {
  if (args.shape.value_is_key_prefix) return scratch.values + value_part_offset(args.shape, position);
  return kv_part(args.shape, args.view, args.layer, position / kPageTokens, kv_head, Part::value);
}

// The V part of the page that holds `position`, from its K part.
template <typename Level>
MR_INLINE void turn_values(const AttentionArgs& args, int kv_head, int64_t position,
                           const AttentionScratch& scratch) {
  Level::values_of_keys(
      kv_part(args.shape, args.view, args.layer, position / kPageTokens, kv_head, Part::key),
      args.shape.key_dim, args.shape.value_dim, scratch.values + value_part_offset(args.shape, position));
}

template <typename Level>
inline void attend_panel(const AttentionArgs& args, const Heads& heads, int64_t first_row, int64_t rows,
                         const AttentionScratch& scratch) {
  const int value_dim = args.shape.value_dim;
  const auto last_of = [&](int64_t row) { return args.first_position + row_place(heads, row).query; };
  const auto each_block = [&](auto&& f) {
    for (int64_t row = 0; row < rows; row += kBlockRows)
      f(first_row + row, static_cast<int>(rows - row < kBlockRows ? rows - row : kBlockRows),
        scratch.block(static_cast<int>(row / kBlockRows)));
  };
  each_block([&](int64_t row, int count, const AttentionScratch& block) {
    Level::gather(args, heads, row, count, block);
    start_block(block, count, value_dim);
  });
  const int64_t last = last_of(first_row + rows - 1);
  // A block alone turns a page's keys into values when it reads them: the chunk's keys and values together
  // are more than L1.
  const bool one_block = rows <= kBlockRows;
  for (int64_t begin = 0; begin <= last; begin += kAttentionChunk) {
    if (args.shape.value_is_key_prefix && !one_block) {
      for (int64_t at = begin; at <= last && at < begin + kAttentionChunk; at += kPageTokens)
        turn_values<Level>(args, heads.kv_head, at, scratch);
    }
    each_block([&](int64_t row, int count, const AttentionScratch& block) {
      const int64_t visible = last_of(row + count - 1) + 1 - begin;
      if (visible <= 0) return;
      const int keys = static_cast<int>(visible < kAttentionChunk ? visible : kAttentionChunk);
      Level::chunk(args, heads, row, count, begin, keys, args.shape.value_is_key_prefix && one_block, block);
      merge_chunk(merge_of(block), count, value_dim);
    });
  }
  each_block([&](int64_t row, int count, const AttentionScratch& block) {
    for (int r = 0; r < count; ++r)
      finish_row(block.o + int64_t{r} * value_dim, block.l[r], value_dim,
                 out_row(args, row_place(heads, row + r)));
  });
}

template <typename Level>
inline void attend_bf16(const AttentionArgs& args) {
  const AttentionScratch scratch(args.scratch, args.shape);
  for_each_kv_head(args, [&](const Heads& heads) {
    const int64_t rows = int64_t{args.rows} * heads.count;
    for (int64_t row = 0; row < rows; row += kPanelRows)
      attend_panel<Level>(args, heads, row, rows - row < kPanelRows ? rows - row : kPanelRows, scratch);
  });
}

// ---- the float path: one row at a time, visible keys only

inline float canonical_dot(const float* a, const float* b, int n) {
  V sum = set1(0);
  int k = 0;
  for (; k + 16 <= n; k += 16) sum = fma(load(a + k), load(b + k), sum);
  if (k < n) sum = fma(load_tail(a + k, n - k), load_tail(b + k, n - k), sum);
  return fold_sum(sum);
}

inline const float* float_row(const AttentionArgs& args, int kv_head, int64_t position, Part part) {
  if (args.shape.value_is_key_prefix) part = Part::key;
  const std::byte* base = kv_part(args.shape, args.view, args.layer, position / kPageTokens, kv_head, part);
  const int dim = part == Part::key ? args.shape.key_dim : args.shape.value_dim;
  return reinterpret_cast<const float*>(base) + position % kPageTokens * dim;
}

inline void attention_row_f32(const AttentionArgs& args, const Heads& heads, int64_t index,
                              const AttentionScratch& scratch) {
  const int kv_head = heads.kv_head, key_dim = args.shape.key_dim, value_dim = args.shape.value_dim;
  const int64_t row_floats = static_cast<int64_t>(AttentionScratch::row_floats(value_dim));
  const RowPlace place = row_place(heads, index);
  const float* q = query_row(args, place);
  const int64_t keys = args.first_position + place.query + 1;
  start_block(scratch, 1, row_floats);
  for (int64_t begin = 0; begin < keys; begin += kAttentionChunk) {
    const int visible = static_cast<int>(keys - begin < kAttentionChunk ? keys - begin : kAttentionChunk);
    for (int j = 0; j < visible; ++j)
      scratch.scores[j] = canonical_dot(q, float_row(args, kv_head, begin + j, Part::key), key_dim);
    softmax_chunk<false>(scratch.scores, visible, (visible + 31) / 32 * 32, args.scale * kLog2E,
                         scratch.chunk_m, scratch.chunk_l);
    for (int64_t d = 0; d < row_floats; d += 16) store(scratch.chunk_o + d, set1(0));
    for (int j = 0; j < visible; ++j) {
      const float* v = float_row(args, kv_head, begin + j, Part::value);
      const V p = set1(scratch.scores[j]);
      int d = 0;
      for (; d + 16 <= value_dim; d += 16)
        store(scratch.chunk_o + d, fma(p, load(v + d), load(scratch.chunk_o + d)));
      if (d < value_dim)
        store(scratch.chunk_o + d, fma(p, load_tail(v + d, value_dim - d), load(scratch.chunk_o + d)));
    }
    merge_chunk(merge_of(scratch), 1, row_floats);
  }
  finish_row(scratch.o, scratch.l[0], value_dim, out_row(args, place));
}

inline void attention_f32(const AttentionArgs& args) {
  const AttentionScratch scratch(args.scratch, args.shape);
  for_each_kv_head(args, [&](const Heads& heads) {
    const int64_t rows = int64_t{args.rows} * heads.count;
    for (int64_t index = 0; index < rows; ++index) attention_row_f32(args, heads, index, scratch);
  });
}

// ---- writing K and V

// 32 values as 16 words of two BF16 each, the earlier in the low half.
MR_INLINE I bf16_pairs(const float* x) {
  V even, odd;
  split_pairs(round_bf16(load(x)), round_bf16(load(x + 16)), even, odd);
  return or_words(shift_right<16>(bits(even)), bits(odd));
}

// No infinity, no NaN: a masked key's values are multiplied by zero (attention.h). max gives its second
// operand for a NaN. What is left rounds to a finite BF16.
MR_INLINE V finite(V x) { return min(max(x, set1(-0x1.fep127f)), set1(0x1.fep127f)); }

// The first `values` dims (a multiple of 32) are values too.
inline void write_key(const float* k, int key_dim, int values, int slot, std::byte* part) {
  for (int d = 0; d < key_dim; d += 32) {
    alignas(64) float finite_part[32];
    if (d < values) {
      store(finite_part, finite(load(k + d)));
      store(finite_part + 16, finite(load(k + d + 16)));
    }
    alignas(64) int32_t pairs[16];
    store_words(pairs, bf16_pairs(d < values ? finite_part : k + d));
    std::byte* tile = part + internal::key_offset(key_dim, slot, d);
    for (int j = 0; j < 16; ++j) std::memcpy(tile + j * kTileRowBytes, pairs + j, 4);
  }
}

// 16 values as BF16 in the high halves of words.
MR_INLINE I finite_bf16(const float* v) { return bits(round_bf16_number(finite(load(v)))); }

// Values of the keys at slot and slot + 1 (slot even), which share words.
inline void write_value_pair(const float* even, const float* odd, int value_dim, int slot, std::byte* part) {
  for (int d = 0; d < value_dim; d += 16)
    store_words(part + internal::value_offset(slot, d),
                or_words(shift_right<16>(finite_bf16(even + d)), finite_bf16(odd + d)));
}

// One key's values, in 16-bit stores: the words' other halves belong to a key that another thread may be
// writing.
inline void write_value(const float* v, int value_dim, int slot, std::byte* part) {
  for (int d = 0; d < value_dim; d += 16) {
    alignas(64) uint32_t rounded[16];
    store_words(rounded, finite_bf16(v + d));
    for (int j = 0; j < 16; ++j) {
      const uint16_t high = static_cast<uint16_t>(rounded[j] >> 16);
      std::memcpy(part + internal::value_offset(slot, d + j), &high, 2);
    }
  }
}

inline void kv_write_f32(const KvShape& shape, const KvView& view, int layer, int64_t first_position,
                         int rows, const float* k, int64_t k_stride, const float* v, int64_t v_stride) {
  const auto copy = [&](int64_t position, int head, Part part, int dim, const float* from) {
    const size_t bytes = size_t(dim) * sizeof(float);
    std::memcpy(kv_part(shape, view, layer, position / kPageTokens, head, part) +
                    size_t(position % kPageTokens) * bytes,
                from + int64_t{head} * dim, bytes);
  };
  for (int i = 0; i < rows; ++i) {
    for (int head = 0; head < shape.kv_heads; ++head) {
      copy(first_position + i, head, Part::key, shape.key_dim, k + i * k_stride);
      if (!shape.value_is_key_prefix)
        copy(first_position + i, head, Part::value, shape.value_dim, v + i * v_stride);
    }
  }
}

inline void kv_write(const KvShape& shape, const KvView& view, int layer, int64_t first_position, int rows,
                     const float* k, int64_t k_stride, const float* v, int64_t v_stride) {
  if (shape.type == KvType::f32)
    return kv_write_f32(shape, view, layer, first_position, rows, k, k_stride, v, v_stride);
  for (int head = 0; head < shape.kv_heads; ++head) {
    const float* keys = k + int64_t{head} * shape.key_dim;
    const float* head_values = v + int64_t{head} * shape.value_dim;
    for (int i = 0; i < rows; ++i) {
      const int64_t position = first_position + i;
      const int slot = static_cast<int>(position % kPageTokens);
      const int64_t page = position / kPageTokens;
      write_key(keys + i * k_stride, shape.key_dim, shape.value_is_key_prefix ? shape.value_dim : 0, slot,
                kv_part(shape, view, layer, page, head, Part::key));
      if (shape.value_is_key_prefix) continue;
      std::byte* values = kv_part(shape, view, layer, page, head, Part::value);
      const float* row = head_values + i * v_stride;
      if (slot % 2 == 0 && i + 1 < rows) {
        write_value_pair(row, row + v_stride, shape.value_dim, slot, values);
      } else if (slot % 2 == 0 || i == 0) {
        write_value(row, shape.value_dim, slot, values);
      }  // else: written together with the row before
    }
  }
}

}  // namespace
}  // namespace millrace::kernels::MR_TARGET
