// Rounding weights to INT8 so that the errors of a channel make up for each other on the rows that the matrix
// really reads. Private to the room.
//
// Let H = sum over rows x of x x^T, and e = w - q scale a channel's error; on those rows it costs e^T H e.
// Write H as R D R^T, R upper triangular with ones on its diagonal (Cholesky's factorisation, from the last
// column on). Then
//   e^T H e = sum over k of D_k (e_k + sum over j < k of e_j R_jk)^2,
// and rounding column after column, each with the errors of those before it carried into it, makes every
// bracket a rounding error of at most half a step. This is the rule of GPTQ (Frantar et al., 2022) in the
// form of LDLQ (Chee et al., 2023).
#pragma once
#include <cstdint>
#include <vector>

#include "base/status.h"
#include "model/calibration.h"

namespace millrace::model {

inline constexpr int kFeedbackPanel = 64;  // columns that are rounded before their errors are carried on

// H of the columns [begin, begin + columns) of a matrix's inputs.
struct SecondMoments {
  SecondMoments(int first, int count)
      : begin(first), columns(count), sum(static_cast<size_t>(count) * static_cast<size_t>(count)) {}
  int begin = 0, columns = 0;
  std::vector<float> sum;  // [columns][columns]; what lies above the diagonal is not looked at
  double trace() const;
  // Adds x x^T of the first `count` of these rows.
  Expected<void> add(const CalibrationInputs& inputs, const CalibrationRows& rows, int64_t count);
  void add(const SecondMoments& other, double weight);  // of the same columns, so many times
};

// R of one block of columns, as rounding reads it.
class FeedbackBlock {
 public:
  // To the diagonal of H comes `damping` of its mean, without which too few rows, or rows too much alike,
  // would say that some directions cost nothing.
  FeedbackBlock(SecondMoments moments, double damping);
  int columns() const { return columns_; }
  int panels() const { return (columns_ + kFeedbackPanel - 1) / kFeedbackPanel; }
  const float* inside(int panel) const;    // [panel width][kFeedbackPanel]: R between the panel's columns
  const float* behind(int panel) const;    // [columns behind the panel][panel width]: R transposed
  static uint64_t bytes(int64_t columns);  // memory to make one, at most

 private:
  int columns_ = 0;
  std::vector<float> values_;
  std::vector<size_t> inside_, behind_;
};
using Feedback = std::vector<FeedbackBlock>;  // side by side; none: every column for itself

struct RoundScratch {
  std::vector<float> target, error;
};
// Rounds w [rows][k] to q with kernels::scale_s8() and round_s8(): without feedback q is what pack_s8()
// packs.
void round_rows(const float* w, int rows, int k, const Feedback& feedback, int8_t* q, float* scale,
                RoundScratch& scratch);

}  // namespace millrace::model
