#include "engine/internal/rope_table.h"

#include <algorithm>
#include <cmath>

#include "base/units.h"

namespace millrace::engine {

Expected<RopeTable> RopeTable::create(const model::RopeConfig& rope, int head_dim, int64_t max_positions) {
  RopeTable table;
  table.half_ = head_dim / 2;
  table.max_positions_ = max_positions;
  table.frequencies_ = rope.inverse_frequencies(head_dim);
  MR_CHECK(static_cast<int64_t>(table.frequencies_.size()) == table.half_,
           "one rotary frequency for each pair");
  if (rope.kind == model::RopeConfig::Kind::yarn) table.factor_ = rope.attention_factor;
  table.table_ =
      MR_TRY(Buffer::allocate(static_cast<size_t>(max_positions * table.stride()) * sizeof(float)));
  return table;
}

void RopeTable::reserve(int64_t end) {
  if (end <= ready_) return;
  constexpr int64_t kGrow = 128;  // positions at a time: about 0.2 ms of sines for 64 dimensions
  end = std::min(round_up(end, kGrow), max_positions_);
  for (; ready_ < end; ++ready_) {
    float* row = table_.as<float>() + ready_ * stride();
    for (int64_t pair = 0; pair < half_; ++pair) {
      const double angle = static_cast<double>(ready_) * frequencies_[static_cast<size_t>(pair)];
      row[pair] = static_cast<float>(std::cos(angle) * factor_);
      row[half_ + pair] = static_cast<float>(std::sin(angle) * factor_);
    }
  }
}

}  // namespace millrace::engine
