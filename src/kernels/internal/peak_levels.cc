#include "kernels/internal/peak_levels.h"

#include <immintrin.h>

#include "kernels/internal/amx_config.h"
#include "kernels/internal/target.h"

// The empty asm statements keep the compiler from folding or dropping products whose operands never change.

namespace millrace::kernels::internal {

int64_t peak_round_scalar(int64_t rounds) {
  constexpr int kChains = 8;
  int32_t sum[kChains] = {}, x = 3, y = 5;
  for (int64_t round = 0; round < rounds; ++round) {
    for (int i = 0; i < kChains; ++i) {
      __asm__ volatile("" : "+r"(x), "+r"(y));
      sum[i] += x * y;
      __asm__ volatile("" : "+r"(sum[i]));
    }
  }
  return kChains;
}

uint64_t read_all_scalar(const void* data, int64_t bytes) {
  const auto* p = static_cast<const uint64_t*>(data);
  uint64_t sum[4] = {};
  for (int64_t i = 0; i < bytes / 8; i += 4)
    for (int j = 0; j < 4; ++j) sum[j] ^= p[i + j];
  return sum[0] ^ sum[1] ^ sum[2] ^ sum[3];
}

MR_BEGIN_TARGET(MR_TARGET_AVX2)

int64_t peak_round_avx2(int64_t rounds) {
  constexpr int kChains = 8;
  __m256i sum[kChains];
  __m256i x = _mm256_set1_epi16(3), y = _mm256_set1_epi16(5);
  for (auto& s : sum) s = _mm256_setzero_si256();
  for (int64_t round = 0; round < rounds; ++round) {
    MR_UNROLLED
    for (int i = 0; i < kChains; ++i) {
      __asm__ volatile("" : "+x"(x), "+x"(y));
      sum[i] = _mm256_add_epi32(sum[i], _mm256_madd_epi16(x, y));
    }
  }
  for (auto& s : sum) __asm__ volatile("" : : "x"(s));
  return kChains * 16;
}

// Fetching 1 KiB ahead of lines that are read in ascending order makes a fifth more of the memory than
// leaving it to the hardware alone (measured on Sapphire Rapids, huge pages: 34.4 against 28.5 GB/s on two
// cores; from 4 KiB on the gain is gone).
MR_ALWAYS_INLINE inline void fetch_ahead(const void* from, int lines) {
  for (int line = 0; line < lines; ++line)
    _mm_prefetch(static_cast<const char*>(from) + 1024 + line * 64, _MM_HINT_T0);
}

uint64_t read_all_avx2(const void* data, int64_t bytes) {
  const auto* p = static_cast<const __m256i*>(data);
  __m256i sum[4] = {};
  for (int64_t i = 0; i < bytes / 32; i += 4) {
    fetch_ahead(p + i, 2);
    MR_UNROLLED
    for (int half = 0; half < 4; ++half)
      sum[half] = _mm256_xor_si256(sum[half], _mm256_load_si256(p + i + half));
  }
  const __m256i a = _mm256_xor_si256(_mm256_xor_si256(sum[0], sum[1]), _mm256_xor_si256(sum[2], sum[3]));
  return static_cast<uint64_t>(_mm256_extract_epi64(a, 0) ^ _mm256_extract_epi64(a, 1) ^
                               _mm256_extract_epi64(a, 2) ^ _mm256_extract_epi64(a, 3));
}

MR_END_TARGET
MR_BEGIN_TARGET(MR_TARGET_AVX512)

int64_t peak_round_avx512(int64_t rounds) {
  constexpr int kChains = 16;
  __m512i sum[kChains];
  __m512i x = _mm512_set1_epi8(3), y = _mm512_set1_epi8(5);
  for (auto& s : sum) s = _mm512_setzero_si512();
  for (int64_t round = 0; round < rounds; ++round) {
    MR_UNROLLED
    for (int i = 0; i < kChains; ++i) {
      __asm__ volatile("" : "+v"(x), "+v"(y));
      sum[i] = _mm512_dpbusd_epi32(sum[i], x, y);
    }
  }
  for (auto& s : sum) __asm__ volatile("" : : "v"(s));
  return kChains * 64;
}

uint64_t read_all_avx512(const void* data, int64_t bytes) {
  const auto* p = static_cast<const __m512i*>(data);
  __m512i sum[4] = {};  // one for each line, so that lines are read in ascending order
  for (int64_t i = 0; i < bytes / 64; i += 4) {
    fetch_ahead(p + i, 4);
    MR_UNROLLED
    for (int line = 0; line < 4; ++line)
      sum[line] = _mm512_xor_si512(sum[line], _mm512_load_si512(p + i + line));
  }
  alignas(64) uint64_t lane[8];
  _mm512_store_si512(lane,
                     _mm512_xor_si512(_mm512_xor_si512(sum[0], sum[1]), _mm512_xor_si512(sum[2], sum[3])));
  return lane[0] ^ lane[1] ^ lane[2] ^ lane[3] ^ lane[4] ^ lane[5] ^ lane[6] ^ lane[7];
}

MR_END_TARGET
MR_BEGIN_TARGET(MR_TARGET_AMX)

int64_t peak_round_amx(int64_t rounds) {
  _tile_loadconfig(&kAmxConfig);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_zero(4);
  _tile_zero(5);
  _tile_zero(6);
  _tile_zero(7);
  for (int64_t round = 0; round < rounds; ++round) {
    _tile_dpbssd(0, 4, 6);
    _tile_dpbssd(1, 4, 7);
    _tile_dpbssd(2, 5, 6);
    _tile_dpbssd(3, 5, 7);
  }
  _tile_release();
  return 4 * 16 * 16 * 64;
}

MR_END_TARGET

}  // namespace millrace::kernels::internal
