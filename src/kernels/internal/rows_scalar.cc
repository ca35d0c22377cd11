// The row operations in plain C++ (see rows-inl.h).
#include "kernels/internal/rows-inl.h"

namespace millrace::kernels::internal {
constinit const RowKernels kRowsScalar = scalar::kRows;
}
