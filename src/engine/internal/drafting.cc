#include "engine/internal/drafting.h"

#include <algorithm>
#include <limits>

#include "base/clock.h"
#include "engine/internal/kv_pool.h"

namespace millrace::engine {
namespace {

// Guessing must promise this much more than not guessing: curves are measured in a second, and are no better.
constexpr double kMargin = 1.05;
constexpr double kForget = 0.98;  // a step; some fifty count
constexpr double kOwnWeight = 6;  // observations of a sequence's own that outweigh all others'
constexpr double kGuess = 0.7, kGuessWeight = 20;  // before anything was observed

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

void Acceptance::note(int proposed, int accepted) {
  for (int j = 0; j < std::min(proposed, accepted + 1); ++j) {
    Place& place = places_[static_cast<size_t>(j)];
    place.tried = place.tried * kForget + 1;
    place.right = place.right * kForget + (j < accepted ? 1 : 0);
  }
}

double Acceptance::chance(int place, double prior, double weight) const {
  const Place& seen = places_[static_cast<size_t>(place)];
  return (seen.right + prior * weight) / (seen.tried + weight);
}

void Acceptance::fade(double share) {
  for (Place& place : places_) {
    place.tried *= share;
    place.right *= share;
  }
}

int DraftPolicy::depth(const Acceptance& own, int sequences) const {
  int best = 0;
  double best_rate = 0, tokens = 1, reached = 1;
  const double n = sequences;
  for (int k = 0; k <= max_drafts_; ++k) {
    if (k > 0) {
      reached *= own.chance(k - 1, all_.chance(k - 1, kGuess, kGuessWeight), kOwnWeight);
      tokens += reached;
    }
    if (costs_.step.empty()) {  // nothing is known of costs: as far as allowed
      best = k;
      continue;
    }
    double seconds = costs_.step.at(n * (1 + k));
    if (k > 0) seconds += costs_.first.at(n) + (k - 1) * costs_.again.at(n);
    const double rate = tokens / seconds;
    if (k == 0) {
      best_rate = rate * kMargin;
    } else if (rate > best_rate) {
      best = k;
      best_rate = rate;
    }
  }
  return best;
}

void DraftPolicy::note(Acceptance& own, int proposed, int accepted) {
  own.note(proposed, accepted);
  all_.note(proposed, accepted);
  if (counts_.size() < static_cast<size_t>(proposed)) counts_.resize(static_cast<size_t>(proposed));
  for (int j = 0; j < proposed; ++j) {
    ++counts_[static_cast<size_t>(j)].proposed;
    if (j < accepted) ++counts_[static_cast<size_t>(j)].accepted;
  }
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
    for (size_t s = 0; s < last_.size(); ++s) order_.resize(last_.size());
    for (size_t s = 0; s < order_.size(); ++s) order_[s] = static_cast<int32_t>(s);
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
