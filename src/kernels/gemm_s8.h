// INT8 matrix products: out[i][n] = a_scale[i] * w.scale[n] * sum_k a[i][k] * w[n][k]  (+ bias[n]) (+ out[i][n]).
//
// The integer sum is exact (int32; k at most 133,000), so no batch size, tile shape or instruction set changes it. The
// epilogue is one fixed sequence of float operations on every level:
//     y = (float(acc) * a_scale[i]) * w.scale[n];   if (bias) y = y + bias[n];   if (accumulate) y = out + y;
// A row's result therefore depends on that row alone (design decision 1).
//
// Thread-safe: every function is pure over its arguments; callers split work by rows (a, out offsets) or columns.
#pragma once
#include <cstddef>
#include <cstdint>

#include "kernels/isa.h"

namespace millrace::kernels {

inline constexpr int kGemmNBlock = 16;  // output channels per tile: n ranges are multiples of it
inline constexpr int kGemmKBlock = 64;  // input channels per tile: rows of a are padded with zeros to a multiple
inline constexpr int kGemmMPad = 16;    // rows of a must be readable (any content) up to the next multiple of this

constexpr int64_t padded_n(int64_t n) { return (n + kGemmNBlock - 1) / kGemmNBlock * kGemmNBlock; }
constexpr int64_t padded_k(int64_t k) { return (k + kGemmKBlock - 1) / kGemmKBlock * kGemmKBlock; }
constexpr int64_t padded_m(int64_t m) { return (m + kGemmMPad - 1) / kGemmMPad * kGemmMPad; }

// Weights quantised per output channel (symmetric, scale = max|row| / 127) and laid out for the matrix unit. A view:
// the bytes belong to the packed file's mapping (or to a test's buffer), 64-byte aligned.
//
//   tiles: for each block of 16 channels, for each block of 64 inputs, 1024 bytes: [k / 4][n % 16][k % 4]
//          (AMX's and VNNI's common form; padding is zero)
//   scale: float[padded_n]        sum: int32[padded_n], the sum of a channel's bytes, for levels whose multiply wants
//                                  one unsigned operand
struct WeightsS8 {
  const int8_t* tiles = nullptr;
  const float* scale = nullptr;
  const int32_t* sum = nullptr;
  int n = 0, k = 0;
};
constexpr size_t weights_s8_tile_bytes(int64_t n, int64_t k) {
  return static_cast<size_t>(padded_n(n) * padded_k(k));
}

// A channel's scale, and how its values are rounded: for pack_s8(), and for who rounds by himself and calls tile_s8().
float scale_s8(const float* row, int k);
// rint(value / scale), ties to even, within [-127, 127]; NaN gives -127, and scale 0 gives 0. Adding and taking away
// 1.5 * 2^23 rounds in plain SSE2.
inline float round_s8(float value, float scale) {
  if (scale == 0) return 0;
  const float ratio = value / scale;
  const float clamped = ratio >= -127.f ? (ratio <= 127.f ? ratio : 127.f) : -127.f;
  return (clamped + 12582912.f) - 12582912.f;
}

// Quantises and packs rows [row_begin, row_end) of w (row-major, n x k floats, row_begin a multiple of 16) into tiles,
// scale and sum of the whole matrix; padding channels are written by the call that holds the last row. An all-zero row gets
// scale 0.
void pack_s8(const float* w, int64_t w_stride, int n, int k, int row_begin, int row_end, int8_t* tiles, float* scale,
             int32_t* sum);

// The same layout for n rows that are rounded already (row-major, values in [-127, 127]); their scales are the caller's.
void tile_s8(const int8_t* q, int64_t q_stride, int n, int k, int8_t* tiles, int32_t* sum);

struct GemmS8Args {
  const int8_t* a = nullptr;  // [padded_m(m)][padded_k(k)], 64-byte aligned rows
  int64_t a_stride = 0;       // bytes between rows, a multiple of 64
  const float* a_scale = nullptr;  // [m]
  int m = 0;
  const WeightsS8* w = nullptr;
  int n_begin = 0, n_end = 0;  // channels to compute; multiples of 16 (n_end may be padded_n)
  const float* bias = nullptr;  // [n] or none
  float* out = nullptr;         // element (i, n) at out[i * out_stride + n]; columns n >= w->n are not written
  int64_t out_stride = 0;       // floats
  bool accumulate = false;      // add to what out holds
  // What this thread multiplies next, from this channel on: its first bytes are fetched into L2 while this product ends, so
  // that memory does not idle between the two. A hint, which no result depends on; the amx and avx512 levels take it.
  const WeightsS8* next = nullptr;
  int next_begin = 0;
};
void gemm_s8(const GemmS8Args& args);           // at the active level
void gemm_s8_at(Isa isa, const GemmS8Args& args);  // at a given supported level (tests, benchmarks)

// The float path (slow, for checking): out = a * w^T (+ bias) (+ out), w row-major [n][k]. Each output is one canonical
// 16-lane FMA sum over k in ascending order, folded 8-4-2-1. Columns [n_begin, n_end) of any alignment.
struct GemmF32Args {
  const float* a = nullptr;
  int64_t a_stride = 0;
  int m = 0;
  const float* w = nullptr;
  int n = 0, k = 0;
  int n_begin = 0, n_end = 0;
  const float* bias = nullptr;
  float* out = nullptr;
  int64_t out_stride = 0;
  bool accumulate = false;
};
void gemm_f32(const GemmF32Args& args);
void gemm_f32_at(Isa isa, const GemmF32Args& args);

}  // namespace millrace::kernels
