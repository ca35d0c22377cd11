#include "kernels/rows.h"

#include <cmath>
#include <memory>
#include <new>

#include "kernels/internal/rows_levels.h"

namespace millrace::kernels {
namespace internal {

float* row_scratch(size_t floats) {
  struct Free {
    void operator()(float* p) const { ::operator delete (p, std::align_val_t{64}); }
  };
  thread_local std::unique_ptr<float, Free> buffer;
  thread_local size_t capacity = 0;
  if (capacity < floats) {
    buffer.reset(static_cast<float*>(::operator new (floats * sizeof(float), std::align_val_t{64})));
    capacity = floats;
  }
  return buffer.get();
}

}  // namespace internal

const RowKernels& row_kernels_at(Isa isa) {
  switch (isa) {
    case Isa::scalar:
      break;
    case Isa::avx2:
      return internal::kRowsAvx2;
    case Isa::avx512:
      return internal::kRowsAvx512;
    case Isa::amx:
      return internal::kRowsAvx512;
  }
  return internal::kRowsScalar;
}

const RowKernels& row_kernels() {
  static const RowKernels& kernels = row_kernels_at(active_isa());
  return kernels;
}

void hadamard(float* x, int size) {
  for (int h = 1; h < size; h *= 2) {
    for (int base = 0; base < size; base += 2 * h) {
      for (int k = base; k < base + h; ++k) {
        const float a = x[k], b = x[k + h];
        x[k] = a + b;
        x[k + h] = a - b;
      }
    }
  }
  const float scale = 1.0f / std::sqrt(static_cast<float>(size));
  for (int k = 0; k < size; ++k) x[k] *= scale;
}

}  // namespace millrace::kernels
