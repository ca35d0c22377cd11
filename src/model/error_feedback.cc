#include "model/internal/error_feedback.h"

#include <algorithm>
#include <limits>

#include "kernels/gemm_s8.h"

namespace millrace::model {
namespace {

constexpr int kRowsAtOnce = 512;  // of the inputs, in floats
constexpr int kStrip = 256;       // rows of a symmetric matrix of which only one half is computed

// out += a w^T by the kernels' float product, whose bits are the same on every instruction set.
void add_product(const float* a, int64_t a_stride, int m, const float* w, int n, int k, float* out,
                 int64_t out_stride) {
  kernels::gemm_f32({.a = a,
                     .a_stride = a_stride,
                     .m = m,
                     .w = w,
                     .n = n,
                     .k = k,
                     .n_begin = 0,
                     .n_end = n,
                     .out = out,
                     .out_stride = out_stride,
                     .accumulate = true});
}

int panel_end(int begin, int columns) { return std::min(begin + kFeedbackPanel, columns); }

}  // namespace

double SecondMoments::trace() const {
  double out = 0;
  for (int i = 0; i < columns; ++i)
    out += double{sum[static_cast<size_t>(i) * static_cast<size_t>(columns + 1)]};
  return out;
}

Expected<void> SecondMoments::add(const CalibrationInputs& inputs, const CalibrationRows& rows,
                                  int64_t count) {
  MR_CHECK(begin + columns <= rows.width && count <= rows.count(), "moments of what is not there");
  std::vector<float> x(static_cast<size_t>(columns) * kRowsAtOnce);  // [columns][rows]
  for (int64_t first = 0; first < count; first += kRowsAtOnce) {
    const int some = static_cast<int>(std::min<int64_t>(kRowsAtOnce, count - first));
    MR_TRY(inputs.read(rows, first, some, begin, columns, x.data()));
    for (int top = 0; top < columns; top += kStrip) {
      const int bottom = std::min(top + kStrip, columns);
      // Rows [top, bottom), columns [top, columns): what is right of the diagonal.
      add_product(x.data() + int64_t{top} * some, some, bottom - top, x.data() + int64_t{top} * some,
                  columns - top, some, sum.data() + int64_t{top} * columns + top, columns);
    }
  }
  return {};
}

void SecondMoments::add(const SecondMoments& other, double weight) {
  MR_CHECK(begin == other.begin && columns == other.columns, "moments of other columns");
  const auto factor = static_cast<float>(weight);
  for (size_t i = 0; i < sum.size(); ++i) sum[i] += factor * other.sum[i];
}

FeedbackBlock::FeedbackBlock(SecondMoments moments, double damping) : columns_(moments.columns) {
  const int n = columns_;
  std::vector<float>& h = moments.sum;  // above the diagonal it becomes R
  const auto at = [&](int i, int j) -> float& {
    return h[static_cast<size_t>(i) * static_cast<size_t>(n) + static_cast<size_t>(j)];
  };
  const float extra = static_cast<float>(damping * moments.trace() / n);
  for (int i = 0; i < n; ++i) at(i, i) += extra;
  std::vector<float> r, dr;  // [rows][panel width]: R, and -D R
  for (int p = panels() - 1; p >= 0; --p) {
    const int begin = p * kFeedbackPanel, end = panel_end(begin, n), width = end - begin;
    r.assign(static_cast<size_t>(begin) * static_cast<size_t>(width), 0);
    dr = r;
    for (int k = end - 1; k >= begin; --k) {
      const float d = at(k, k);
      // A column that no row has used, and that no damping holds up, carries nothing.
      const float inverse = d >= std::numeric_limits<float>::min() ? 1 / d : 0;
      float column[kFeedbackPanel];  // D_k R_jk of the panel's own j < k
      for (int j = begin; j < k; ++j) column[j - begin] = at(j, k);
      for (int i = 0; i < k; ++i) {
        const float scaled = at(i, k) * inverse;
        if (i < begin) {
          r[static_cast<size_t>(i * width + k - begin)] = scaled;
          dr[static_cast<size_t>(i * width + k - begin)] = -at(i, k);
        }
        for (int j = std::max(begin, i); j < k; ++j) at(i, j) -= scaled * column[j - begin];
        at(i, k) = scaled;
      }
    }
    for (int top = 0; top < begin; top += kStrip) {
      const int bottom = std::min(top + kStrip, begin);
      add_product(r.data() + int64_t{top} * width, width, bottom - top, dr.data() + int64_t{top} * width,
                  begin - top, width, h.data() + int64_t{top} * n + top, n);
    }
  }
  values_.reserve(static_cast<size_t>(n) * static_cast<size_t>(n / 2 + kFeedbackPanel));
  for (int p = 0; p < panels(); ++p) {
    const int begin = p * kFeedbackPanel, end = panel_end(begin, n);
    inside_.push_back(values_.size());
    for (int i = begin; i < end; ++i)
      for (int j = begin; j < begin + kFeedbackPanel; ++j)
        values_.push_back(j > i && j < end ? at(i, j) : 0.0f);
    behind_.push_back(values_.size());
    for (int j = end; j < n; ++j)
      for (int i = begin; i < end; ++i) values_.push_back(at(i, j));
  }
}

const float* FeedbackBlock::inside(int panel) const {
  return values_.data() + inside_[static_cast<size_t>(panel)];
}
const float* FeedbackBlock::behind(int panel) const {
  return values_.data() + behind_[static_cast<size_t>(panel)];
}

// H, the factors, and what a product of inputs reads.
uint64_t FeedbackBlock::bytes(int64_t columns) {
  return static_cast<uint64_t>(columns) *
         static_cast<uint64_t>(columns + columns / 2 + kFeedbackPanel * 6 + kRowsAtOnce) * sizeof(float);
}

void round_rows(const float* w, int rows, int k, const Feedback& feedback, int8_t* q, float* scale,
                RoundScratch& scratch) {
  for (int row = 0; row < rows; ++row) scale[row] = kernels::scale_s8(w + int64_t{row} * k, k);
  if (feedback.empty()) {
    for (int row = 0; row < rows; ++row)
      for (int64_t j = int64_t{row} * k; j < int64_t{row + 1} * k; ++j)
        q[j] = static_cast<int8_t>(kernels::round_s8(w[j], scale[row]));
    return;
  }
  scratch.target.assign(w, w + int64_t{rows} * k);
  scratch.error.resize(static_cast<size_t>(rows) * kFeedbackPanel);
  int first = 0;
  for (const FeedbackBlock& block : feedback) {
    for (int p = 0; p < block.panels(); ++p) {
      const int begin = p * kFeedbackPanel, end = panel_end(begin, block.columns()), width = end - begin;
      for (int row = 0; row < rows; ++row) {
        const int64_t offset = int64_t{row} * k + first + begin;
        float* target = scratch.target.data() + offset;
        float* error = scratch.error.data() + int64_t{row} * width;
        for (int j = 0; j < width; ++j) {
          const float level = kernels::round_s8(target[j], scale[row]);
          q[offset + j] = static_cast<int8_t>(level);
          error[j] = w[offset + j] - level * scale[row];
          const float* r = block.inside(p) + j * kFeedbackPanel;
          for (int next = j + 1; next < width; ++next) target[next] += error[j] * r[next];
        }
      }
      if (end < block.columns())
        add_product(scratch.error.data(), width, rows, block.behind(p), block.columns() - end, width,
                    scratch.target.data() + first + end, k);
    }
    first += block.columns();
  }
}

}  // namespace millrace::model
