// The row operations of each level. Private to rows.cc's table: callers use rows.h.
#pragma once
#include <cstddef>

#include "kernels/rows.h"

namespace millrace::kernels::internal {

extern const RowKernels kRowsScalar;
extern const RowKernels kRowsAvx2;
extern const RowKernels kRowsAvx512;

// A buffer of this thread, at least `floats` long, 64-byte aligned, valid until the thread's next call.
float* row_scratch(size_t floats);

}  // namespace millrace::kernels::internal
