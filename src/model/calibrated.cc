#include "model/internal/calibrated.h"

#include <algorithm>
#include <cmath>

#include "base/units.h"

namespace millrace::model {
namespace {

// As even as whole panels allow.
int block_columns(int k) {
  const int blocks = (k + kFeedbackColumns - 1) / kFeedbackColumns;
  return static_cast<int>(round_up((k + blocks - 1) / blocks, kFeedbackPanel));
}

// Calls make(SecondMoments) for the blocks of k columns, side by side and empty yet.
template <class Make>
Expected<void> each_block(int k, const Make& make) {
  const int step = block_columns(k);
  for (int begin = 0; begin < k; begin += step) MR_TRY(make(SecondMoments(begin, std::min(step, k - begin))));
  return {};
}

// Rows that an expert's matrix lacks.
int64_t rows_missing(const CalibrationInputs& inputs, const PlannedLinear& linear, int first_channel) {
  if (!linear.of_one_expert) return 0;
  return std::max<int64_t>(0, expert_rows_enough(linear.k) - inputs.rows(linear.section, first_channel));
}

Expected<RouterMoments> router_moments(const CalibrationInputs& inputs, const PlannedLinear& linear) {
  const CalibrationRows rows = MR_TRY(inputs.find(linear.also_read_by, 0));
  RouterMoments out{.rows = std::min(rows.count(), kRouterRows), .blocks = {}};
  if (out.rows == 0) return out;
  MR_TRY(each_block(linear.k, [&](SecondMoments moments) -> Expected<void> {
    MR_TRY(moments.add(inputs, rows, out.rows));
    out.blocks.push_back(std::move(moments));
    return {};
  }));
  return out;
}

// `router`: null, or what came to it.
Expected<Feedback> feedback_of(const CalibrationInputs& inputs, const PlannedLinear& linear,
                               int first_channel, const RouterMoments* router) {
  const CalibrationRows own = MR_TRY(inputs.find(linear.section, first_channel));
  const auto missing = static_cast<double>(rows_missing(inputs, linear, first_channel));
  const bool borrows = router != nullptr && router->rows > 0;
  Feedback out;
  if (own.count() == 0 && !borrows) return out;
  // Rows without a direction: (missing / own) times the mean of the diagonal, on the diagonal.
  const double damping = kDamping + (borrows ? 0 : missing / static_cast<double>(own.count()));
  bool finite = true;
  MR_TRY(each_block(linear.k, [&](SecondMoments moments) -> Expected<void> {
    if (own.count() > 0) MR_TRY(moments.add(inputs, own, own.count()));
    if (borrows) moments.add(router->blocks[out.size()], missing / static_cast<double>(router->rows));
    finite = finite && std::isfinite(moments.trace());
    if (finite) out.emplace_back(std::move(moments), damping);
    return {};
  }));
  // Squares may overflow where values did not: such a matrix is rounded plainly.
  if (!finite) out.clear();
  return out;
}

}  // namespace

Expected<std::shared_ptr<const Feedback>> FeedbackCache::get(const PlannedLinear& linear, int first_channel) {
  return made_.get(linear.section, first_channel, [&]() -> Expected<Feedback> {
    std::shared_ptr<const RouterMoments> router;
    if (!linear.also_read_by.empty() && rows_missing(inputs_, linear, first_channel) > 0)
      router = MR_TRY(
          routers_.get(linear.also_read_by, linear.k, [&] { return router_moments(inputs_, linear); }));
    return feedback_of(inputs_, linear, first_channel, router.get());
  });
}

uint64_t FeedbackCache::bytes(const PlannedLinear& linear) const {
  // A row's place and scale, and while they are sorted its hash.
  constexpr uint64_t kRowBytes = 40;
  const int64_t rows = inputs_.rows(linear.section, 0) +
                       (linear.also_read_by.empty() ? 0 : inputs_.rows(linear.also_read_by, 0));
  const int step = block_columns(linear.k);
  const auto kept = static_cast<uint64_t>(linear.k) * static_cast<uint64_t>(step) / 2 * sizeof(float);
  return RecentlyMade<Feedback>::kKept *
         (kRowBytes * static_cast<uint64_t>(rows) + FeedbackBlock::bytes(step) + kept);
}

uint64_t FeedbackCache::shared_bytes(const PlannedLinear& linear) const {
  if (linear.also_read_by.empty() || inputs_.rows(linear.also_read_by, 0) == 0) return 0;
  const auto width = static_cast<uint64_t>(round_up(linear.k, kFeedbackPanel));
  return RecentlyMade<RouterMoments>::kKept * width * static_cast<uint64_t>(block_columns(linear.k)) *
         sizeof(float);
}

}  // namespace millrace::model
