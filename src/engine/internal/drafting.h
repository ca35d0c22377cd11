// How many tokens to guess ahead, so that steps with guesses make more tokens a second than steps without.
//
// A sequence with k guesses gives a step 1 + k rows and makes 1 + a1 + a1 a2 + ... tokens, a_j the chance
// that guess j is right once those before it were. What the rows cost was measured when the engine started
// (DraftCosts); the chances are counted, for the sequence itself and over all. The rates of k = 0, 1, ... are
// compared, and the best is taken; no guessing where it gains less than kMargin.
//
// Guesses change when tokens come, never which: a wrong measurement costs speed only.
// Not thread-safe: the step thread owns it.
#pragma once
#include <array>
#include <cstdint>
#include <vector>

#include "engine/internal/step_model.h"
#include "engine/request.h"

namespace millrace::engine {

// Seconds by number of rows or sequences, measured at some sizes and linear in between.
class CostCurve {
 public:
  void add(int size, double seconds);  // ascending sizes
  double at(double size) const;        // 0 where nothing was measured
  bool empty() const { return points_.empty(); }

 private:
  struct Point {
    double size, seconds;
  };
  std::vector<Point> points_;
};

struct DraftCosts {
  CostCurve step;   // of the model, by rows
  CostCurve first;  // of a first guess (with the keys of two rows a sequence), by sequences
  CostCurve again;  // of each further guess, by sequences
};

// Times steps and guesses of the model at sizes up to max_rows, on pages of the pool that it gives back; at
// most about `seconds` long.
struct MeasureLimits {
  int max_rows = 512, max_sequences = 64, max_logit_rows = 64;
  double seconds = 0.5;
};
class KvPool;
DraftCosts measure_draft_costs(StepModel& model, KvPool& pool, const MeasureLimits& limits);

// How often guesses were right, by place, forgetting slowly.
class Acceptance {
 public:
  void note(int proposed, int accepted);  // of one step's guesses, the first `accepted` were right
  // The chance at place j, where `prior` counts as `weight` observations.
  double chance(int place, double prior, double weight) const;
  void fade(double share);  // keeps this share of the memory

 private:
  struct Place {
    double tried = 0, right = 0;
  };
  std::array<Place, kMaxDrafts> places_{};
};

class DraftPolicy {
 public:
  explicit DraftPolicy(int max_drafts) : max_drafts_(max_drafts) {}
  void set_costs(DraftCosts costs) { costs_ = std::move(costs); }  // none: guesses as far as allowed
  int max_drafts() const { return max_drafts_; }
  // Guesses to make for a sequence in a step of `sequences` that make tokens.
  int depth(const Acceptance& own, int sequences) const;
  void note(Acceptance& own, int proposed, int accepted);
  const std::vector<DraftCount>& counts() const { return counts_; }

 private:
  const int max_drafts_;
  DraftCosts costs_;
  Acceptance all_;
  std::vector<DraftCount> counts_;
};

}  // namespace millrace::engine
