// How a step's rows are cut up among threads.
#include <algorithm>

#include "engine/internal/executor.h"

namespace millrace::engine {
namespace {

// Two threads must not write into one page's interleaved halves at once, so a segment is cut only between
// pages.
int cut_at_page(int64_t first_position, int rows, int rows_at_most) {
  if (rows <= rows_at_most) return rows;
  const int past_page = static_cast<int>((first_position + rows_at_most) % kernels::kPageTokens);
  return past_page < rows_at_most ? rows_at_most - past_page : rows;
}

}  // namespace

void Executor::plan(const StepBatch& batch) {
  batch_ = batch;
  const int rows = static_cast<int>(batch.tokens.size());
  MR_CHECK(rows > 0 && rows <= max_rows_, "a step has between one row and max_rows");
  MR_CHECK(static_cast<int>(batch.logit_rows.size()) <= max_logit_rows_, "too many rows of logits");
  int64_t positions = 0;
  for (const auto& segment : batch.segments)
    positions = std::max(positions, segment.first_position + segment.rows);
  MR_CHECK(positions <= max_positions_, "a sequence is longer than the executor was made for");
  rope_.reserve(positions);
  for (size_t i = 0; i < counters_; ++i) next_[i].store(0, std::memory_order_relaxed);

  panels_.clear();
  pieces_.clear();
  by_columns_ = rows <= column_rows_max_;
  if (by_columns_) {
    whole_segments_ = static_cast<int>(batch.segments.size()) >= 2 * team_.size();
    cut_pieces(batch, whole_segments_ ? max_rows_ : kernels::kPageTokens);
  } else {
    cut_panels(batch);
  }
}

void Executor::cut_pieces(const StepBatch& batch, int rows_at_most) {
  for (const auto& segment : batch.segments) {
    for (int done = 0; done < segment.rows;) {
      const int64_t position = segment.first_position + done;
      const int rows = cut_at_page(position, segment.rows - done, rows_at_most);
      pieces_.push_back({&segment, segment.row_begin + done, rows, position});
      done += rows;
    }
  }
}

void Executor::cut_panels(const StepBatch& batch) {
  // Panels hold at most panel_rows_ rows (their scratch) and end at a page boundary of their last segment.
  Panel panel;
  const auto close = [&](int next_row) {
    if (panel.rows > 0) panels_.push_back(panel);
    panel = Panel{.row_begin = next_row,
                  .piece_begin = static_cast<int>(pieces_.size()),
                  .piece_end = static_cast<int>(pieces_.size())};
  };
  for (const auto& segment : batch.segments) {
    for (int done = 0; done < segment.rows;) {
      const int room = panel_rows_ - panel.rows;
      const int64_t position = segment.first_position + done;
      int rows = cut_at_page(position, segment.rows - done, room);
      if (rows > room) {  // no page boundary within the room that is left
        close(segment.row_begin + done);
        continue;
      }
      pieces_.push_back({&segment, segment.row_begin + done, rows, position});
      panel.rows += rows;
      panel.piece_end = static_cast<int>(pieces_.size());
      done += rows;
      if (done < segment.rows) close(segment.row_begin + done);
    }
  }
  close(0);
  for (auto& cut : panels_) {
    const auto rows = wanted_rows();
    const auto wanted = std::ranges::lower_bound(rows, cut.row_begin);
    cut.needed = wanted != rows.end() && *wanted < cut.row_begin + cut.rows;
  }
}

}  // namespace millrace::engine
