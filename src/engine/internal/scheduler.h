// Which rows run in the next step: continuous batching with chunked prefill.
//
//   1. Every running sequence that makes tokens gets its one row, in order of (priority, arrival).
//   2. Running sequences whose prompt is not through get chunks from what is left of max_rows.
//   3. Waiting sequences are admitted in order while seats, rows and pages last. None overtakes another of
//   its priority.
//   4. Guesses of those that make tokens run with their rows where rows and free pages are left over: they
//   make nobody wait.
// When a running sequence needs a page and none is free, the last in order loses its pages and waits again,
// with its tokens; it is computed again later and gets the same bits. A waiting sequence also takes the seat
// or the pages of a running one whose priority number is strictly higher.
//
// Progress: the first in order can always get its pages (no sequence is longer than the pool) and at least
// one row. Not thread-safe: owned by the step thread. Sequences are owned by the caller.
#pragma once
#include <cstdint>
#include <set>
#include <span>
#include <vector>

#include "engine/internal/kv_pool.h"
#include "engine/internal/sequence.h"

namespace millrace::engine {

struct SchedulerLimits {
  int max_sequences = 64;          // running at once
  int max_rows = 512;              // tokens in a step; at least max_sequences
  int max_prompt_logit_rows = 64;  // prompt rows with logits in a step
  int max_draft_rows = 0;          // rows of guesses in a step
  bool prefix_caching = true;
};

struct ScheduledRows {
  Sequence* sequence = nullptr;
  int rows = 0;    // its tokens [computed, computed + rows)
  int drafts = 0;  // of those, the last ones are its guesses
};

class Scheduler {
 public:
  Scheduler(const SchedulerLimits& limits, KvPool& pool) : limits_(limits), pool_(pool) {}

  void add(Sequence& sequence);     // to the waiting ones
  void remove(Sequence& sequence);  // from wherever it is; its pages are released
  // The next step's rows, with pages for them. Empty only if there is nothing to run.
  std::span<const ScheduledRows> plan();
  // Whether prompts took every row of the plan that the tokens being made left: guesses for the next plan
  // would likely be cut from it.
  bool crowded() const { return crowded_; }
  // After the step: the sequence's next `tokens` tokens are computed.
  void computed(Sequence& sequence, int tokens) const { sequence.computed += tokens; }
  // Full pages become findable; what they hold is not written any more.
  void publish(Sequence& sequence);

  int running() const { return static_cast<int>(running_.size()); }
  int waiting() const { return static_cast<int>(waiting_.size()); }
  uint64_t admissions() const { return admissions_; }  // first ones only
  uint64_t preemptions() const { return preemptions_; }
  uint64_t cached_tokens() const { return cached_tokens_; }

 private:
  struct Before {
    bool operator()(const Sequence* a, const Sequence* b) const { return before(*a, *b); }
  };
  void plan_running(bool decodes);
  void plan_waiting();
  void plan_guesses();
  bool admit(Sequence& sequence);
  bool take_pages(Sequence& sequence, int64_t tokens);
  void preempt(Sequence& sequence);
  void schedule(Sequence& sequence, int64_t rows);
  int64_t promised_pages() const;
  int64_t rows_for(const Sequence& sequence) const;

  const SchedulerLimits limits_;
  KvPool& pool_;
  std::set<Sequence*, Before> waiting_;
  std::vector<Sequence*> running_;  // in order
  std::vector<ScheduledRows> plan_;
  int64_t rows_left_ = 0, prompt_logit_rows_left_ = 0;
  bool preempted_ = false;  // in this plan
  bool crowded_ = false;
  uint64_t preemptions_ = 0, admissions_ = 0, cached_tokens_ = 0;
};

}  // namespace millrace::engine
