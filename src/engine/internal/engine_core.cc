#include "engine/internal/engine_core.h"

#include <fmt/core.h>

#include <algorithm>

namespace millrace::engine {
namespace {

Status context_exceeded(int64_t limit, int64_t prompt, int64_t reply) {
  std::string message =
      reply > 0
          ? fmt::format(
                "This model's maximum context length is {} tokens. However, you requested {} tokens ({} in "
                "the prompt, {} in the completion). Please reduce the length of the prompt or completion.",
                limit, static_cast<uint64_t>(prompt) + static_cast<uint64_t>(reply), prompt, reply)
          : fmt::format(
                "This model's maximum context length is {} tokens. However, your prompt has {} tokens, which "
                "leaves no room for a completion. Please reduce the length of the prompt.",
                limit, prompt);
  return {.code = Code::invalid_argument,
          .message = std::move(message),
          .reason = "context_length_exceeded",
          .param = "messages"};
}

constexpr int kRetrySteps = 256;  // after which a sequence that does not guess is tried again

}  // namespace

EngineCore::EngineCore(StepModel& model, KvPool& pool, std::shared_ptr<const model::Tokenizer> tokenizer,
                       const kernels::RowKernels& rows, CoreOptions options)
    : model_(model),
      pool_(pool),
      tokenizer_(std::move(tokenizer)),
      options_(std::move(options)),
      scheduler_(options_.scheduler, pool_),
      drafting_(model.drafts() ? std::clamp(options_.max_drafts, 0, kMaxDrafts) : 0) {
  for (int thread = 0; thread < model_.threads(); ++thread) samplers_.emplace_back(model_.vocab_size(), rows);
}

EngineCore::~EngineCore() {
  for (auto& [id, sequence] : sequences_) scheduler_.remove(*sequence);
}

Expected<std::unique_ptr<Sequence>> EngineCore::make_sequence(GenerateRequest&& request) const {
  const auto prompt = static_cast<int64_t>(request.prompt.tokens.size());
  const auto resumed = static_cast<int64_t>(request.resumed.size());
  if (prompt == 0) return invalid("the prompt is empty: at least one token is needed", "prompt");
  for (const auto* ids : {&request.prompt.tokens, &request.resumed})
    for (const TokenId id : *ids)
      if (id < 0 || id >= model_.vocab_size())
        return invalid(fmt::format("token id {} is not in the vocabulary of {}", id, model_.vocab_size()),
                       "prompt");
  const int64_t limit = options_.max_model_len;
  if (prompt >= limit) return std::unexpected(context_exceeded(limit, prompt, 0));
  if (request.stop.max_tokens > limit - prompt)
    return std::unexpected(context_exceeded(limit, prompt, request.stop.max_tokens));
  const int64_t room = request.stop.max_tokens > 0 ? request.stop.max_tokens : limit - prompt;
  if (resumed > room)
    return invalid(fmt::format("{} tokens are resumed, but the reply may have {}", resumed, room), "resumed");

  OutputText text(tokenizer_, request.stop, options_.eos, request.skip_special_tokens, room,
                  request.reasoning);
  auto sequence =
      std::make_unique<Sequence>(Sequence{.request = std::move(request), .text = std::move(text)});
  sequence->prompt_size = prompt;
  sequence->room = room;
  sequence->tokens = std::move(sequence->request.prompt.tokens);
  sequence->tokens.reserve(static_cast<size_t>(prompt + std::min<int64_t>(room, 1024)));
  sequence->tokens.insert(sequence->tokens.end(), sequence->request.resumed.begin(),
                          sequence->request.resumed.end());
  sequence->request.prompt = {};
  return sequence;
}

void EngineCore::add(GenerateRequest request, std::vector<GenerateEvent>& events) {
  const RequestId id = request.id;
  auto made = make_sequence(std::move(request));
  if (!made) {
    ++refusals_;
    events.push_back({.id = id, .finish = FinishReason::error, .error = std::move(made).error()});
    return;
  }
  Sequence& sequence = **made;
  sequence.arrival = arrivals_++;
  // What the resumed tokens said is out already; their state is needed, their text is not.
  std::string given;
  for (const TokenId token : sequence.request.resumed) {
    const OutputText::End end = sequence.text.push(token, given);
    if (end.finish == FinishReason::none) continue;
    ++refusals_;  // nothing was left to do
    GenerateEvent event{
        .id = id, .finish = end.finish, .stop_match = end.stop_match, .stop_token = end.stop_token};
    announce(sequence, event);
    events.push_back(std::move(event));
    return;
  }
  sequence.request.resumed = {};
  prompt_tokens_ += static_cast<uint64_t>(sequence.prompt_size);
  if (sequence.request.prompt_logprobs >= 0) {
    sequence.prompt_logprobs.resize(static_cast<size_t>(sequence.prompt_size));
    sequence.prompt_logprobs[0].token = sequence.tokens[0];
  }
  scheduler_.add(sequence);
  sequences_.emplace(id, std::move(*made));
}

void EngineCore::cancel(RequestId id, std::vector<GenerateEvent>& events) {
  const auto found = sequences_.find(id);
  if (found == sequences_.end()) return;
  events.push_back({.id = id, .finish = FinishReason::cancelled});
  finish(*found->second);
}

void EngineCore::fail_all(const Status& status, std::vector<GenerateEvent>& events) {
  while (!sequences_.empty()) {
    Sequence& sequence = *sequences_.begin()->second;
    events.push_back({.id = sequence.request.id, .finish = FinishReason::error, .error = status});
    finish(sequence);
  }
}

void EngineCore::finish(Sequence& sequence) {
  if (!sequence.admitted_before) ++refusals_;
  scheduler_.remove(sequence);
  sequences_.erase(sequence.request.id);
}

void EngineCore::step(std::vector<GenerateEvent>& events) {
  if (idle()) {  // the last request was cancelled
    cycle_ = {};
    return;
  }
  const int64_t start_ns = options_.now_ns();
  end_cycle(start_ns);
  const auto plan = scheduler_.plan();
  MR_CHECK(!plan.empty(), "requests are there, but nothing can run");
  for (const auto& scheduled : plan)
    if (scheduled.sequence->first_step_ns == 0) scheduled.sequence->first_step_ns = start_ns;
  gather(plan);
  model_.run({.tokens = tokens_, .segments = segments_, .logit_rows = logit_rows_, .state_rows = state_rows_},
             pool_.base());
  if (!draws_.empty())
    model_.parallel(static_cast<int>(draws_.size()),
                    [this](int index, int thread) { draw(draws_[static_cast<size_t>(index)], thread); });
  const int64_t rows = settle(plan);
  const int64_t settled_ns = drafting_.max_drafts() > 0 ? options_.now_ns() : 0;
  const bool made_before = std::exchange(made_guesses_, false);
  if (!state_rows_.empty()) draft(plan);  // before pages are shared: it writes into them
  if (drafting_.max_drafts() > 0) begin_cycle(plan, start_ns, options_.now_ns() - settled_ns, made_before);
  for (const auto& scheduled : plan) scheduler_.publish(*scheduled.sequence);
  ++steps_;
  measure(rows, start_ns);
  for (auto& drawn : draws_) accept(drawn, events);
  if (idle()) cycle_ = {};
}

// Whether sequences guess after this step: what is kept of the step depends on it. True if any does.
bool EngineCore::choose_drafting(std::span<const ScheduledRows> plan) {
  bool any = false;
  making_ = 0;
  double keys = 0;
  for (const auto& [sequence, rows, drafts] : plan) {
    if (sequence->computed + rows - drafts != sequence->size()) continue;
    ++making_;
    keys += static_cast<double>(sequence->computed);
  }
  drafting_.set_keys(keys / std::max(making_, 1));
  for (const auto& [sequence, rows, drafts] : plan) {
    const bool before = sequence->drafting;
    sequence->drafting = drafting_.begins(sequence->draft_gain, std::max(making_, 1), before);
    any |= sequence->drafting;
    if (before) sequence->undrafted = 0;
    // What was seen of it fades while it does not guess, so that it gets another try.
    if (!sequence->drafting && ++sequence->undrafted % kRetrySteps == 0) sequence->draft_gain = {};
  }
  if (!any && making_ > 0) drafting_.note_plain(making_);
  return any;
}

void EngineCore::gather(std::span<const ScheduledRows> plan) {
  tokens_.clear();
  segments_.clear();
  logit_rows_.clear();
  state_rows_.clear();
  draws_.clear();
  const bool drafting = drafting_.max_drafts() > 0 && choose_drafting(plan);
  const auto want_row = [this](int row) {
    if (logit_rows_.empty() || logit_rows_.back() != row) logit_rows_.push_back(row);
    return static_cast<int>(logit_rows_.size()) - 1;
  };
  for (const auto& [sequence, rows, drafts] : plan) {
    const int row_begin = static_cast<int>(tokens_.size());
    const auto first = sequence->tokens.begin() + sequence->computed;
    tokens_.insert(tokens_.end(), first, first + rows - drafts);
    for (const DraftGuess& guess : sequence->drafts) tokens_.push_back(guess.token);
    segments_.push_back({sequence->pages.data(), sequence->computed, row_begin, rows});
    for (int row = 0; row < rows - drafts; ++row) {
      const int64_t next = sequence->computed + row + 1;  // position of the token that this row predicts
      if (sequence->wants_prompt_logprobs() && next < sequence->prompt_size)
        draws_.push_back({.sequence = sequence,
                          .logit_index = want_row(row_begin + row),
                          .prompt_position = next,
                          .prompt_token = sequence->tokens[static_cast<size_t>(next)]});
      if (next == sequence->size())
        draws_.push_back({.sequence = sequence, .logit_index = want_row(row_begin + row), .drafts = drafts});
    }
    for (int row = rows - drafts; row < rows; ++row) want_row(row_begin + row);
    if (!drafting) continue;
    for (int row = 0; row < rows; ++row)
      if (sequence->drafting || std::ranges::binary_search(logit_rows_, row_begin + row))
        state_rows_.push_back(row_begin + row);
  }
}

void EngineCore::draw(Draw& draw, int thread) {
  Sequence& sequence = *draw.sequence;
  Sampler& sampler = samplers_[static_cast<size_t>(thread)];
  if (draw.prompt_position >= 0) {
    draw.outs.push_back(sampler.logprobs(model_.logits(draw.logit_index), draw.prompt_token,
                                         sequence.request.prompt_logprobs));
    return;
  }
  // Each token is drawn as if it were alone; the next row counts if that token is what it was computed from.
  for (int j = 0;; ++j) {
    draw.outs.push_back(
        sampler.sample({.logits = model_.logits(draw.logit_index + j),
                        .params = &sequence.request.sampling,
                        .prompt = sequence.prompt(),
                        .generated = sequence.generated(),
                        .banned = sequence.text.banned(),
                        .index = static_cast<uint64_t>(sequence.size() - sequence.prompt_size),
                        .top_logprobs = sequence.request.top_logprobs}));
    const TokenId token = draw.outs.back().token;
    sequence.tokens.push_back(token);
    draw.end = sequence.text.push(token, draw.text);
    if (draw.end.finish != FinishReason::none || j == draw.drafts ||
        token != sequence.drafts[static_cast<size_t>(j)].token)
      return;
  }
}

// What of the step's rows stands: all, but of guesses only those that were right. Returns how many.
int64_t EngineCore::settle(std::span<const ScheduledRows> plan) {
  int64_t stand = 0;
  guesses_ran_ = guesses_right_ = 0;
  for (const auto& [sequence, rows, drafts] : plan) {
    scheduler_.computed(*sequence, rows - drafts);
    stand += rows - drafts;
    guesses_ran_ += drafts;
  }
  for (Draw& draw : draws_) {
    if (draw.prompt_position >= 0) continue;
    Sequence& sequence = *draw.sequence;
    const int right = static_cast<int>(draw.outs.size()) - 1;
    scheduler_.computed(sequence, right);
    stand += right;
    guesses_right_ += right;
    if (sequence.draft_passes > 0)
      drafting_.note(sequence.draft_gain, sequence.drafts, right, draw.end.finish != FinishReason::none,
                     std::exchange(sequence.draft_passes, 0), std::max(making_, 1));
    sequence.drafts.clear();
    sequence.ended = draw.end.finish != FinishReason::none;
    if (!on_logits) continue;
    for (int j = 0; j <= right; ++j)
      on_logits(sequence.request.id,
                static_cast<uint64_t>(sequence.size() - sequence.prompt_size - 1 - right + j),
                model_.logits(draw.logit_index + j));
  }
  return stand;
}

void EngineCore::accept(Draw& draw, std::vector<GenerateEvent>& events) {
  Sequence& sequence = *draw.sequence;
  if (draw.prompt_position >= 0) {
    sequence.prompt_logprobs[static_cast<size_t>(draw.prompt_position)] = std::move(draw.outs.front());
    return;
  }
  generated_tokens_ += draw.outs.size();
  GenerateEvent event{.id = sequence.request.id};
  if (!sequence.announced) announce(sequence, event);
  event.tokens = std::move(draw.outs);
  event.text = std::move(draw.text);
  event.finish = draw.end.finish;
  event.stop_match = std::move(draw.end.stop_match);
  event.stop_token = draw.end.stop_token;
  const bool done = event.finish != FinishReason::none;
  events.push_back(std::move(event));
  if (done) finish(sequence);
}

void EngineCore::announce(Sequence& sequence, GenerateEvent& event) {
  sequence.announced = true;
  event.has_prompt = true;
  event.prompt_tokens = sequence.prompt_size;
  event.cached_tokens = sequence.cached_tokens;
  if (sequence.request.submitted_ns > 0 && sequence.first_step_ns > sequence.request.submitted_ns)
    event.queue_s = static_cast<double>(sequence.first_step_ns - sequence.request.submitted_ns) * 1e-9;
  if (sequence.request.prompt_logprobs >= 0) {
    event.prompt_ids.assign(sequence.prompt().begin(), sequence.prompt().end());
    event.prompt_logprobs = std::move(sequence.prompt_logprobs);
  }
}

void EngineCore::measure(int64_t rows, int64_t start_ns) {
  const int64_t took_ns = std::max<int64_t>(options_.now_ns() - start_ns, 1);
  const double now = static_cast<double>(rows) * 1e9 / static_cast<double>(took_ns);
  rows_per_s_ = rows_per_s_ == 0 ? now : rows_per_s_ + 0.05 * (now - rows_per_s_);
}

GroupLoad EngineCore::load() const {
  return {.steps = steps_,
          .running = scheduler_.running(),
          .waiting = scheduler_.waiting(),
          .kv_pages_total = pool_.pages_total(),
          .kv_pages_free = pool_.pages_free(),
          .prompt_tokens = prompt_tokens_,
          .cached_tokens = scheduler_.cached_tokens(),
          .generated_tokens = generated_tokens_,
          .preemptions = scheduler_.preemptions(),
          .drafts = drafting_.counts()};
}

}  // namespace millrace::engine
