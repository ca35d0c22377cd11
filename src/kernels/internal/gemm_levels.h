// The GEMM of each level. Private to gemm.cc's tables: callers use gemm_s8.h, which checks arguments and
// picks a level. Arguments here are already checked, m and the column range are not empty.
#pragma once
#include "kernels/gemm_s8.h"

namespace millrace::kernels::internal {

void gemm_s8_scalar(const GemmS8Args& args);
void gemm_s8_avx2(const GemmS8Args& args);
void gemm_s8_avx512(const GemmS8Args& args);
void gemm_s8_amx(const GemmS8Args& args);

// At most kGemmFewRows rows, where weights come in more slowly than either unit multiplies: for both levels
// with 512-bit vectors.
inline constexpr int kGemmFewRows = 6;
void gemm_s8_few_rows_avx512(const GemmS8Args& args);

void gemm_f32_scalar(const GemmF32Args& args);
void gemm_f32_avx2(const GemmF32Args& args);
void gemm_f32_avx512(const GemmF32Args& args);

}  // namespace millrace::kernels::internal
