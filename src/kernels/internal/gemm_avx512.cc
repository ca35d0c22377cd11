// INT8 GEMM with VNNI, and the float GEMM, on 512-bit vectors.
//
// VPDPBUSD multiplies unsigned by signed bytes and adds four products to an int32 lane without saturation. So
// a goes in as a + 128 (its sign bit flipped), and 128 * sum(w) is taken away at the end: exact modulo 2^32,
// hence exact.
#include <immintrin.h>

#include <cstdint>
#include <memory>

#include "kernels/internal/gemm_levels.h"
#include "kernels/internal/target.h"

namespace millrace::kernels::internal {
namespace {

// Rows of a with their sign bits flipped, kept by each thread; grows to the largest k seen (8 x 133,000 bytes
// at most).
int8_t* flipped_rows(int64_t bytes) {
  thread_local std::unique_ptr<int8_t[]> buffer;
  thread_local int64_t size = 0;
  if (size < bytes) {
    buffer = std::make_unique_for_overwrite<int8_t[]>(static_cast<size_t>(bytes) + 64);
    size = bytes;
  }
  const auto address = reinterpret_cast<uintptr_t>(buffer.get());
  return buffer.get() + (64 - address % 64) % 64;
}

}  // namespace
}  // namespace millrace::kernels::internal

MR_BEGIN_TARGET(MR_TARGET_AVX512)

namespace millrace::kernels::internal {
namespace {

constexpr int kRows = 8;                    // of a register block: 8 x 3 sums, 3 weights, a broadcast operand
constexpr int64_t kChunkBytes = 768 << 10;  // of weights that stay in L2 while all rows pass over them

struct Context {
  const GemmS8Args& args;
  int64_t k;        // padded
  const int8_t* a;  // flipped rows of the current block
};

inline __mmask16 mask_of(int64_t columns) {
  return columns >= 16 ? 0xffff : static_cast<__mmask16>((1u << columns) - 1);
}

inline __attribute__((always_inline)) void finish(const GemmS8Args& args, __m512i sums, int64_t row,
                                                  int64_t n) {
  const WeightsS8& w = *args.w;
  const __mmask16 mask = mask_of(w.n - n);
  sums = _mm512_sub_epi32(sums, _mm512_slli_epi32(_mm512_loadu_si512(w.sum + n), 7));
  __m512 y = _mm512_mul_ps(_mm512_cvtepi32_ps(sums), _mm512_set1_ps(args.a_scale[row]));
  y = _mm512_mul_ps(y, _mm512_loadu_ps(w.scale + n));
  if (args.bias != nullptr) y = _mm512_add_ps(y, _mm512_maskz_loadu_ps(mask, args.bias + n));
  float* out = args.out + row * args.out_stride + n;
  if (args.accumulate) y = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, out), y);
  _mm512_mask_storeu_ps(out, mask, y);
}

// Rows [row, row + R) by B blocks of 16 channels.
template <int R, int B>
void block(const Context& c, int64_t row, int64_t n) {
  const int8_t* w = c.args.w->tiles + n * c.k;
  const int64_t next = kGemmNBlock * c.k;
  __m512i sums[R][B];
  MR_UNROLLED
  for (int r = 0; r < R; ++r) {
    MR_UNROLLED
    for (int b = 0; b < B; ++b) sums[r][b] = _mm512_setzero_si512();
  }
  for (int64_t k = 0; k < c.k; k += 4) {
    __m512i weights[B];
    MR_UNROLLED
    for (int b = 0; b < B; ++b) weights[b] = _mm512_load_si512(w + b * next + k * kGemmNBlock);
    MR_UNROLLED
    for (int r = 0; r < R; ++r) {
      const __m512i x = _mm512_set1_epi32(*reinterpret_cast<const int32_t*>(c.a + r * c.k + k));
      MR_UNROLLED
      for (int b = 0; b < B; ++b) sums[r][b] = _mm512_dpbusd_epi32(sums[r][b], x, weights[b]);
    }
  }
  MR_UNROLLED
  for (int r = 0; r < R; ++r) {
    MR_UNROLLED
    for (int b = 0; b < B; ++b) finish(c.args, sums[r][b], row + r, n + b * kGemmNBlock);
  }
}

template <int B>
void block_of(const Context& c, int64_t rows, int64_t row, int64_t n) {
  switch (rows) {
    case 1:
      return block<1, B>(c, row, n);
    case 2:
      return block<2, B>(c, row, n);
    case 3:
      return block<3, B>(c, row, n);
    case 4:
      return block<4, B>(c, row, n);
    case 5:
      return block<5, B>(c, row, n);
    case 6:
      return block<6, B>(c, row, n);
    case 7:
      return block<7, B>(c, row, n);
    default:
      return block<8, B>(c, row, n);
  }
}

void flip(const int8_t* from, int8_t* to, int64_t bytes) {
  const __m512i sign = _mm512_set1_epi8(-128);
  for (int64_t i = 0; i < bytes; i += 64)
    _mm512_store_si512(to + i, _mm512_xor_si512(_mm512_load_si512(from + i), sign));
}

// Few rows: memory's speed decides, or the last-level cache's, and that hangs on the order in which lines are
// asked for. Two blocks of channels, or four, make as many streams, read by turns in groups of four lines,
// each line fetched some way ahead; behind a stream's end follows what is read next. On two cores of Sapphire
// Rapids one row gets 34 GB/s from memory so and 64 from the last-level cache; tiles of 1 KiB, each fetched
// one ahead, gave 31 and 54, a single stream 28 and 60. How many streams and how far ahead was tried:
// from 1.5 KiB on the gain is gone, and at unlucky distances (1 KiB with three rows of two streams) a tenth
// of the rate.
constexpr int64_t kGroupBytes = 4 * 64, kGroupK = 4 * 4;
constexpr int kStreamsMax = 4;
constexpr int streams_of(int rows) { return rows <= 2 ? 2 : 4; }
constexpr int64_t ahead_bytes(int streams) { return streams == 4 ? 768 : 1024; }

// Rows [0, R) by B blocks of 16 channels. after[b]: the bytes to fetch once stream b is at its end.
template <int R, int B>
void few_rows_block(const Context& c, int64_t n, const int8_t* const* after) {
  constexpr int kChains = R == 1 ? 2 : 1;  // for each sum: they hide the multiply's latency
  const int64_t stream_bytes = kGemmNBlock * c.k;
  const int64_t wanted = ahead_bytes(B), distance = stream_bytes < wanted ? stream_bytes : wanted;
  const int8_t* const w = c.args.w->tiles + n * c.k;
  __m512i sums[R][B][kChains];
  const int8_t* ahead[B];
  MR_UNROLLED
  for (int b = 0; b < B; ++b) {
    ahead[b] = w + b * stream_bytes + distance;
    MR_UNROLLED
    for (int r = 0; r < R; ++r) {
      MR_UNROLLED
      for (int chain = 0; chain < kChains; ++chain) sums[r][b][chain] = _mm512_setzero_si512();
      // The results' lines are written when the weights have driven everything else from the caches.
      __builtin_prefetch(c.args.out + r * c.args.out_stride + n + b * kGemmNBlock, 1);
    }
  }
  const int8_t* a = c.a;
  int64_t at = 0;
  for (int part = 0; part < 2; ++part) {
    const int64_t end = part == 0 ? stream_bytes - distance : stream_bytes;
    for (; at < end; at += kGroupBytes, a += kGroupK) {
      MR_UNROLLED
      for (int b = 0; b < B; ++b) {
        MR_UNROLLED
        for (int line = 0; line < 4; ++line)
          _mm_prefetch(reinterpret_cast<const char*>(ahead[b] + at + line * 64), _MM_HINT_T0);
        MR_UNROLLED
        for (int line = 0; line < 4; ++line) {
          const __m512i weights = _mm512_load_si512(w + b * stream_bytes + at + line * 64);
          MR_UNROLLED
          for (int r = 0; r < R; ++r) {
            const __m512i x = _mm512_set1_epi32(*reinterpret_cast<const int32_t*>(a + r * c.k + line * 4));
            __m512i& sum = sums[r][b][line % kChains];
            sum = _mm512_dpbusd_epi32(sum, x, weights);
          }
        }
      }
    }
    MR_UNROLLED
    for (int b = 0; b < B; ++b) ahead[b] = after[b] - (stream_bytes - distance);
  }
  MR_UNROLLED
  for (int r = 0; r < R; ++r) {
    MR_UNROLLED
    for (int b = 0; b < B; ++b) {
      __m512i sum = sums[r][b][0];
      if (kChains == 2) sum = _mm512_add_epi32(sum, sums[r][b][kChains - 1]);
      finish(c.args, sum, r, n + b * kGemmNBlock);
    }
  }
}

template <int R>
void few_rows(const Context& c, int64_t columns) {
  const GemmS8Args& args = c.args;
  const auto column = [](const WeightsS8& w, int64_t n) { return w.tiles + n * padded_k(w.k); };
  const int8_t* const just_read = column(*args.w, columns - kGemmNBlock);
  // What follows a block that ends before channel n: this matrix's next streams, or those of the next matrix.
  const auto follow = [&](int64_t n, const int8_t** after) {
    const WeightsS8* const w = n < columns ? args.w : args.next;
    const int64_t first = n < columns ? n : args.next_begin;
    const int64_t end = n < columns ? columns : w != nullptr ? padded_n(w->n) : 0;
    for (int b = 0; b < kStreamsMax; ++b) {
      const int64_t at = first + b * kGemmNBlock;
      after[b] = b < streams_of(R) && at < end ? column(*w, at) : just_read;
    }
  };
  const int8_t* after[kStreamsMax];
  int64_t n = args.n_begin;
  if constexpr (streams_of(R) == 4) {
    for (; n + 4 * kGemmNBlock <= columns; n += 4 * kGemmNBlock) {
      follow(n + 4 * kGemmNBlock, after);
      few_rows_block<R, 4>(c, n, after);
    }
  }
  for (; n + 2 * kGemmNBlock <= columns; n += 2 * kGemmNBlock) {
    follow(n + 2 * kGemmNBlock, after);
    few_rows_block<R, 2>(c, n, after);
  }
  if (n == columns) return;
  follow(columns, after);
  few_rows_block<R, 1>(c, n, after);
}

}  // namespace

void gemm_s8_few_rows_avx512(const GemmS8Args& args) {
  const int64_t k = padded_k(args.w->k);
  int8_t* const flipped = flipped_rows(kGemmFewRows * k);
  for (int64_t r = 0; r < args.m; ++r) flip(args.a + r * args.a_stride, flipped + r * k, k);
  const Context c{args, k, flipped};
  const int64_t columns = padded_n(args.n_end);
  switch (args.m) {
    case 1:
      return few_rows<1>(c, columns);
    case 2:
      return few_rows<2>(c, columns);
    case 3:
      return few_rows<3>(c, columns);
    case 4:
      return few_rows<4>(c, columns);
    case 5:
      return few_rows<5>(c, columns);
    default:
      return few_rows<6>(c, columns);
  }
}

void gemm_s8_avx512(const GemmS8Args& args) {
  if (args.m <= kGemmFewRows) return gemm_s8_few_rows_avx512(args);
  const int64_t k = padded_k(args.w->k);
  int8_t* flipped = flipped_rows(kRows * k);
  const Context c{args, k, flipped};
  const int64_t wanted = args.m <= kRows ? args.n_end - args.n_begin : kChunkBytes / k / 48 * 48;
  const int64_t chunk = wanted < 48 ? 48 : wanted;
  const int64_t columns = args.n_end < padded_n(args.w->n) ? args.n_end : padded_n(args.w->n);
  for (int64_t begin = args.n_begin; begin < columns; begin += chunk) {
    const int64_t end = begin + chunk < columns ? begin + chunk : columns;
    for (int64_t row = 0; row < args.m; row += kRows) {
      const int64_t rows = args.m - row < kRows ? args.m - row : kRows;
      for (int64_t r = 0; r < rows; ++r) flip(args.a + (row + r) * args.a_stride, flipped + r * k, k);
      int64_t n = begin;
      for (; n + 48 <= end; n += 48) block_of<3>(c, rows, row, n);
      for (; n < end; n += kGemmNBlock) block_of<1>(c, rows, row, n);
    }
  }
}

namespace {

// The canonical fold of 16 lanes: 8, 4, 2, 1.
inline __attribute__((always_inline)) float fold(__m512 v) {
  const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

// R rows by N channels: one vector of 16 lanes for each output. A last partial vector leaves the lanes it
// does not reach alone (adding 0 * 0 would turn a -0 into +0).
template <int R, int N>
void block_f32(const GemmF32Args& args, int64_t row, int64_t n) {
  const float* a = args.a + row * args.a_stride;
  const float* w = args.w + n * args.k;
  const int64_t k = args.k;
  __m512 sums[R][N];
  MR_UNROLLED
  for (int r = 0; r < R; ++r) {
    MR_UNROLLED
    for (int c = 0; c < N; ++c) sums[r][c] = _mm512_setzero_ps();
  }
  for (int64_t i = 0; i < k; i += 16) {
    const __mmask16 mask = mask_of(k - i);
    __m512 x[R];
    MR_UNROLLED
    for (int r = 0; r < R; ++r) x[r] = _mm512_maskz_loadu_ps(mask, a + r * args.a_stride + i);
    MR_UNROLLED
    for (int c = 0; c < N; ++c) {
      const __m512 y = _mm512_maskz_loadu_ps(mask, w + c * k + i);
      MR_UNROLLED
      for (int r = 0; r < R; ++r) sums[r][c] = _mm512_mask3_fmadd_ps(x[r], y, sums[r][c], mask);
    }
  }
  MR_UNROLLED
  for (int r = 0; r < R; ++r) {
    MR_UNROLLED
    for (int c = 0; c < N; ++c) {
      float y = fold(sums[r][c]);
      if (args.bias != nullptr) y = y + args.bias[n + c];
      float* out = args.out + (row + r) * args.out_stride + n + c;
      *out = args.accumulate ? *out + y : y;
    }
  }
}

}  // namespace

void gemm_f32_avx512(const GemmF32Args& args) {
  int64_t n = args.n_begin;
  if (args.m == 1)  // eight sums at once hide the additions' latency
    for (; n + 8 <= args.n_end; n += 8) block_f32<1, 8>(args, 0, n);
  for (; n + 4 <= args.n_end; n += 4) {
    int64_t row = 0;
    for (; row + 4 <= args.m; row += 4) block_f32<4, 4>(args, row, n);
    switch (args.m - row) {
      case 3:
        block_f32<3, 4>(args, row, n);
        break;
      case 2:
        block_f32<2, 4>(args, row, n);
        break;
      case 1:
        block_f32<1, 4>(args, row, n);
        break;
      default:
        break;
    }
  }
  for (; n < args.n_end; ++n)
    for (int64_t row = 0; row < args.m; ++row) block_f32<1, 1>(args, row, n);
}

}  // namespace millrace::kernels::internal

MR_END_TARGET
