// Whether guessing pays for steps of so many sequences, all of them together.
//
// DraftPolicy judges each sequence by its own tokens and its share of the prices. What few guessers cost the
// many others of a step (a pass of the MTP layer reads its weights for one as for all) is nobody's share, nor
// is what a price leaves out. So whole steps are compared: tokens over time of those in which anyone guessed,
// with those in which nobody did. Where that does not pay nobody guesses for a while, each time twice as
// long. Not thread-safe: the step thread owns it.
#pragma once

namespace millrace::engine {

class DraftGate {
 public:
  static constexpr int kClosedFirst = 256, kClosedMost = 8192;  // steps
  bool open() const { return closed_for_ == 0; }
  // A step in which some guessed made so many tokens a sequence and took so long, where one in which none
  // does takes `plain`: both in the same unit, which may change with the step.
  void note(double tokens, double took, double plain, int sequences);
  void note_plain() {
    if (closed_for_ > 0) --closed_for_;
  }

 private:
  double tokens_ = 0, took_ = 0, steps_ = 0;  // of recent steps
  int closed_for_ = 0, close_next_ = kClosedFirst;
};

}  // namespace millrace::engine
