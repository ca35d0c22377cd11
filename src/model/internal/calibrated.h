// From the inputs that calibration has seen to what rounding a linear's weights needs. Private to the room.
#pragma once
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

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

// Keeps the two begun last of what is made once for jobs that follow each other or run side by side: who asks
// while one is being made waits for it. Thread-safe.
template <class T>
class RecentlyMade {
 public:
  // make() gives Expected<T>; a failure is not kept.
  template <class Make>
  Expected<std::shared_ptr<const T>> get(std::string_view section, int number, const Make& make) {
    const std::shared_ptr<Entry> entry = entry_of(section, number);
    const std::lock_guard lock(entry->making);
    if (!entry->made) entry->made = std::make_shared<const T>(MR_TRY(make()));
    return entry->made;
  }
  static constexpr size_t kKept = 2;

 private:
  struct Entry {
    std::string section;
    int number = 0;
    std::mutex making;
    std::shared_ptr<const T> made;  // guarded by making
  };
  std::shared_ptr<Entry> entry_of(std::string_view section, int number) {
    const std::lock_guard lock(mutex_);
    for (const auto& entry : recent_)
      if (entry->section == section && entry->number == number) return entry;
    const auto entry = recent_.emplace_back(std::make_shared<Entry>());
    entry->section = section;
    entry->number = number;
    if (recent_.size() > kKept) recent_.pop_front();
    return entry;
  }

  std::mutex mutex_;  // guards what follows
  std::deque<std::shared_ptr<Entry>> recent_;
};

// What came to a layer's router, or kRouterRows of it, summed once for all of the layer's experts: a sum for
// each of DeepSeek-V3's 256 in 58 layers would be 1.4e14 multiplications.
struct RouterMoments {
  int64_t rows = 0;
  std::vector<SecondMoments> blocks;  // of columns, as in Feedback
};

// Feedback for the linears of a packing. Thread-safe.
class FeedbackCache {
 public:
  explicit FeedbackCache(const CalibrationInputs& inputs) : inputs_(inputs) {}
  // For a linear's channels from `first_channel` on, up to the next that read other inputs. Empty where
  // nothing is known of these.
  Expected<std::shared_ptr<const Feedback>> get(const PlannedLinear& linear, int first_channel);
  // Of the memory that a job's calls of get() need, at most; its share of the feedback that is kept is
  // counted in.
  uint64_t bytes(const PlannedLinear& linear) const;
  // Beside it, and once for all jobs: the RouterMoments that are kept for this linear.
  uint64_t shared_bytes(const PlannedLinear& linear) const;

 private:
  const CalibrationInputs& inputs_;
  RecentlyMade<Feedback> made_;
  RecentlyMade<RouterMoments> routers_;
};

}  // namespace millrace::model
