// One DP group without its threads: requests in, steps, events out. Deterministic: the same calls give the
// same events.
//
// Everything here runs on one thread (the model spreads its own work). The clock is handed in, so tests can
// run it on virtual time.
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <unordered_map>
#include <vector>

#include "engine/internal/drafting.h"
#include "engine/internal/kv_pool.h"
#include "engine/internal/sampler.h"
#include "engine/internal/scheduler.h"
#include "engine/internal/step_model.h"
#include "engine/request.h"
#include "model/tokenizer.h"

namespace millrace::engine {

struct CoreOptions {
  int64_t max_model_len = 0;  // > 0, at most the pool's tokens
  SchedulerLimits scheduler;
  std::vector<TokenId> eos;
  std::function<int64_t()> now_ns;
  int max_drafts = 0;  // guesses a sequence and step, where the model can guess
  bool text_lookup = true;  // whether the text itself may carry guesses on
};

class EngineCore {
 public:
  EngineCore(StepModel& model, KvPool& pool, std::shared_ptr<const model::Tokenizer> tokenizer,
             const kernels::RowKernels& rows, CoreOptions options);
  ~EngineCore();

  // request.prompt.tokens are the prompt's ids. What is wrong with the request comes as an event.
  void add(GenerateRequest request, std::vector<GenerateEvent>& events);
  void cancel(RequestId id, std::vector<GenerateEvent>& events);
  // Ends every request with `status`.
  void fail_all(const Status& status, std::vector<GenerateEvent>& events);
  void set_draft_costs(DraftCosts costs) { drafting_.set_costs(std::move(costs)); }
  bool idle() const { return sequences_.empty(); }
  void step(std::vector<GenerateEvent>& events);
  GroupLoad load() const;                            // without last_step_age_ms
  double rows_per_s() const { return rows_per_s_; }  // measured over recent steps; 0: none yet
  // Requests that have left the queue for good: admitted once, or ended before that.
  uint64_t left_queue() const { return scheduler_.admissions() + refusals_; }
  // Test hook: sees each drawn token's raw logits.
  std::function<void(RequestId, uint64_t index, const float* logits)> on_logits;

 private:
  struct Draw {  // one wanted row of this step; with guesses, those after it too
    Sequence* sequence = nullptr;
    int logit_index = 0;
    // >= 0: log-probability of the prompt token at this position; else the next tokens.
    int64_t prompt_position = -1;
    // That token: another draw of this step may be adding to the sequence's tokens.
    TokenId prompt_token = 0;
    int drafts = 0;              // rows after it, each good if the token drawn before it is its guess
    std::vector<TokenOut> outs;  // drawn: the last one's row was the last that is good
    std::string text;
    OutputText::End end;
  };
  // One sequence's rows that the MTP layer runs after the step.
  struct Guess {
    Sequence* sequence = nullptr;
    int64_t first_position = 0;
    int rows = 0, state_row = 0;  // of the step
    bool guesses = false;         // the last row's guess is wanted
  };
  Expected<std::unique_ptr<Sequence>> make_sequence(GenerateRequest&& request) const;
  bool choose_drafting(std::span<const ScheduledRows> plan);
  void gather(std::span<const ScheduledRows> plan);
  void draw(Draw& draw, int thread);
  int64_t settle(std::span<const ScheduledRows> plan);
  void accept(Draw& draw, std::vector<GenerateEvent>& events);
  void draft(std::span<const ScheduledRows> plan);
  void begin_cycle(std::span<const ScheduledRows> plan, int64_t start_ns, int64_t draft_ns, bool made_before);
  void end_cycle(int64_t now_ns);
  bool gather_guess(Sequence& sequence, int64_t first, int row_begin, Guess& guess) const;
  void draft_rows();
  void draft_again(int place);
  void take_guess(Sequence& sequence, int index);
  void guess_from_text(Sequence& sequence);
  void announce(Sequence& sequence, GenerateEvent& event);
  void finish(Sequence& sequence);
  void measure(int64_t rows, int64_t start_ns);

  StepModel& model_;
  KvPool& pool_;
  const std::shared_ptr<const model::Tokenizer> tokenizer_;
  const CoreOptions options_;
  Scheduler scheduler_;
  DraftPolicy drafting_;
  std::vector<Sampler> samplers_;  // one a thread
  std::unordered_map<RequestId, std::unique_ptr<Sequence>> sequences_;
  uint64_t arrivals_ = 0, refusals_ = 0, steps_ = 0, prompt_tokens_ = 0, generated_tokens_ = 0;
  double rows_per_s_ = 0;

  // This step; kept for their memory.
  std::vector<TokenId> tokens_;
  std::vector<StepSegment> segments_;
  std::vector<int32_t> logit_rows_, state_rows_, states_, guess_rows_;
  std::vector<Guess> guesses_, guessing_;
  int making_ = 0;  // sequences that make tokens
  int guesses_ran_ = 0, guesses_right_ = 0;
  int draft_rows_left_ = 0;    // of the next step
  bool made_guesses_ = false;  // after this step, or had the chance to
  bool resting_ = false;  // the next step does without guesses, to tell what such a one takes
  // From this step's start to the next one's, where both do nothing but make tokens.
  struct Cycle {
    int64_t start_ns = 0, aside_ns = 0;  // aside: of it, not to be counted
    double priced = 0;
    bool guessed = false;
    double tokens = 0;  // a sequence, where guesses were made before the step and after it
    int sequences = 0;  // 0: it does not count
  };
  Cycle cycle_;
  std::vector<Draw> draws_;
};

}  // namespace millrace::engine
