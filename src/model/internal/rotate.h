// The folds and rotations of the INT8 path over blocks of float weights (see decoder_plan.cc for where and
// why). Private to the room. Pure functions; row-major matrices, contiguous rows.
#pragma once
#include <cstdint>

#include "model/internal/rotation.h"

namespace millrace::model {

// W[:, j] *= gain[j]
void scale_columns(float* w, int64_t rows, int64_t columns, const float* gain);
// W <- W R over the columns: what reads x R; R's period divides columns.
void rotate_columns(float* w, int64_t rows, int64_t columns, const Rotation& rotation);
// W <- R^T W over the rows: what writes y R; R's period divides rows. A vector is a matrix of one column.
void rotate_rows(float* w, int64_t rows, int64_t columns, const Rotation& rotation);

}  // namespace millrace::model
