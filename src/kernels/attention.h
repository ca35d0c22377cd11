// Causal attention over a paged KV cache, one arithmetic for prefill and decode.
//
// For a query at position t and keys 0..t, keys are taken in chunks of kAttentionChunk at absolute positions:
//   s_j = scale * (q . k_j);  m_c = max s;  p_j = bf16(exp(s_j - m_c));  l_c = sum p_j;  o_c = sum p_j v_j
// and chunks are merged in ascending order:
//   m' = max(m, m_c);  a = exp(m - m');  b = exp(m_c - m');  l = l*a + l_c*b;  o = o*a + o_c*b
// with the first chunk taken as it is; the result is o / l. A masked key contributes an exact zero, so a row's bits do
// not depend on which other rows, chunks of prefill, or threads ran with it. On the BF16 cache q is rounded to BF16 and
// products follow AMX's TDPBF16PS (blocks of 32 along the sum; two FMA chains, even and odd, from zero; their sum; one
// add), which every level reproduces. On the F32 cache (the checking path) sums are canonical 16-lane FMA sums.
// Online softmax: Milakov and Gimelshein (2018); chunking as in FlashDecoding (Dao et al., 2023).
#pragma once
#include <cstddef>
#include <cstdint>

#include "kernels/isa.h"

namespace millrace::kernels {

inline constexpr int kPageTokens = 32;       // tokens in a KV page; the unit of caching
inline constexpr int kAttentionChunk = 256;  // keys per softmax chunk (8 pages)

enum class KvType : uint8_t { bf16, f32 };

// One layer's share of a KV page holds, per KV head, a K part and a V part of kPageTokens x head_dim elements.
//   bf16 K: for each 16 keys, for each pair of dims: [key % 16][dim % 2]          (score product's B tiles)
//   bf16 V: for each pair of keys, for each 16 dims:  [dim % 16][key % 2]          (value product's B tiles)
//   exact offsets: see kv_offset() in attention.cc;   f32: plain [token][dim] for both
// head_dim is a multiple of 32 for bf16 (64, 96, 128, 256), any even number for f32. Pages must be zero or hold finite
// values everywhere: a key that is masked is multiplied by zero.
struct KvShape {
  int layers = 0;
  int kv_heads = 0;
  int head_dim = 0;
  KvType type = KvType::bf16;
  size_t element_bytes() const { return type == KvType::bf16 ? 2 : 4; }
  size_t head_part_bytes() const { return size_t(kPageTokens) * size_t(head_dim) * element_bytes(); }
  size_t layer_bytes() const { return 2 * size_t(kv_heads) * head_part_bytes(); }  // K of all heads, then V of all heads
  size_t page_bytes() const { return size_t(layers) * layer_bytes(); }             // a page: layer after layer
};

// A sequence's pages: page i holds positions [32 i, 32 i + 32). `pool` is the base of a group's pages.
struct KvView {
  std::byte* pool = nullptr;
  const int32_t* pages = nullptr;  // page indices; page p starts at pool + p * shape.page_bytes()
};

// Writes keys (after RoPE) and values of `rows` consecutive positions into their pages, rounding to the cache's type.
// k, v: [rows][kv_heads * head_dim] with strides in floats.
using KvWriteFn = void(const KvShape& shape, const KvView& view, int layer, int64_t first_position, int rows,
                       const float* k, int64_t k_stride, const float* v, int64_t v_stride);

struct AttentionArgs {
  KvShape shape;
  KvView view;
  int layer = 0;
  int q_heads = 0;             // a multiple of shape.kv_heads; head h reads KV head h / (q_heads / kv_heads)
  float scale = 0;             // head_dim^-1/2
  int64_t first_position = 0;  // rows are consecutive positions of one sequence, their K and V already written
  int rows = 0;
  const float* q = nullptr;    // [rows][q_heads * head_dim], after RoPE
  int64_t q_stride = 0;
  float* out = nullptr;        // [rows][q_heads * head_dim]
  int64_t out_stride = 0;
  int kv_head_begin = 0, kv_head_end = 0;  // the share of this call: these KV heads (and their query heads) only
  std::byte* scratch = nullptr;            // attention_scratch_bytes(), 64-byte aligned, one per thread
};
using AttentionFn = void(const AttentionArgs& args);
size_t attention_scratch_bytes(const KvShape& shape, int q_heads);

struct AttentionKernels {
  KvWriteFn* kv_write;
  AttentionFn* attention;
};
const AttentionKernels& attention_kernels();  // at the active level
const AttentionKernels& attention_kernels_at(Isa isa);

}  // namespace millrace::kernels
