// How many tokens to guess ahead, so that steps with guesses make more tokens a second than steps without.
//
// Each guess comes with the probability that the MTP layer gives it; how often guesses of such a probability
// were right is counted, greedy and sampled replies apart (a greedy reply takes the likeliest token, however
// likely it is), and their product down the chain is the chance that a guess is reached and right. What rows
// and guesses cost was measured when the engine started (DraftCosts). Then
//   a guess is run if its chance is worth its row:        chance * (time of a token) > time of one row more;
//   a further guess is made if what it can add is worth making it and running it;
//   a sequence guesses at all while its steps, so priced, have made more tokens a second than plain ones: its
//   own recent ones, and those of others in steps of about as many sequences.
// Guesses change when tokens come, never which: a wrong price costs speed only.
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

struct MeasureLimits {
  int max_rows = 512, max_sequences = 64, max_logit_rows = 64;
  double seconds = 0.5;  // about; two sizes are measured however long they take
};
class KvPool;
// Times steps and guesses of the model at ascending sizes within the limits, on pages of the pool that it
// gives back.
DraftCosts measure_draft_costs(StepModel& model, KvPool& pool, const MeasureLimits& limits);

// Tokens made by steps with guesses, and how many plain steps would have made in their (priced) time;
// forgets.
struct DraftGain {
  double tokens = 0, plain_tokens = 0;
  void note(double made, double plain);
  void fade();
};

struct DraftGuess {
  TokenId token = 0;
  float probability = 0;  // what the MTP layer gives it
  bool greedy = false;    // the reply takes the likeliest token
};

class DraftPolicy {
 public:
  explicit DraftPolicy(int max_drafts) : max_drafts_(max_drafts) {}
  void set_costs(DraftCosts costs) { costs_ = std::move(costs); }  // none: guesses as far as allowed
  int max_drafts() const { return max_drafts_; }

  // `sequences` below: how many make tokens in a step. `place`: of a guess after the last token, from 0.
  bool begins(const DraftGain& own, int sequences) const;
  double chance(const DraftGuess& guess) const;
  // `reach`: the chance that this guess is right and all before it.
  bool runs(int place, double reach, int sequences) const;
  // `reach`: of the guesses made so far, `place` of them.
  bool goes_on(int place, double reach, int sequences) const;

  // A step ran these guesses and the first `right` were; `passes` of the MTP layer made them.
  void note(DraftGain& own, std::span<const DraftGuess> guesses, int right, bool ended, int passes,
            int sequences);
  // A step of so many sequences in which none guessed. What was seen fades, so that bad news is not for ever:
  // after some hundreds to thousands of such steps, by how bad it was, the next request tries again. Faster
  // would cost replies of 20 tokens 3 % of their rate in trials.
  void note_plain(int sequences) { gain_at(sequences).fade(); }
  // Seconds of a step outside the model, which guesses save too.
  void note_overhead(double seconds) { overhead_ += 0.02 * (seconds - overhead_); }
  const std::vector<DraftCount>& counts() const { return counts_; }

 private:
  static constexpr int kClasses = 10;  // of probabilities
  struct Class {
    double tried = 0, right = 0;
  };
  double row_cost(int place, int sequences) const;  // of running a guess, in plain steps
  double plain_seconds(int sequences) const;        // of a step without guesses
  DraftGain& gain_at(int sequences) { return gains_[gain_class(sequences)]; }
  static size_t gain_class(int sequences);

  const int max_drafts_;
  DraftCosts costs_;
  double overhead_ = 0;
  static size_t class_of(const DraftGuess& guess);
  std::array<Class, 2 * kClasses> classes_{};  // sampled, then greedy
  std::array<DraftGain, 16> gains_{};          // by the logarithm of the sequences
  std::vector<DraftCount> counts_;
};

}  // namespace millrace::engine
