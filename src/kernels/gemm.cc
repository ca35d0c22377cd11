#include "kernels/gemm_s8.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "base/status.h"
#include "kernels/internal/gemm_levels.h"

namespace millrace::kernels {
namespace {

using GemmS8Fn = void(const GemmS8Args&);
using GemmF32Fn = void(const GemmF32Args&);

GemmS8Fn* s8_of(Isa isa) {
  switch (isa) {
    case Isa::amx:
      return internal::gemm_s8_amx;
    case Isa::avx512:
      return internal::gemm_s8_avx512;
    case Isa::avx2:
      return internal::gemm_s8_avx2;
    case Isa::scalar:
      break;
  }
  return internal::gemm_s8_scalar;
}

GemmF32Fn* f32_of(Isa isa) {
  switch (isa) {
    case Isa::amx:
    case Isa::avx512:
      return internal::gemm_f32_avx512;
    case Isa::avx2:
      return internal::gemm_f32_avx2;
    case Isa::scalar:
      break;
  }
  return internal::gemm_f32_scalar;
}

// 127 * 127 * k must fit int32 (avx512 sums 255 * 127 * k before it corrects, modulo 2^32, which is exact all
// the same).
constexpr int kGemmKMax = 133'000;

// A wrong stride or range here would read or write outside the caller's memory: checked always, once per
// call.
void check(const GemmS8Args& args) {
  MR_CHECK(args.w != nullptr && args.w->k > 0 && args.w->k <= kGemmKMax, "k out of range");
  MR_CHECK(args.n_begin % kGemmNBlock == 0 && args.n_begin >= 0 && args.n_end <= padded_n(args.w->n) &&
               (args.n_end % kGemmNBlock == 0 || args.n_end == args.w->n),
           fmt::format("columns [{}, {}) of {}", args.n_begin, args.n_end, args.w->n));
  MR_CHECK(args.a_stride % kGemmKBlock == 0 && (args.m <= 1 || args.a_stride >= padded_k(args.w->k)),
           fmt::format("a_stride {} for k {}", args.a_stride, args.w->k));
}

// One channel's k bytes in their place in the tiles (`tiles`: the whole matrix's), and its sum. Without bytes
// it is padding.
int32_t tile_row(const int8_t* q, int k, int64_t row, int64_t k_padded, int8_t* tiles) {
  int8_t* first = tiles + row / kGemmNBlock * kGemmNBlock * k_padded + row % kGemmNBlock * 4;
  int32_t sum = 0;
  for (int64_t quad = 0; quad < k_padded; quad += 4) {
    int8_t bytes[4] = {};
    for (int64_t j = quad; j < quad + 4 && j < k && q != nullptr; ++j) {
      bytes[j - quad] = q[j];
      sum += q[j];
    }
    std::memcpy(first + quad * kGemmNBlock, bytes, sizeof bytes);
  }
  return sum;
}

}  // namespace

float scale_s8(const float* row, int k) {
  float peak = 0;
  for (int i = 0; i < k; ++i) peak = std::max(peak, std::fabs(row[i]));
  return peak / 127.f;
}

void pack_s8(const float* w, int64_t w_stride, int n, int k, int row_begin, int row_end, int8_t* tiles,
             float* scale, int32_t* sum) {
  MR_CHECK(k > 0 && k <= kGemmKMax && row_begin >= 0 && row_begin % kGemmNBlock == 0 && row_end <= n &&
               (row_end % kGemmNBlock == 0 || row_end == n),
           fmt::format("rows [{}, {}) of a {} x {} matrix", row_begin, row_end, n, k));
  const int64_t last = row_end == n ? padded_n(n) : row_end;
  std::vector<int8_t> rounded(static_cast<size_t>(k));
  for (int64_t row = row_begin; row < last; ++row) {
    scale[row] = row < n ? scale_s8(w + row * w_stride, k) : 0;
    for (int i = 0; i < k && row < n; ++i)
      rounded[static_cast<size_t>(i)] = static_cast<int8_t>(round_s8(w[row * w_stride + i], scale[row]));
    sum[row] = tile_row(row < n ? rounded.data() : nullptr, k, row, padded_k(k), tiles);
  }
}

void tile_s8(const int8_t* q, int64_t q_stride, int n, int k, int8_t* tiles, int32_t* sum) {
  MR_CHECK(n > 0 && k > 0 && k <= kGemmKMax, fmt::format("a {} x {} matrix", n, k));
  for (int64_t row = 0; row < padded_n(n); ++row)
    sum[row] = tile_row(row < n ? q + row * q_stride : nullptr, k, row, padded_k(k), tiles);
}

void gemm_s8_at(Isa isa, const GemmS8Args& args) {
  check(args);
  if (args.m > 0 && args.n_begin < args.n_end) s8_of(isa)(args);
}

void gemm_s8(const GemmS8Args& args) {
  static const Isa isa = active_isa();
  gemm_s8_at(isa, args);
}

void gemm_f32_at(Isa isa, const GemmF32Args& args) {
  MR_CHECK(args.k >= 0 && args.n_begin >= 0 && args.n_end <= args.n,
           fmt::format("columns [{}, {}) of {}", args.n_begin, args.n_end, args.n));
  if (args.m > 0 && args.n_begin < args.n_end) f32_of(isa)(args);
}

void gemm_f32(const GemmF32Args& args) {
  static const Isa isa = active_isa();
  gemm_f32_at(isa, args);
}

}  // namespace millrace::kernels
