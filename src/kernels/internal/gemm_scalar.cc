// The GEMMs' reference text: plain C++, the arithmetic that every other level reproduces bit for bit.
#include <cmath>

#include "kernels/internal/gemm_levels.h"

namespace millrace::kernels::internal {
namespace {

// The integer sums of one row and one block of 16 channels; `tiles` is the block's first tile.
void dot_block(const int8_t* a, const int8_t* tiles, int64_t k_blocks, int32_t sums[kGemmNBlock]) {
  for (int n = 0; n < kGemmNBlock; ++n) sums[n] = 0;
  for (int64_t quad = 0; quad < k_blocks * (kGemmKBlock / 4); ++quad) {
    const int8_t* x = a + quad * 4;
    const int8_t* w = tiles + quad * 4 * kGemmNBlock;
    for (int n = 0; n < kGemmNBlock; ++n)
      sums[n] += x[0] * w[n * 4] + x[1] * w[n * 4 + 1] + x[2] * w[n * 4 + 2] + x[3] * w[n * 4 + 3];
  }
}

float canonical_dot(const float* a, const float* w, int k) {
  float lane[16] = {};
  for (int i = 0; i < k; ++i) lane[i % 16] = std::fma(a[i], w[i], lane[i % 16]);
  for (int half = 8; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) lane[i] += lane[i + half];
  return lane[0];
}

}  // namespace

void gemm_s8_scalar(const GemmS8Args& args) {
  const WeightsS8& w = *args.w;
  const int64_t k_blocks = padded_k(w.k) / kGemmKBlock;
  const int n_end = args.n_end < w.n ? args.n_end : w.n;
  for (int block = args.n_begin; block < n_end; block += kGemmNBlock) {
    const int8_t* tiles = w.tiles + block * k_blocks * kGemmKBlock;
    const int columns = n_end - block < kGemmNBlock ? n_end - block : kGemmNBlock;
    for (int i = 0; i < args.m; ++i) {
      int32_t sums[kGemmNBlock];
      dot_block(args.a + i * args.a_stride, tiles, k_blocks, sums);
      float* out = args.out + i * args.out_stride + block;
      for (int n = 0; n < columns; ++n) {
        float y = (static_cast<float>(sums[n]) * args.a_scale[i]) * w.scale[block + n];
        if (args.bias != nullptr) y = y + args.bias[block + n];
        if (args.accumulate) y = out[n] + y;
        out[n] = y;
      }
    }
  }
}

void gemm_f32_scalar(const GemmF32Args& args) {
  for (int n = args.n_begin; n < args.n_end; ++n) {
    const float* w = args.w + static_cast<int64_t>(n) * args.k;
    for (int i = 0; i < args.m; ++i) {
      float y = canonical_dot(args.a + i * args.a_stride, w, args.k);
      if (args.bias != nullptr) y = y + args.bias[n];
      float* out = args.out + i * args.out_stride + n;
      *out = args.accumulate ? *out + y : y;
    }
  }
}

}  // namespace millrace::kernels::internal
