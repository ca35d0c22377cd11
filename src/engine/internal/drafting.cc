#include "engine/internal/drafting.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <numeric>

#include "base/clock.h"
#include "engine/internal/kv_pool.h"

namespace millrace::engine {
namespace {

// Guessing must promise this much more than not guessing, to begin and to go on.
constexpr double kBeginMargin = 1.08, kStayMargin = 1.0;
// Steps without guesses that tell of the pace before any guess; and every how many steps with guesses one
// without tells of it, at first and once enough have told.
constexpr int kPlainFirst = 4, kStepsBetweenFirst = 4, kStepsBetweenPlain = 32;
constexpr int kGateFrom = 4;            // sequences: fewer are judged each for itself
constexpr int kUnguessed = 512;         // steps after which the pace of those with guesses is too old
constexpr double kForget = 0.98;        // a step; some fifty count
constexpr double kFadeForget = 0.9995;  // a step without guesses
constexpr double kClassForget = 0.999;  // a guess
constexpr double kClassFade = 0.9995;   // a step with guesses of any: what is not run would not be tried again
constexpr double kClassWeight = 4;      // guesses that outweigh what is hoped of a class
constexpr double kHopedGreedy = 0.75, kHopedSampledLookup = 0.5;
constexpr double kOthersWeight = 0.25;  // what others' steps count beside a sequence's own
// Tokens of a step with guesses before any was seen: a good layer's. Bad news comes within a dozen steps.
constexpr double kHopedTokens = 1.9, kHopedSteps = 8;
constexpr double kHopesLost = 0.75;  // the share that others' steps disprove, where many were seen
constexpr double kFurther = 0.8;     // the chance of a guess that is not made yet, where it is worth making
constexpr double kTokenSaving =
    1.25;  // guesses make tokens cheaper by about this: a row must be worth that price

}  // namespace

void CostCurve::add(int size, double seconds) {
  if (!points_.empty())
    seconds = std::min(seconds, points_.back().seconds * static_cast<double>(size) / points_.back().size);
  for (Point& smaller : points_) smaller.seconds = std::min(smaller.seconds, seconds);
  points_.push_back({static_cast<double>(size), seconds});
}

double CostCurve::at(double size) const {
  if (points_.empty()) return 0;
  if (size <= points_.front().size || points_.size() == 1)
    return points_.front().seconds * std::max(1.0, size / points_.front().size);
  size_t after = 1;
  while (after + 1 < points_.size() && points_[after].size < size) ++after;
  const Point &a = points_[after - 1], &b = points_[after];
  return a.seconds + (b.seconds - a.seconds) * (size - a.size) / (b.size - a.size);
}

void DraftGain::note(double made, double times) {
  tokens = tokens * kForget + made;
  took = took * kForget + times;
  steps = steps * kForget + 1;
}

void DraftGain::fade() {
  tokens *= kFadeForget;
  took *= kFadeForget;
  steps *= kFadeForget;
}

size_t DraftPolicy::gain_class(int sequences) {
  return static_cast<size_t>(std::bit_width(static_cast<unsigned>(std::clamp(sequences, 1, (1 << 15) - 1))));
}

double DraftPolicy::step_seconds(int sequences, double rows_each) const {
  const double n = sequences;
  return costs_.step.at(n * rows_each) +
         n * keys_ * (costs_.key + std::max(0.0, rows_each - 1) * costs_.further_key);
}

double DraftPolicy::again_seconds(int sequences) const {
  return costs_.again.at(sequences) + sequences * keys_ * costs_.guess_key;
}

double DraftPolicy::plain_seconds(int sequences) const {
  return step_seconds(sequences, 1) * pace_at(sequences).plain.value_or(1);
}

double DraftPolicy::priced(size_t guesses, int passes, int sequences) const {
  const double n = sequences;
  const double first = costs_.first.at(n) + n * keys_ * costs_.guess_key;
  const double more = step_seconds(sequences, static_cast<double>(1 + guesses)) - step_seconds(sequences, 1) +
                      (passes > 0 ? first + (passes - 1) * again_seconds(sequences) : 0);
  return plain_seconds(sequences) + scale(sequences) * more;
}

void DraftPolicy::note_cycle(double seconds, double priced, bool guessed, int sequences) {
  if (costs_.step.empty() || seconds <= 0 || priced <= 0) return;
  Pace& pace = paces_[gain_class(sequences)];
  if (guessed) {
    pace.guessed.add(seconds / priced);
    ++pace.since_plain;
  } else {
    pace.plain.add(seconds / step_seconds(sequences, 1));
    pace.since_plain = 0;
  }
}

void DraftPolicy::note_whole(double seconds, double tokens, int sequences) {
  const double plain = plain_seconds(sequences);
  if (sequences >= kGateFrom && seconds > 0 && plain > 0)
    paces_[gain_class(sequences)].gate.note(tokens, seconds, plain, sequences);
}

bool DraftPolicy::wants_plain(int sequences) const {
  const Pace& pace = pace_at(sequences);
  return !costs_.step.empty() &&
         (pace.plain.count() < kPlainFirst ||
          pace.since_plain >= (pace.plain.full() ? kStepsBetweenPlain : kStepsBetweenFirst));
}

void DraftPolicy::note_plain(int sequences) {
  gain_at(sequences).fade();
  Pace& pace = paces_[gain_class(sequences)];
  pace.gate.note_plain();
  if (++pace.unguessed % kUnguessed == 0) pace.guessed.forget();
}

double DraftPolicy::row_cost(int place, int sequences) const {
  return scale(sequences) * (step_seconds(sequences, place + 2) - step_seconds(sequences, place + 1)) /
         plain_seconds(sequences);
}

bool DraftPolicy::begins(const DraftGain& own, int sequences, bool guessing) const {
  if (max_drafts_ == 0) return false;
  if (costs_.step.empty()) return true;
  if (!pace_at(sequences).gate.open()) return false;
  const double model = step_seconds(sequences, 1);
  const double hoped = priced(1, 1, sequences) * drift(sequences) / model;
  const DraftGain& others = gains_[gain_class(sequences)];
  const double hopes = kHopedSteps * (1 - kHopesLost * others.steps * (1 - kForget));
  const double tokens = own.tokens + kOthersWeight * others.tokens + hopes * kHopedTokens;
  const double took = own.took + kOthersWeight * others.took + hopes * hoped;
  return tokens * plain_seconds(sequences) / model > (guessing ? kStayMargin : kBeginMargin) * took;
}

size_t DraftPolicy::class_of(const DraftGuess& guess) {
  const size_t first = guess.greedy ? kClasses + kLookupClasses : 0;
  if (guess.matched > 0) return first + kClasses + (guess.matched >= 16 ? 2 : guess.matched >= 8 ? 1 : 0);
  const float probability =
      guess.probability >= 0 && guess.probability <= 1 ? guess.probability : 0;  // not a number: 0
  return first + std::min(static_cast<size_t>(probability * kClasses), size_t{kClasses - 1});
}

double DraftPolicy::chance(const DraftGuess& guess) const {
  const size_t number = class_of(guess);
  const Class& seen = classes_[number];
  const double hoped = guess.greedy        ? kHopedGreedy
                       : guess.matched > 0 ? kHopedSampledLookup
                                           : (static_cast<double>(number) + 0.5) / kClasses;
  return (seen.right + hoped * kClassWeight) / (seen.tried + kClassWeight);
}

bool DraftPolicy::runs(int place, double reach, int sequences) const {
  return costs_.step.empty() || reach > kTokenSaving * row_cost(place, sequences);
}

bool DraftPolicy::goes_on(int place, double reach, int sequences) const {
  if (place >= max_drafts_) return false;
  if (costs_.step.empty()) return true;
  return reach * kFurther >
         kTokenSaving * (row_cost(place, sequences) +
                         scale(sequences) * again_seconds(sequences) / plain_seconds(sequences));
}

void DraftPolicy::note(DraftGain& own, std::span<const DraftGuess> guesses, int right, bool ended, int passes,
                       int sequences) {
  // A reply that ended says nothing of the guesses after its end.
  const int known = std::min(static_cast<int>(guesses.size()), ended ? right : right + 1);
  if (std::ssize(counts_) < std::ssize(guesses)) counts_.resize(guesses.size());
  for (Class& seen : classes_) {
    seen.tried *= kClassFade;
    seen.right *= kClassFade;
  }
  for (int j = 0; j < std::ssize(guesses); ++j) {
    ++counts_[static_cast<size_t>(j)].proposed;
    if (j < right) ++counts_[static_cast<size_t>(j)].accepted;
    if (j >= known) continue;
    Class& seen = classes_[class_of(guesses[static_cast<size_t>(j)])];
    seen.tried = seen.tried * kClassForget + 1;
    seen.right = seen.right * kClassForget + (j < right ? 1 : 0);
  }
  if (costs_.step.empty() || ended) return;
  const double times =
      priced(guesses.size(), passes, sequences) * drift(sequences) / step_seconds(sequences, 1);
  own.note(1 + right, times);
  gain_at(sequences).note(1 + right, times);
}

namespace {

// Sequences of a few rows each, on pages of their own, and a clock.
class Trial {
 public:
  Trial(StepModel& model, KvPool& pool) : model_(model), pool_(pool) {}
  ~Trial() { pool_.release_all(pages_); }
  int reserve(int sequences) {  // as many as the pool has pages for
    while (static_cast<int>(pages_.size()) < sequences) {
      const int32_t page = pool_.allocate();
      if (page < 0) break;
      pages_.push_back(page);
    }
    return static_cast<int>(pages_.size());
  }
  // `set`: any tokens, but different ones in a set and between sets: they pick different experts.
  // `pages_before`: of keys that each sequence attends to, and that no sequence writes: threads write one
  // sequence's rows while others read their keys.
  void fill(int sequences, int rows_each, int set, int pages_before = 0) {
    tokens_.clear();
    segments_.clear();
    rows_.clear();
    last_.clear();
    table_.clear();
    const std::span own(pages_.data(), static_cast<size_t>(sequences));
    const std::span read(pages_.data() + sequences, pages_.size() - own.size());
    for (int s = 0; s < sequences; ++s) {
      for (int page = 0; page < pages_before; ++page)
        table_.push_back(read[static_cast<size_t>(s + page) % read.size()]);
      table_.push_back(own[static_cast<size_t>(s)]);
    }
    for (int s = 0; s < sequences; ++s) {
      segments_.push_back({&table_[static_cast<size_t>(s) * static_cast<size_t>(pages_before + 1)],
                           int64_t{pages_before} * kernels::kPageTokens, static_cast<int>(tokens_.size()),
                           rows_each});
      for (int row = 0; row < rows_each; ++row) {
        rows_.push_back(static_cast<int32_t>(tokens_.size()));
        const size_t number = tokens_.size() + static_cast<size_t>(set) * 1021;
        tokens_.push_back(
            static_cast<TokenId>((number * 2654435761u) % static_cast<size_t>(model_.vocab_size())));
      }
      last_.push_back(rows_.back());
    }
    order_.resize(last_.size());
    std::iota(order_.begin(), order_.end(), 0);
  }
  double step() {
    return seconds([&] {
      model_.run({.tokens = tokens_, .segments = segments_, .logit_rows = rows_, .state_rows = rows_},
                 pool_.base());
    });
  }
  double first() {
    return seconds([&] {
      model_.draft({.tokens = tokens_, .segments = segments_, .states = rows_, .guess_rows = last_},
                   pool_.base());
    });
  }
  double again() {  // after first(), with a row each
    return seconds([&] {
      model_.draft(
          {.tokens = tokens_, .segments = segments_, .states = order_, .guess_rows = order_, .again = true},
          pool_.base());
    });
  }

 private:
  static double seconds(auto&& f) {
    const int64_t start = monotonic_ns();
    f();
    return static_cast<double>(monotonic_ns() - start) * 1e-9;
  }
  StepModel& model_;
  KvPool& pool_;
  std::vector<int32_t> pages_, table_, rows_, last_, order_;
  std::vector<TokenId> tokens_;
  std::vector<StepSegment> segments_;
};

// What attention to far keys adds, by the difference that many of them make. The sequences are as many as
// both threads have work with, and a model whose steps take long is left alone: there keys are few beside
// weights.
void measure_keys(Trial& trial, int sequences, const MeasureLimits& limits, DraftCosts& costs) {
  constexpr int kTurns = 6;
  constexpr double kStepAtMost = 0.02;
  const int pages_before =
      static_cast<int>(std::min<int64_t>(16, limits.max_positions / kernels::kPageTokens - 1));
  if (pages_before < 4 || costs.step.at(sequences) > kStepAtMost) return;
  if (trial.reserve(sequences + pages_before) <= sequences) return;  // nothing to read
  std::array<double, 3> none{}, many{};
  for (int turn = 0; turn < kTurns; ++turn)
    for (auto* least : {&none, &many}) {
      const int before = least == &many ? pages_before : 0;
      std::array<double, 3> seconds{};
      trial.fill(sequences, 2, turn, before);
      seconds[1] = trial.step();
      trial.first();
      trial.fill(sequences, 1, turn, before);
      seconds[0] = trial.step();
      trial.first();
      seconds[2] = trial.again();
      for (size_t i = 0; i < 3; ++i) (*least)[i] = turn == 0 ? seconds[i] : std::min((*least)[i], seconds[i]);
    }
  const double keys = double{kernels::kPageTokens} * pages_before * sequences;
  const auto each = [&](size_t i) { return std::max(0.0, many[i] - none[i]) / keys; };
  costs.key = each(0);
  costs.further_key = std::clamp(each(1) - each(0), 0.0, costs.key);
  costs.guess_key = std::min(each(2), costs.key);
}

}  // namespace

DraftCosts measure_draft_costs(StepModel& model, KvPool& pool, const MeasureLimits& limits) {
  // Sets of tokens take turns, so that a step does not find its experts where the one before left them. Of a
  // set the least counts, since disturbances only add; of the sets the median, since some pick fewer experts
  // than others.
  constexpr int kSets = 4, kTurns = 3;
  DraftCosts costs;
  Trial trial(model, pool);
  // Also of one sequence: a step may have all its guesses.
  const int most = std::min({limits.max_rows / 2, limits.max_logit_rows / 2,
                             std::max(limits.max_sequences * 2, 1 + kMaxDrafts)});
  const int sequences_most = trial.reserve(most);
  if (sequences_most == 0) return costs;
  trial.fill(sequences_most, 1, 0);  // brings in what was never read
  trial.step();
  trial.first();
  trial.again();
  const int64_t end_ns = monotonic_ns() + static_cast<int64_t>(limits.seconds * 1e9);
  struct Times {
    std::array<double, kSets> of{};
    int sets = 0;
    void add(int set, int turn, double seconds) {
      double& least = of[static_cast<size_t>(set)];
      least = turn == 0 ? seconds : std::min(least, seconds);
      sets = std::max(sets, set + 1);
    }
    double median() const {  // of the sets' least: as many are smaller as come before it in order
      for (int i = 0; i < sets; ++i) {
        const double here = of[static_cast<size_t>(i)];
        int before = 0;
        for (int j = 0; j < sets; ++j) {
          const double other = of[static_cast<size_t>(j)];
          before += other < here || (other == here && j < i);
        }
        if (before == sets / 2) return here;
      }
      return of[0];
    }
  };
  // Sizes rise, and after the second no more are begun once the time is over.
  int sizes = 0;
  for (int size = 1; size <= sequences_most && (sizes < 2 || monotonic_ns() < end_ns);
       size = size < 4 ? size + 1 : size + size / 2, ++sizes) {
    Times step, first, again;
    for (int repeat = 0; repeat < kSets * kTurns; ++repeat) {
      if (repeat > 1 && monotonic_ns() > end_ns) break;
      const int set = repeat % kSets, turn = repeat / kSets;
      trial.fill(size, 2, set);
      trial.step();
      first.add(set, turn, trial.first());
      trial.fill(size, 1, set);
      step.add(set, turn, trial.step());
      trial.first();
      again.add(set, turn, trial.again());
    }
    costs.step.add(size, step.median());
    costs.first.add(size, first.median());
    costs.again.add(size, again.median());
  }
  measure_keys(trial, std::min(8, sequences_most), limits, costs);
  return costs;
}

}  // namespace millrace::engine
