// The folds and rotations of the INT8 path over blocks of float weights (see decoder_plan.cc for where and
// why). Private to the room. Pure functions; row-major matrices, contiguous rows.
#pragma once
#include <cstdint>

namespace millrace::model {

// W[:, j] *= gain[j]
void scale_columns(float* w, int64_t rows, int64_t columns, const float* gain);
// W <- W Q, Q block-diagonal Hadamard over the columns; block divides columns.
void rotate_columns(float* w, int64_t rows, int64_t columns, int block);
// W <- Q W, Q block-diagonal Hadamard over the rows; block divides rows. A vector is a matrix of one column.
void rotate_rows(float* w, int64_t rows, int64_t columns, int block);

}  // namespace millrace::model
