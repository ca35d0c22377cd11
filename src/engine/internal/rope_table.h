// cos and sin of every position's rotary angles, rounded once from double to float (so a row's bits do not
// depend on how it was reached), filled as positions are first needed: memory is touched only up to the
// longest sequence seen.
#pragma once
#include <cstdint>
#include <vector>

#include "base/memory.h"
#include "base/status.h"
#include "model/config.h"

namespace millrace::engine {

class RopeTable {
 public:
  static Expected<RopeTable> create(const model::RopeConfig& rope, int head_dim, int64_t max_positions);
  // Makes positions [0, end) ready. Not thread-safe; rows that are ready may be read by any thread.
  void reserve(int64_t end);
  const float* cos(int64_t position) const { return table_.as<float>() + position * stride(); }
  const float* sin(int64_t position) const { return cos(position) + half_; }
  int64_t stride() const { return 2 * half_; }  // floats between positions

 private:
  Buffer table_;  // [position][cos: half][sin: half]
  std::vector<double> frequencies_;
  double factor_ = 1;  // yarn's attention factor
  int64_t half_ = 0, max_positions_ = 0, ready_ = 0;
};

}  // namespace millrace::engine
