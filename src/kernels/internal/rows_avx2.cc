// The row operations with AVX2 and FMA (see rows-inl.h).
#include <immintrin.h>

#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "kernels/internal/rows_levels.h"
#include "kernels/internal/target.h"

#define MR_TARGET avx2
#define MR_VEC_AVX2
MR_BEGIN_TARGET(MR_TARGET_AVX2)
#include "kernels/internal/rows-inl.h"
MR_END_TARGET

namespace millrace::kernels::internal {
constinit const RowKernels kRowsAvx2 = avx2::kRows;
}
