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

// Guessing must promise this much more than not guessing. Prices are measured on short sequences and warm
// caches, and are too low by a tenth (measured on a model whose weights do not fit the caches).
constexpr double kMargin = 1.15;
constexpr double kForget = 0.98;        // a step; some fifty count
constexpr double kFadeForget = 0.9995;  // a step without guesses
constexpr double kClassForget = 0.999;  // a guess
constexpr double kClassWeight = 4;      // guesses that outweigh what is hoped of a class
constexpr double kHopedGreedy = 0.75;
constexpr double kOthersWeight = 0.25;  // what others' steps count beside a sequence's own
// Tokens of a step with guesses before any was seen: a good layer's. Bad news comes within a dozen steps.
constexpr double kHopedTokens = 1.9, kHopedSteps = 8;
constexpr double kFurther = 0.8;  // the chance of a guess that is not made yet, where it is worth making
constexpr double kTokenSaving =
    1.25;  // guesses make tokens cheaper by about this: a row must be worth that price

}  // namespace

void CostCurve::add(int size, double seconds) {
  // More rows cost no less: what says otherwise was disturbed.
  if (!points_.empty()) seconds = std::max(seconds, points_.back().seconds);
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

void DraftGain::note(double made, double plain) {
  tokens = tokens * kForget + made;
  plain_tokens = plain_tokens * kForget + plain;
}

void DraftGain::fade() {
  tokens *= kFadeForget;
  plain_tokens *= kFadeForget;
}

size_t DraftPolicy::gain_class(int sequences) {
  return static_cast<size_t>(std::bit_width(static_cast<unsigned>(std::clamp(sequences, 1, (1 << 15) - 1))));
}

double DraftPolicy::plain_seconds(int sequences) const { return costs_.step.at(sequences) + overhead_; }

double DraftPolicy::row_cost(int place, int sequences) const {
  const double n = sequences;
  return (costs_.step.at(n * (place + 2)) - costs_.step.at(n * (place + 1))) / plain_seconds(sequences);
}

bool DraftPolicy::begins(const DraftGain& own, int sequences) const {
  if (max_drafts_ == 0) return false;
  if (costs_.step.empty()) return true;
  const double plain = plain_seconds(sequences);
  const double hoped = (costs_.step.at(2.0 * sequences) + overhead_ + costs_.first.at(sequences)) / plain;
  const DraftGain& others = gains_[gain_class(sequences)];
  const double tokens = own.tokens + kOthersWeight * others.tokens + kHopedSteps * kHopedTokens;
  const double plain_tokens = own.plain_tokens + kOthersWeight * others.plain_tokens + kHopedSteps * hoped;
  return tokens > kMargin * plain_tokens;
}

size_t DraftPolicy::class_of(const DraftGuess& guess) {
  const float probability =
      guess.probability >= 0 && guess.probability <= 1 ? guess.probability : 0;  // not a number: 0
  const size_t by_probability = std::min(static_cast<size_t>(probability * kClasses), size_t{kClasses - 1});
  return by_probability + (guess.greedy ? kClasses : 0);
}

double DraftPolicy::chance(const DraftGuess& guess) const {
  const size_t number = class_of(guess);
  const Class& seen = classes_[number];
  const double hoped =
      guess.greedy ? kHopedGreedy : (static_cast<double>(number % kClasses) + 0.5) / kClasses;
  return (seen.right + hoped * kClassWeight) / (seen.tried + kClassWeight);
}

bool DraftPolicy::runs(int place, double reach, int sequences) const {
  return costs_.step.empty() || reach > kTokenSaving * row_cost(place, sequences);
}

bool DraftPolicy::goes_on(int place, double reach, int sequences) const {
  if (place >= max_drafts_) return false;
  if (costs_.step.empty()) return true;
  return reach * kFurther >
         kTokenSaving * (row_cost(place, sequences) + costs_.again.at(sequences) / plain_seconds(sequences));
}

void DraftPolicy::note(DraftGain& own, std::span<const DraftGuess> guesses, int right, bool ended, int passes,
                       int sequences) {
  // A reply that ended says nothing of the guesses after its end.
  const int known = std::min(static_cast<int>(guesses.size()), ended ? right : right + 1);
  if (std::ssize(counts_) < std::ssize(guesses)) counts_.resize(guesses.size());
  for (int j = 0; j < std::ssize(guesses); ++j) {
    ++counts_[static_cast<size_t>(j)].proposed;
    if (j < right) ++counts_[static_cast<size_t>(j)].accepted;
    if (j >= known) continue;
    Class& seen = classes_[class_of(guesses[static_cast<size_t>(j)])];
    seen.tried = seen.tried * kClassForget + 1;
    seen.right = seen.right * kClassForget + (j < right ? 1 : 0);
  }
  if (costs_.step.empty() || ended) return;
  const double n = sequences;
  const double seconds = costs_.step.at(n * static_cast<double>(1 + guesses.size())) + overhead_ +
                         (passes > 0 ? costs_.first.at(n) + (passes - 1) * costs_.again.at(n) : 0);
  const double plain = seconds / plain_seconds(sequences);
  own.note(1 + right, plain);
  gain_at(sequences).note(1 + right, plain);
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
  void fill(int sequences, int rows_each) {
    tokens_.clear();
    segments_.clear();
    rows_.clear();
    last_.clear();
    for (int s = 0; s < sequences; ++s) {
      segments_.push_back({&pages_[static_cast<size_t>(s)], 0, static_cast<int>(tokens_.size()), rows_each});
      for (int row = 0; row < rows_each; ++row) {
        rows_.push_back(static_cast<int32_t>(tokens_.size()));
        // Any tokens, but different ones: they pick different experts.
        tokens_.push_back(
            static_cast<TokenId>((tokens_.size() * 2654435761u) % static_cast<size_t>(model_.vocab_size())));
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
  std::vector<int32_t> pages_, rows_, last_, order_;
  std::vector<TokenId> tokens_;
  std::vector<StepSegment> segments_;
};

}  // namespace

DraftCosts measure_draft_costs(StepModel& model, KvPool& pool, const MeasureLimits& limits) {
  constexpr int kRepeats = 5;  // the least counts: disturbances only add
  DraftCosts costs;
  Trial trial(model, pool);
  const int64_t end_ns = monotonic_ns() + static_cast<int64_t>(limits.seconds * 1e9);
  const int most = std::min({limits.max_rows / 2, limits.max_logit_rows / 2, limits.max_sequences * 2});
  const int sequences_most = trial.reserve(most);
  // Sizes rise, and after the second no more are begun once the time is over.
  int sizes = 0;
  for (int size = 1; size <= sequences_most && (sizes < 2 || monotonic_ns() < end_ns);
       size = size < 4 ? size + 1 : size + size / 2, ++sizes) {
    double step = std::numeric_limits<double>::infinity(), first = step, again = step;
    for (int repeat = 0; repeat <= kRepeats; ++repeat) {
      if (repeat > 1 && monotonic_ns() > end_ns) break;
      trial.fill(size, 2);
      trial.step();
      first = std::min(first, trial.first());
      trial.fill(size, 1);
      step = std::min(step, trial.step());
      trial.first();
      again = std::min(again, trial.again());
    }
    costs.step.add(size, step);
    costs.first.add(size, first);
    costs.again.add(size, again);
  }
  return costs;
}

}  // namespace millrace::engine
