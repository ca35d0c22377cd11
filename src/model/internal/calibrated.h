// From the inputs that calibration has seen to what rounding a linear's weights needs. Private to the room.
#pragma once
#include <deque>
#include <memory>
#include <mutex>
#include <string>

#include "base/status.h"
#include "model/calibration.h"
#include "model/internal/error_feedback.h"
#include "model/internal/plan.h"

namespace millrace::model {

// The settings of calibration, each chosen by measurement (docs/decisions/0008-calibrated-rounding.md). A
// change raises kCalibrationVersion (calibration.h).
inline constexpr double kDamping = 0.01;       // of H's mean diagonal, added to it
inline constexpr int kFeedbackColumns = 1024;  // whose errors make up for each other: bounds memory and time
// Fewer rows than this say too little of what an expert's matrix, `width` columns wide, will read. It is then
// rounded for so many: its own n and, for the first product, the rows that came to the layer's router, all
// together for as much as the missing N - n (of more than kRouterRows some at random). The second product
// reads what only the expert itself makes; there the missing rows are of no direction, and as long as its own
// on average. An expert that no row has reached is rounded for the router's rows, and in its second product
// column by column.
constexpr int64_t expert_rows_enough(int width) { return int64_t{2} * width; }
inline constexpr int64_t kRouterRows = 2048;

// Feedback for a linear's channels from `first_channel` on, up to the next that read other inputs. Empty
// where nothing is known of these.
Expected<Feedback> feedback_of(const CalibrationInputs& inputs, const PlannedLinear& linear,
                               int first_channel);
uint64_t feedback_bytes(const CalibrationInputs& inputs,
                        const PlannedLinear& linear);  // that it takes, at most

// feedback_of(), made once for jobs that follow each other or run side by side. Thread-safe.
class FeedbackCache {
 public:
  explicit FeedbackCache(const CalibrationInputs& inputs) : inputs_(inputs) {}
  Expected<std::shared_ptr<const Feedback>> get(const PlannedLinear& linear, int first_channel);
  // Of the memory that a job's calls of get() need; what is kept beyond them is counted in.
  uint64_t bytes(const PlannedLinear& linear) const { return 2 * feedback_bytes(inputs_, linear); }

 private:
  struct Entry {
    std::string section;
    int first_channel = 0;
    std::mutex making;
    std::shared_ptr<const Feedback> feedback;  // guarded by making
  };

  const CalibrationInputs& inputs_;
  std::mutex mutex_;                           // guards what follows
  std::deque<std::shared_ptr<Entry>> recent_;  // the two asked for last
};

}  // namespace millrace::model
