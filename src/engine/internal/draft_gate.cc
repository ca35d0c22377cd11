#include "engine/internal/draft_gate.h"

#include <algorithm>

namespace millrace::engine {
namespace {

constexpr int kTokens = 1024;                        // that tell, about: whether a guess is right varies much
constexpr int kWindowLeast = 32, kWindowMost = 256;  // steps in which they are made
constexpr double kWorth =
    1.02;  // plain steps among guessing ones deliver these one's tokens and so look slow

}  // namespace

void DraftGate::note(double tokens, double took, double plain, int sequences) {
  if (!open()) return;  // of before
  const double window = std::clamp(kTokens / std::max(sequences, 1), kWindowLeast, kWindowMost);
  if (steps_ >= window / 4) took = std::min(took, 1.5 * plain * took_ / steps_);  // the host took the CPU away
  const double forget = 1 - 1 / window;
  tokens_ = tokens_ * forget + tokens;
  took_ = took_ * forget + took / plain;
  steps_ = steps_ * forget + 1;
  if (steps_ < window / 2) return;
  if (tokens_ < kWorth * took_) {
    closed_for_ = close_next_;
    close_next_ = std::min(close_next_ * 2, kClosedMost);
    tokens_ = took_ = steps_ = 0;
  } else if (steps_ > 0.8 * window) {
    close_next_ = kClosedFirst;
  }
}

}  // namespace millrace::engine
