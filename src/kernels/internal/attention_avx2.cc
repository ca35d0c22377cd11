// Attention with AVX2 and FMA (see attention-inl.h).
#include <immintrin.h>

#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "kernels/internal/attention_levels.h"
#include "kernels/internal/target.h"

#define MR_TARGET avx2
#define MR_VEC_AVX2
MR_BEGIN_TARGET(MR_TARGET_AVX2)
#include "kernels/internal/attention-inl.h"
MR_END_TARGET

namespace millrace::kernels::internal {
constinit const AttentionKernels kAttentionAvx2 = avx2::kAttention;
}
