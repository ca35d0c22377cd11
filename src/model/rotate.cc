#include "model/internal/rotate.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <vector>

#include "base/status.h"
#include "kernels/rows.h"

namespace millrace::model {
namespace {

// C of rotation.h, row-major. In double and rounded once; a transform by it is off by about 1e-7 of its
// input, far below the 4e-3 of a weight's own rounding to INT8.
std::vector<float> hartley(int n) {
  std::vector<float> c(static_cast<size_t>(n) * static_cast<size_t>(n));
  for (int64_t a = 0; a < n; ++a) {
    for (int64_t b = 0; b < n; ++b) {
      const double t = 2 * std::numbers::pi * static_cast<double>(a * b % n) / n;
      c[static_cast<size_t>(a * n + b)] = static_cast<float>((std::cos(t) + std::sin(t)) / std::sqrt(n));
    }
  }
  return c;
}

// v[a][j] <- sum over b of C[a][b] v[b][j], v [mix][width] in rows `stride` apart; spare: mix * width floats.
void mix_blocks(float* v, int mix, int64_t width, int64_t stride, const std::vector<float>& c,
                std::vector<float>& spare) {
  spare.assign(static_cast<size_t>(mix * width), 0.0f);
  for (int a = 0; a < mix; ++a) {
    float* sum = spare.data() + a * width;
    for (int b = 0; b < mix; ++b) {
      const float factor = c[static_cast<size_t>(a * mix + b)];
      const float* from = v + b * stride;
      for (int64_t j = 0; j < width; ++j) sum[j] += factor * from[j];
    }
  }
  for (int a = 0; a < mix; ++a) std::copy_n(spare.data() + a * width, width, v + a * stride);
}

// Butterflies between rows, for some columns at a time: those of 512 rows then stay in a second-level cache
// through all nine rounds, where whole rows of 7,168 would go to memory and back in each.
void hadamard_rows(float* w, int64_t columns, int block) {
  constexpr int64_t kSlice = 64;
  const float scale = 1.0f / std::sqrt(static_cast<float>(block));
  std::vector<float> slice(static_cast<size_t>(block * kSlice), 0.0f);
  for (int64_t first = 0; first < columns; first += kSlice) {
    const int64_t width = std::min(kSlice, columns - first);
    for (int64_t i = 0; i < block; ++i) std::copy_n(w + i * columns + first, width, slice.data() + i * kSlice);
    for (int64_t half = 1; half < block; half *= 2) {
      for (int64_t i = 0; i < block; ++i) {
        if ((i & half) != 0) continue;
        float* a = slice.data() + i * kSlice;
        float* b = a + half * kSlice;
        for (int64_t j = 0; j < kSlice; ++j) {
          const float sum = a[j] + b[j], difference = a[j] - b[j];
          a[j] = sum;
          b[j] = difference;
        }
      }
    }
    for (int64_t i = 0; i < block; ++i)
      for (int64_t j = 0; j < width; ++j)
        w[i * columns + first + j] = slice[static_cast<size_t>(i * kSlice + j)] * scale;
  }
}

}  // namespace

void scale_columns(float* w, int64_t rows, int64_t columns, const float* gain) {
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t j = 0; j < columns; ++j) w[row * columns + j] *= gain[j];
}

void rotate_columns(float* w, int64_t rows, int64_t columns, const Rotation& rotation) {
  MR_CHECK(columns % rotation.period() == 0, "a rotation's period must divide the width");
  if (rotation.block > 1)
    for (int64_t at = 0; at < rows * columns; at += rotation.block) kernels::hadamard(w + at, rotation.block);
  if (rotation.mix > 1) {
    const std::vector<float> c = hartley(rotation.mix);
    std::vector<float> spare;
    for (int64_t at = 0; at < rows * columns; at += rotation.block * rotation.mix)
      mix_blocks(w + at, rotation.mix, rotation.block, rotation.block, c, spare);
  }
}

void rotate_rows(float* w, int64_t rows, int64_t columns, const Rotation& rotation) {
  MR_CHECK(rows % rotation.period() == 0, "a rotation's period must divide the height");
  if (rotation.block > 1)
    for (int64_t row = 0; row < rows; row += rotation.block)
      hadamard_rows(w + row * columns, columns, rotation.block);
  if (rotation.mix > 1) {
    const std::vector<float> c = hartley(rotation.mix);
    std::vector<float> spare;
    // Rows at the same place of each block, `slice` columns at a time so that they stay in a cache.
    constexpr int64_t slice = 512;
    for (int64_t row = 0; row < rows; row += rotation.block * rotation.mix)
      for (int64_t place = 0; place < rotation.block; ++place)
        for (int64_t j = 0; j < columns; j += slice)
          mix_blocks(w + (row + place) * columns + j, rotation.mix, std::min(slice, columns - j),
                     rotation.block * columns, c, spare);
  }
}

}  // namespace millrace::model
