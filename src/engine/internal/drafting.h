// How many tokens to guess ahead, so that steps with guesses make more tokens a second than steps without.
//
// Each guess comes with the probability that the MTP layer gives it; how often guesses of such a probability
// were right is counted, greedy and sampled replies apart (a greedy reply takes the likeliest token, however
// likely it is), and their product down the chain is the chance that a guess is reached and right. What rows
// and guesses cost the model was measured when the engine started (DraftCosts); what a step costs beside it
// (delivering tokens, neighbours on the same cores, long contexts) is measured from step to step (Pace). Then
//   a guess is run if its chance is worth its row:        chance * (time of a token) > time of one row more;
//   a further guess is made if what it can add is worth making it and running it;
//   a sequence guesses at all while its steps, so priced, have made more tokens a second than plain ones: its
//   own recent ones, and those of others in steps of about as many sequences. To begin takes a promise of
//   more than to go on, so that noise does not switch it to and fro;
//   and from a few sequences on, none guesses while whole steps make no more tokens a second with guesses than
//   without (DraftGate).
// Guesses change when tokens come, never which: a wrong price costs speed only.
// Not thread-safe: the step thread owns it.
#pragma once
#include <algorithm>
#include <array>
#include <cstdint>
#include <numeric>
#include <vector>

#include "engine/internal/draft_gate.h"
#include "engine/internal/step_model.h"
#include "engine/request.h"

namespace millrace::engine {

// Seconds by number of rows or sequences, measured at some sizes and linear in between.
class CostCurve {
 public:
  // Ascending sizes. More rows cost no less, and in proportion at most: what says otherwise was disturbed.
  void add(int size, double seconds);
  double at(double size) const;  // 0 where nothing was measured
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
  // What attention adds for each key before a row: for a sequence's first row of a step, for each further one,
  // and for a pass of the MTP layer. 0: not measured.
  double key = 0, further_key = 0, guess_key = 0;
};

struct MeasureLimits {
  int max_rows = 512, max_sequences = 64, max_logit_rows = 64;
  int64_t max_positions = 0;  // of a sequence; too few: what keys cost is not measured
  double seconds = 0.5;   // about; two sizes are measured however long they take
};
class KvPool;
// Times steps and guesses of the model at ascending sizes within the limits, on pages of the pool that it
// gives back.
DraftCosts measure_draft_costs(StepModel& model, KvPool& pool, const MeasureLimits& limits);

// Tokens made by steps with guesses and what these took, in times of the model's step without guesses of as
// many sequences; forgets.
struct DraftGain {
  double tokens = 0, took = 0, steps = 0;
  void note(double made, double times);
  void fade();
};

// The mean of the last values, `most` at most, but for the largest eighth of them, which disturbances made; and
// where there are more of those, one counts as three times the median: a host that takes the CPU away for ten
// milliseconds now and then would make a step of half a millisecond look like four.
template <int most>
class RecentMean {
 public:
  void add(double value) {
    last_[static_cast<size_t>(next_)] = value;
    next_ = (next_ + 1) % most;
    count_ = std::min(count_ + 1, most);
    auto sorted = last_;
    const auto kept = sorted.begin() + std::max(1, count_ - (count_ + 7) / 8);
    std::ranges::nth_element(sorted.begin(), kept - 1, sorted.begin() + count_);
    const auto median = sorted.begin() + (kept - sorted.begin() - 1) / 2;
    std::ranges::nth_element(sorted.begin(), median, kept);
    const double cap = 3 * *median;
    mean_ = std::accumulate(sorted.begin(), kept, 0.0,
                            [cap](double sum, double x) { return sum + std::min(x, cap); }) /
            static_cast<double>(kept - sorted.begin());
  }
  void forget() { next_ = count_ = 0; }
  int count() const { return count_; }
  bool full() const { return count_ == most; }
  double value_or(double unknown) const { return count_ > 0 ? mean_ : unknown; }

 private:
  std::array<double, most> last_{};
  int next_ = 0, count_ = 0;
  double mean_ = 0;
};

struct DraftGuess {
  TokenId token = 0;
  float probability = 0;  // what the MTP layer gives it
  int matched = 0;        // set: not from the layer but from the text, after so many equal tokens (text_lookup.h)
  bool greedy = false;    // the reply takes the likeliest token
};

class DraftPolicy {
 public:
  explicit DraftPolicy(int max_drafts) : max_drafts_(max_drafts) {}
  void set_costs(DraftCosts costs) { costs_ = std::move(costs); }  // none: guesses as far as allowed
  int max_drafts() const { return max_drafts_; }
  // The keys that a sequence of the step attends to, in the mean: prices from here on are for so many.
  void set_keys(double mean) { keys_ = mean; }

  // `sequences` below: how many make tokens in a step. `place`: of a guess after the last token, from 0.
  // `guessing`: whether it did after the step before.
  bool begins(const DraftGain& own, int sequences, bool guessing) const;
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
  void note_plain(int sequences);
  // Seconds of a step by price, from its start to the next one's, were all of `sequences` like one that ran
  // so many guesses and had the next ones made in so many passes.
  double priced(size_t guesses, int passes, int sequences) const;
  // From a step's start to the next one's it took so long, were it not for the passes where none of its rows
  // was a guess; and was priced so.
  void note_cycle(double seconds, double priced, bool guessed, int sequences);
  // Likewise of any step in which guesses were made and could run, the passes included; it made so many tokens a
  // sequence.
  void note_whole(double seconds, double tokens, int sequences);
  // Whether the next step should do without guesses, to tell what such a one takes. Not often.
  bool wants_plain(int sequences) const;
  const std::vector<DraftCount>& counts() const { return counts_; }

 private:
  static constexpr int kClasses = 10;        // of probabilities
  static constexpr int kLookupClasses = 3;  // of equal tokens: from 4, 8 and 16 on
  struct Class {
    double tried = 0, right = 0;
  };
  double row_cost(int place, int sequences) const;  // of running a guess, in plain steps
  // Of the model's step with so many rows a sequence; of a guess after the first.
  double step_seconds(int sequences, double rows_each) const;
  double again_seconds(int sequences) const;
  double plain_seconds(int sequences) const;        // of a step without guesses
  // What steps took lately.
  struct Pace {
    RecentMean<16> plain;    // without guesses, over what the model was measured to take
    RecentMean<32> guessed;  // with guesses, over priced()
    int since_plain = 0;     // steps with guesses
    int unguessed = 0;       // steps in which nobody guesses
    DraftGate gate;
  };
  const Pace& pace_at(int sequences) const { return paces_[gain_class(sequences)]; }
  double drift(int sequences) const { return pace_at(sequences).guessed.value_or(1); }
  // What plain steps take beside the model, guesses save too; but where they take less than was measured,
  // that was disturbed, and so were the other prices.
  double scale(int sequences) const { return std::min(1.0, pace_at(sequences).plain.value_or(1)); }
  DraftGain& gain_at(int sequences) { return gains_[gain_class(sequences)]; }
  static size_t gain_class(int sequences);

  const int max_drafts_;
  DraftCosts costs_;
  double keys_ = 0;
  static size_t class_of(const DraftGuess& guess);
  std::array<Class, 2 * (kClasses + kLookupClasses)> classes_{};  // sampled, then greedy
  std::array<DraftGain, 16> gains_{};          // by the logarithm of the sequences
  std::array<Pace, 16> paces_{};               // likewise
  std::vector<DraftCount> counts_;
};

}  // namespace millrace::engine
