// Attention in plain C++ (see attention-inl.h).
#include "kernels/internal/attention-inl.h"

namespace millrace::kernels::internal {
constinit const AttentionKernels kAttentionScalar = scalar::kAttention;
}
