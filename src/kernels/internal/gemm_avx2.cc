// INT8 and float GEMM on 256-bit vectors.
//
// VPMADDUBSW would multiply bytes directly but saturates its 16-bit pairs, so both operands are widened to 16
// bits and VPMADDWD adds exact 32-bit pairs. A lane then holds the sum over every other pair of k; two lanes
// make an output.
#include <immintrin.h>

#include <cstdint>
#include <memory>

#include "kernels/internal/gemm_levels.h"
#include "kernels/internal/target.h"

namespace millrace::kernels::internal {
namespace {

// Rows of a widened to 16 bits, kept by each thread; grows to the largest k seen (2 x 2 x 133,000 bytes at
// most).
int16_t* wide_rows(int64_t count) {
  thread_local std::unique_ptr<int16_t[]> buffer;
  thread_local int64_t size = 0;
  if (size < count) {
    buffer = std::make_unique_for_overwrite<int16_t[]>(static_cast<size_t>(count));
    size = count;
  }
  return buffer.get();
}

}  // namespace
}  // namespace millrace::kernels::internal

MR_BEGIN_TARGET(MR_TARGET_AVX2)

namespace millrace::kernels::internal {
namespace {

constexpr int kRows = 2;  // 2 x 4 sums of 8 lanes, 2 broadcast operands, a weight, a product
constexpr int64_t kChunkBytes = 256 << 10;  // of weights that stay in L2 while all rows pass over them

// Eight lanes at most, the rest masked off; -1 in the lanes that count.
inline __m256i mask_of(int64_t columns) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(columns < 8 ? columns : 8)), lane);
}

inline __attribute__((always_inline)) void finish(const GemmS8Args& args, __m256i sums, int64_t row,
                                                  int64_t n) {
  const WeightsS8& w = *args.w;
  if (n >= w.n) return;
  const __m256i mask = mask_of(w.n - n);
  __m256 y = _mm256_mul_ps(_mm256_cvtepi32_ps(sums), _mm256_set1_ps(args.a_scale[row]));
  y = _mm256_mul_ps(y, _mm256_loadu_ps(w.scale + n));
  if (args.bias != nullptr) y = _mm256_add_ps(y, _mm256_maskload_ps(args.bias + n, mask));
  float* out = args.out + row * args.out_stride + n;
  if (args.accumulate) y = _mm256_add_ps(_mm256_maskload_ps(out, mask), y);
  _mm256_maskstore_ps(out, mask, y);
}

// Sums of 2 lanes a channel, channels 0-3 in `low` and 4-7 in `high`, to one lane a channel.
inline __m256i join(__m256i low, __m256i high) {
  return _mm256_permute4x64_epi64(_mm256_hadd_epi32(low, high), 0xd8);
}

// R rows by one block of 16 channels; `a` holds the rows widened, k apart.
template <int R>
void block(const GemmS8Args& args, const int16_t* a, int64_t k_padded, int64_t row, int64_t n) {
  const int8_t* w = args.w->tiles + n * k_padded;
  __m256i sums[R][4];
  MR_UNROLLED
  for (int r = 0; r < R; ++r) {
    MR_UNROLLED
    for (int q = 0; q < 4; ++q) sums[r][q] = _mm256_setzero_si256();
  }
  for (int64_t k = 0; k < k_padded; k += 4) {
    __m256i x[R];
    MR_UNROLLED
    for (int r = 0; r < R; ++r)
      x[r] = _mm256_set1_epi64x(*reinterpret_cast<const long long*>(a + r * k_padded + k));
    MR_UNROLLED
    for (int q = 0; q < 4; ++q) {  // four channels: 16 bytes
      const auto* bytes = reinterpret_cast<const __m128i*>(w + k * kGemmNBlock + q * 16);
      const __m256i weights = _mm256_cvtepi8_epi16(_mm_load_si128(bytes));
      MR_UNROLLED
      for (int r = 0; r < R; ++r) sums[r][q] = _mm256_add_epi32(sums[r][q], _mm256_madd_epi16(weights, x[r]));
    }
  }
  MR_UNROLLED
  for (int r = 0; r < R; ++r) {
    finish(args, join(sums[r][0], sums[r][1]), row + r, n);
    finish(args, join(sums[r][2], sums[r][3]), row + r, n + 8);
  }
}

void widen(const int8_t* from, int16_t* to, int64_t count) {
  for (int64_t i = 0; i < count; i += 16)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + i),
                        _mm256_cvtepi8_epi16(_mm_load_si128(reinterpret_cast<const __m128i*>(from + i))));
}

}  // namespace

void gemm_s8_avx2(const GemmS8Args& args) {
  const int64_t k = padded_k(args.w->k);
  int16_t* wide = wide_rows(kRows * k);
  const int64_t wanted = kChunkBytes / k / kGemmNBlock * kGemmNBlock;
  const int64_t chunk = wanted < kGemmNBlock ? kGemmNBlock : wanted;
  const int64_t columns = args.n_end < padded_n(args.w->n) ? args.n_end : padded_n(args.w->n);
  for (int64_t begin = args.n_begin; begin < columns; begin += chunk) {
    const int64_t end = begin + chunk < columns ? begin + chunk : columns;
    for (int64_t row = 0; row < args.m; row += kRows) {
      const int64_t rows = args.m - row < kRows ? args.m - row : kRows;
      for (int64_t r = 0; r < rows; ++r) widen(args.a + (row + r) * args.a_stride, wide + r * k, k);
      for (int64_t n = begin; n < end; n += kGemmNBlock) {
        if (rows == 2) {
          block<2>(args, wide, k, row, n);
        } else {
          block<1>(args, wide, k, row, n);
        }
      }
    }
  }
}

namespace {

// Sixteen canonical lanes as two vectors.
struct Lanes {
  __m256 low, high;
};

inline __attribute__((always_inline)) float fold(Lanes v) {
  const __m256 eight = _mm256_add_ps(v.low, v.high);
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

// sum = a * b + sum in the first `columns` lanes; the others stay as they are (adding 0 * 0 would turn a -0
// into +0).
inline __m256 partial_fma(const float* a, const float* b, __m256 sum, int64_t columns) {
  if (columns <= 0) return sum;
  const __m256i mask = mask_of(columns);
  const __m256 y = _mm256_fmadd_ps(_mm256_maskload_ps(a, mask), _mm256_maskload_ps(b, mask), sum);
  return _mm256_blendv_ps(sum, y, _mm256_castsi256_ps(mask));
}

template <int R, int N>
void block_f32(const GemmF32Args& args, int64_t row, int64_t n) {
  const float* a = args.a + row * args.a_stride;
  const float* w = args.w + n * args.k;
  const int64_t k = args.k, whole = k / 16 * 16;
  Lanes sums[R][N];
  MR_UNROLLED
  for (int r = 0; r < R; ++r) {
    MR_UNROLLED
    for (int c = 0; c < N; ++c) sums[r][c] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
  }
  for (int64_t i = 0; i < whole; i += 16) {
    MR_UNROLLED
    for (int c = 0; c < N; ++c) {
      const __m256 low = _mm256_loadu_ps(w + c * k + i), high = _mm256_loadu_ps(w + c * k + i + 8);
      MR_UNROLLED
      for (int r = 0; r < R; ++r) {
        const float* x = a + r * args.a_stride + i;
        sums[r][c].low = _mm256_fmadd_ps(_mm256_loadu_ps(x), low, sums[r][c].low);
        sums[r][c].high = _mm256_fmadd_ps(_mm256_loadu_ps(x + 8), high, sums[r][c].high);
      }
    }
  }
  MR_UNROLLED
  for (int r = 0; r < R; ++r) {
    MR_UNROLLED
    for (int c = 0; c < N; ++c) {
      Lanes v = sums[r][c];
      if (whole < k) {
        const float* x = a + r * args.a_stride + whole;
        const float* y = w + c * k + whole;
        v.low = partial_fma(x, y, v.low, k - whole);
        v.high = partial_fma(x + 8, y + 8, v.high, k - whole - 8);
      }
      float y = fold(v);
      if (args.bias != nullptr) y = y + args.bias[n + c];
      float* out = args.out + (row + r) * args.out_stride + n + c;
      *out = args.accumulate ? *out + y : y;
    }
  }
}

}  // namespace

void gemm_f32_avx2(const GemmF32Args& args) {
  int64_t n = args.n_begin;
  for (; n + 3 <= args.n_end; n += 3) {
    int64_t row = 0;
    for (; row + 2 <= args.m; row += 2) block_f32<2, 3>(args, row, n);
    for (; row < args.m; ++row) block_f32<1, 3>(args, row, n);
  }
  for (; n < args.n_end; ++n)
    for (int64_t row = 0; row < args.m; ++row) block_f32<1, 1>(args, row, n);
}

}  // namespace millrace::kernels::internal

MR_END_TARGET
