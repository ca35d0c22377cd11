#include "model/internal/rotate.h"

#include <cmath>

#include "base/status.h"
#include "kernels/rows.h"

namespace millrace::model {

void scale_columns(float* w, int64_t rows, int64_t columns, const float* gain) {
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t j = 0; j < columns; ++j) w[row * columns + j] *= gain[j];
}

void rotate_columns(float* w, int64_t rows, int64_t columns, int block) {
  if (block == 1) return;
  MR_CHECK(columns % block == 0, "a Hadamard block must divide the width");
  for (int64_t at = 0; at < rows * columns; at += block) kernels::hadamard(w + at, block);
}

void rotate_rows(float* w, int64_t rows, int64_t columns, int block) {
  if (block == 1) return;
  MR_CHECK(rows % block == 0, "a Hadamard block must divide the height");
  const float scale = 1.0f / std::sqrt(static_cast<float>(block));
  for (int64_t begin = 0; begin < rows; begin += block) {
    for (int half = 1; half < block;
         half *= 2) {  // butterflies between whole rows, so memory is walked in order
      for (int64_t i = 0; i < block; ++i) {
        if ((i & half) != 0) continue;
        float* a = w + (begin + i) * columns;
        float* b = a + half * columns;
        for (int64_t j = 0; j < columns; ++j) {
          const float sum = a[j] + b[j], difference = a[j] - b[j];
          a[j] = sum;
          b[j] = difference;
        }
      }
    }
    for (int64_t i = begin * columns; i < (begin + block) * columns; ++i) w[i] *= scale;
  }
}

}  // namespace millrace::model
