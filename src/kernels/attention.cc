#include "kernels/attention.h"

#include <fmt/format.h>

#include "base/status.h"
#include "kernels/internal/attention_levels.h"

namespace millrace::kernels {

size_t attention_scratch_bytes(const KvShape& shape, int q_heads) {
  MR_CHECK(shape.kv_heads > 0 && q_heads > 0 && q_heads % shape.kv_heads == 0,
           fmt::format("{} query heads over {} KV heads", q_heads, shape.kv_heads));
  if (shape.type == KvType::bf16) {
    MR_CHECK(shape.head_dim > 0 && shape.head_dim % 32 == 0 && shape.head_dim <= internal::kMaxHeadDim,
             fmt::format("head_dim {} on a BF16 cache: want a multiple of 32 up to {}", shape.head_dim,
                         internal::kMaxHeadDim));
  } else {
    MR_CHECK(shape.head_dim > 0 && shape.head_dim % 2 == 0,
             fmt::format("head_dim {}: want an even number", shape.head_dim));
  }
  return internal::AttentionScratch::floats(shape.head_dim) * sizeof(float);
}

const AttentionKernels& attention_kernels_at(Isa isa) {
  switch (isa) {
    case Isa::scalar:
      break;
    case Isa::avx2:
      return internal::kAttentionAvx2;
    case Isa::avx512:
      return internal::kAttentionAvx512;
    case Isa::amx:
      return internal::kAttentionAmx;
  }
  return internal::kAttentionScalar;
}

const AttentionKernels& attention_kernels() {
  static const AttentionKernels& kernels = attention_kernels_at(active_isa());
  return kernels;
}

}  // namespace millrace::kernels
