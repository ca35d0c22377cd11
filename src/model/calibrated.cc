#include "model/internal/calibrated.h"

#include <algorithm>
#include <cmath>

#include "base/units.h"

namespace millrace::model {
namespace {

constexpr size_t kKept = 2;

// As even as whole panels allow.
int block_columns(int k) {
  const int blocks = (k + kFeedbackColumns - 1) / kFeedbackColumns;
  return static_cast<int>(round_up((k + blocks - 1) / blocks, kFeedbackPanel));
}

}  // namespace

Expected<Feedback> feedback_of(const CalibrationInputs& inputs, const PlannedLinear& linear,
                               int first_channel) {
  const CalibrationRows own = MR_TRY(inputs.find(linear.section, first_channel));
  const int64_t missing =
      linear.of_one_expert ? std::max<int64_t>(0, expert_rows_enough(linear.k) - own.count()) : 0;
  CalibrationRows router;
  if (missing > 0 && !linear.also_read_by.empty()) router = MR_TRY(inputs.find(linear.also_read_by, 0));
  Feedback out;
  if (own.count() == 0 && router.count() == 0) return out;
  const int64_t router_rows = std::min(router.count(), kRouterRows);
  // Rows without a direction: (missing / own) times the mean of the diagonal, on the diagonal.
  const double damping =
      kDamping + (router_rows == 0 ? static_cast<double>(missing) / static_cast<double>(own.count()) : 0);
  const int step = block_columns(linear.k);
  for (int begin = 0; begin < linear.k; begin += step) {
    SecondMoments moments(begin, std::min(step, linear.k - begin));
    if (own.count() > 0) MR_TRY(moments.add(inputs, own, own.count(), 1));
    if (router_rows > 0)
      MR_TRY(moments.add(inputs, router, router_rows,
                         static_cast<double>(missing) / static_cast<double>(router_rows)));
    // Squares may overflow where values did not: such a matrix is rounded plainly.
    if (!std::isfinite(moments.trace())) return Feedback{};
    out.emplace_back(std::move(moments), damping);
  }
  return out;
}

uint64_t feedback_bytes(const CalibrationInputs& inputs, const PlannedLinear& linear) {
  // A row's place and scale, and while they are sorted its hash.
  constexpr uint64_t kRowBytes = 40;
  const int64_t rows = inputs.rows(linear.section, 0) +
                       (linear.also_read_by.empty() ? 0 : inputs.rows(linear.also_read_by, 0));
  const int step = block_columns(linear.k);
  const auto kept = static_cast<uint64_t>(linear.k) * static_cast<uint64_t>(step) / 2 * sizeof(float);
  return kRowBytes * static_cast<uint64_t>(rows) + FeedbackBlock::bytes(step) + kept;
}

Expected<std::shared_ptr<const Feedback>> FeedbackCache::get(const PlannedLinear& linear, int first_channel) {
  std::shared_ptr<Entry> entry;
  {
    const std::lock_guard lock(mutex_);
    const auto found = std::ranges::find_if(recent_, [&](const auto& e) {
      return e->section == linear.section && e->first_channel == first_channel;
    });
    if (found != recent_.end()) {
      entry = *found;
    } else {
      entry = recent_.emplace_back(std::make_shared<Entry>());
      entry->section = linear.section;
      entry->first_channel = first_channel;
      if (recent_.size() > kKept) recent_.pop_front();
    }
  }
  const std::lock_guard lock(entry->making);
  if (!entry->feedback)
    entry->feedback = std::make_shared<const Feedback>(MR_TRY(feedback_of(inputs_, linear, first_channel)));
  return entry->feedback;
}

}  // namespace millrace::model
