// When a refused caller should come back: from the rate at which the groups finish requests, as their
// published loads show it. Each refusal is promised the next place in line, so that refused callers do not
// all come back together. Not thread-safe.
#pragma once
#include <algorithm>
#include <cstdint>

namespace millrace::gateway {

class RetryAfter {
 public:
  // The tokens that all groups have generated since the last call; call it a few times a second.
  void observe(double now_s, uint64_t new_tokens) {
    if (last_s_ > 0 && now_s > last_s_) {
      const double rate = static_cast<double>(new_tokens) / (now_s - last_s_);
      const double weight = std::min(1.0, (now_s - last_s_) / kWindow_s);
      tokens_per_s_ += weight * (rate - tokens_per_s_);
    }
    last_s_ = now_s;
  }
  double tokens_per_s() const { return tokens_per_s_; }  // over the last seconds
  void finished(int64_t reply_tokens) {
    tokens_per_reply_ +=
        0.05 * (static_cast<double>(reply_tokens) - tokens_per_reply_);  // of the last 20 or so
  }
  // Seconds until the next place that is not promised yet; from 1 to 60.
  double promise(double now_s) {
    const double replies_per_s = std::max(tokens_per_s_ / std::max(tokens_per_reply_, 1.0), 1.0 / kMax_s);
    next_place_s_ = std::clamp(std::max(next_place_s_, now_s) + 1 / replies_per_s, now_s, now_s + kMax_s);
    return std::clamp(next_place_s_ - now_s, kMin_s, kMax_s);
  }

 private:
  static constexpr double kWindow_s = 5;
  static constexpr double kMin_s = 1, kMax_s = 60;
  double last_s_ = 0;
  double tokens_per_s_ = 0;
  double tokens_per_reply_ = 128;  // until some finish
  double next_place_s_ = 0;
};

}  // namespace millrace::gateway
