// One measuring loop per level, registers only. Private to machine_peak.cc.
#pragma once
#include <cstdint>

namespace millrace::kernels::internal {

// Runs `rounds` rounds of the level's INT8 product on registers and returns the multiply-adds of one round.
int64_t peak_round_scalar(int64_t rounds);
int64_t peak_round_avx2(int64_t rounds);
int64_t peak_round_avx512(int64_t rounds);
int64_t peak_round_amx(int64_t rounds);

// Reads `bytes` (a multiple of 1024) once from start to end; the result depends on every byte.
uint64_t read_all_scalar(const void* data, int64_t bytes);
uint64_t read_all_avx2(const void* data, int64_t bytes);
uint64_t read_all_avx512(const void* data, int64_t bytes);

}  // namespace millrace::kernels::internal
