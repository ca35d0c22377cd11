#include "engine/engine.h"

#include <fmt/core.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <optional>
#include <thread>
#include <unordered_map>
#include <unordered_set>

#include "base/clock.h"
#include "base/granted_memory.h"
#include "base/log.h"
#include "engine/internal/engine_core.h"
#include "engine/internal/executor.h"
#include "engine/internal/pool_populator.h"
#include "engine/internal/resolve.h"
#include "engine/prompt.h"

namespace millrace::engine {
namespace {

constexpr int kPromptLogitRows = 64;  // rows of logits a step gives to prompt_logprobs: bounds their memory
constexpr int kDraftRows = 64;        // likewise of guesses
constexpr int64_t kReplyGuess = 256;  // tokens of a reply, for Retry-After, until replies have been measured
constexpr double kRetryAtLeastS = 1, kRetryAtMostS = 600;

class EngineImpl final : public Engine {
 public:
  EngineImpl(std::shared_ptr<const model::PackedModel> model,
             std::shared_ptr<const model::Tokenizer> tokenizer, std::unique_ptr<Executor> executor,
             KvPool pool, const EngineOptions& options, EventSink sink)
      : options_(options),
        sink_(std::move(sink)),
        tokenizer_(std::move(tokenizer)),
        vocab_size_(executor->vocab_size()),
        executor_(std::move(executor)),
        pool_(std::move(pool)),
        core_(*executor_, pool_, tokenizer_, kernels::row_kernels(), core_options(options, *model)) {
    last_step_ns_.store(monotonic_ns(), std::memory_order_relaxed);
    publish();
    step_thread_ = std::thread([this] { step_loop(); });
    populator_.emplace(pool_.memory(), busy_,
                       PoolPopulator::options_for(options_.cpus, options_.groups_on_host));
    for (int i = 0; i < options_.tokenizer_threads; ++i)
      tokenizer_threads_.emplace_back([this] { tokenizer_loop(); });
  }

  ~EngineImpl() override {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    work_.notify_all();
    texts_ready_.notify_all();
    for (auto& thread : tokenizer_threads_) thread.join();
    step_thread_.join();
    populator_.reset();
  }

  Expected<void> submit(GenerateRequest request) override {
    MR_TRY(validate_request(request, vocab_size_));
    request.submitted_ns = monotonic_ns();
    const int64_t tokens = tokens_of(request);
    const std::lock_guard lock(mutex_);
    if (stopping_) return fail(Code::unavailable, "the engine is stopping");
    if (submitted_ - left_queue_.load(std::memory_order_relaxed) >=
        static_cast<uint64_t>(options_.max_waiting))
      return refuse_full();
    if (!live_.emplace(request.id, tokens).second)
      return fail(Code::already_exists, fmt::format("request {} is running already", request.id.value));
    live_tokens_ += tokens;
    ++submitted_;
    if (request.prompt.text.empty()) {
      arrived_.push_back(std::move(request));
      work_.notify_one();
    } else {
      texts_.push_back(std::move(request));
      texts_ready_.notify_one();
    }
    return {};
  }

  void cancel(RequestId id) override {
    const std::lock_guard lock(mutex_);
    if (!live_.contains(id)) return;
    cancels_.push_back(id);
    work_.notify_one();
  }

  GroupLoad load() const override {
    const std::lock_guard lock(load_mutex_);
    GroupLoad load = load_;
    load.last_step_age_ms = (monotonic_ns() - last_step_ns_.load(std::memory_order_relaxed)) / 1'000'000;
    return load;
  }

  const EngineOptions& options() const override { return options_; }

 private:
  static CoreOptions core_options(const EngineOptions& options, const model::PackedModel& model) {
    return {.max_model_len = options.max_model_len,
            .scheduler = {.max_sequences = options.max_num_seqs,
                          .max_rows = options.max_num_batched_tokens,
                          .max_prompt_logit_rows = kPromptLogitRows,
                          .max_draft_rows = kDraftRows,
                          .prefix_caching = options.prefix_caching},
            .eos = model.config().eos,
            .now_ns = monotonic_ns,
            .max_drafts = options.num_speculative_tokens,
            .text_lookup = options.speculate_from_text};
  }

  // Tokens that a request is expected to cost; text counts four bytes a token.
  int64_t tokens_of(const GenerateRequest& request) const {
    auto tokens = static_cast<int64_t>(request.prompt.tokens.size());
    for (const auto& segment : request.prompt.text) tokens += static_cast<int64_t>(segment.text.size() / 4);
    const int64_t reply = request.stop.max_tokens > 0 ? request.stop.max_tokens : kReplyGuess;
    return tokens + std::min(reply, kReplyGuess);
  }

  // Back when half of the tokens in hand will be done, at the measured rate.
  std::unexpected<Status> refuse_full() const {
    const double rate = rows_per_s_.load(std::memory_order_relaxed);
    const double half_s = rate > 0 ? static_cast<double>(live_tokens_) / 2 / rate : kRetryAtLeastS;
    return std::unexpected(Status{
        .code = Code::resource_exhausted,
        .message = fmt::format("the engine's queue is full ({} requests are waiting)", options_.max_waiting),
        .reason = "queue_full",
        .retry_after_s = std::clamp(half_s, kRetryAtLeastS, kRetryAtMostS)});
  }

  void tokenizer_loop() {
    while (true) {
      GenerateRequest request;
      {
        std::unique_lock lock(mutex_);
        texts_ready_.wait(lock, [this] { return stopping_ || !texts_.empty(); });
        if (stopping_) return;
        request = std::move(texts_.front());
        texts_.pop_front();
      }
      auto ids = encode_prompt(*tokenizer_, request.prompt, static_cast<size_t>(options_.max_model_len));
      const std::lock_guard lock(mutex_);
      if (ids) {
        request.prompt = {.tokens = std::move(*ids)};
        arrived_.push_back(std::move(request));
      } else {
        refused_.emplace_back(request.id, encode_error(std::move(ids).error()));
      }
      work_.notify_one();
    }
  }

  Status encode_error(Status error) const {
    if (error.code != Code::resource_exhausted && error.code != Code::out_of_range &&
        error.code != Code::invalid_argument)
      return error;
    return {.code = Code::invalid_argument,
            .message = fmt::format(
                "This model's maximum context length is {} tokens. However, your prompt has more than "
                "that. Please reduce the length of the prompt.",
                options_.max_model_len),
            .reason = "context_length_exceeded",
            .param = "messages"};
  }

  // What guesses cost, on the thread that will make them.
  void measure_drafts() {
    busy_.store(true, std::memory_order_relaxed);
    core_.set_draft_costs(measure_draft_costs(*executor_, pool_,
                                              {.max_rows = executor_->max_rows(),
                                               .max_sequences = options_.max_num_seqs,
                                               .max_logit_rows = executor_->max_logit_rows(),
                                               .max_positions = options_.max_model_len}));
    executor_->forget_expert_tokens();  // nobody asked for those
  }

  void step_loop() {
    if (executor_->drafts() && !options_.always_speculate) measure_drafts();
    std::vector<GenerateEvent> events;
    while (take_commands(events)) {
      const bool steps = !core_.idle();
      core_.step(events);
      if (steps) last_step_ns_.store(monotonic_ns(), std::memory_order_relaxed);
      deliver(events);
    }
    stop_all(events);
    deliver(events);
  }

  // Waits for something to do and hands it to the core; false: stop.
  bool take_commands(std::vector<GenerateEvent>& events) {
    {
      std::unique_lock lock(mutex_);
      if (core_.idle()) busy_.store(false, std::memory_order_relaxed);
      work_.wait(lock, [this] {
        return stopping_ || !core_.idle() || !arrived_.empty() || !cancels_.empty() || !refused_.empty();
      });
      if (stopping_) return false;
      busy_.store(true, std::memory_order_relaxed);
      arrived_now_.swap(arrived_);
      cancels_now_.swap(cancels_);
      refused_now_.swap(refused_);
    }
    for (auto& request : arrived_now_)
      if (cancelled_early_.erase(request.id) == 0) {
        core_.add(std::move(request), events);
      } else {
        ++dropped_;
      }
    for (auto& [id, error] : refused_now_) {
      ++dropped_;
      if (cancelled_early_.erase(id) == 0)
        events.push_back({.id = id, .finish = FinishReason::error, .error = std::move(error)});
    }
    for (const RequestId id : cancels_now_) cancel_now(id, events);
    arrived_now_.clear();
    cancels_now_.clear();
    refused_now_.clear();
    return true;
  }

  void cancel_now(RequestId id, std::vector<GenerateEvent>& events) {
    const size_t before = events.size();
    core_.cancel(id, events);
    if (events.size() > before) return;
    // Finished in this very batch, or still with a tokenizer thread: then it is dropped when it comes.
    if (std::ranges::any_of(
            events, [&](const GenerateEvent& e) { return e.id == id && e.finish != FinishReason::none; }))
      return;
    {
      const std::lock_guard lock(mutex_);
      if (!live_.contains(id)) return;
    }
    if (cancelled_early_.insert(id).second) events.push_back({.id = id, .finish = FinishReason::cancelled});
  }

  void stop_all(std::vector<GenerateEvent>& events) {
    const Status status{.code = Code::unavailable, .message = "the engine is stopping"};
    core_.fail_all(status, events);
    const std::lock_guard lock(mutex_);
    for (const auto& [id, tokens] : live_)
      if (!cancelled_early_.contains(id) && std::ranges::none_of(events, [&](const GenerateEvent& e) {
            return e.id == id && e.finish != FinishReason::none;
          }))
        events.push_back({.id = id, .finish = FinishReason::error, .error = status});
  }

  void deliver(std::vector<GenerateEvent>& events) {
    {
      const std::lock_guard lock(mutex_);
      left_queue_.store(core_.left_queue() + dropped_, std::memory_order_relaxed);
      rows_per_s_.store(core_.rows_per_s(), std::memory_order_relaxed);
      for (const auto& event : events) {
        if (event.finish == FinishReason::none) continue;
        const auto found = live_.find(event.id);
        if (found == live_.end()) continue;
        live_tokens_ -= found->second;
        live_.erase(found);
      }
      queued_outside_ = static_cast<int>(texts_.size() + arrived_.size());
    }
    publish();
    if (sink_) sink_(events, load());
    events.clear();
  }

  void publish() {
    GroupLoad load = core_.load();
    load.waiting += queued_outside_;
    // Reading a counter of each expert takes microseconds, which not every step should pay. The last step
    // before a rest must: what it left behind is what is shown until the next request.
    if (load.steps != balance_steps_ && (load.steps % 64 == 1 || core_.idle())) {
      balance_ = executor_->expert_balance();
      balance_steps_ = load.steps;
    }
    load.experts = balance_;
    const std::lock_guard lock(load_mutex_);
    load_ = std::move(load);
  }

  // Constant after construction.
  const EngineOptions options_;
  const EventSink sink_;
  const std::shared_ptr<const model::Tokenizer> tokenizer_;
  const int vocab_size_;

  // The step thread's own.
  const std::unique_ptr<Executor> executor_;
  KvPool pool_;
  EngineCore core_;
  std::vector<GenerateRequest> arrived_now_;
  std::vector<RequestId> cancels_now_;
  std::vector<std::pair<RequestId, Status>> refused_now_;
  std::unordered_set<RequestId> cancelled_early_;  // ended while a tokenizer thread had them
  uint64_t dropped_ = 0;
  int queued_outside_ = 0;
  std::vector<ExpertBalance> balance_;
  uint64_t balance_steps_ = ~uint64_t{0};  // when it was renewed

  // Guarded by mutex_.
  std::mutex mutex_;
  std::condition_variable work_, texts_ready_;
  bool stopping_ = false;
  std::deque<GenerateRequest> texts_;     // for the tokenizer threads
  std::vector<GenerateRequest> arrived_;  // for the step thread
  std::vector<RequestId> cancels_;
  std::vector<std::pair<RequestId, Status>> refused_;
  std::unordered_map<RequestId, int64_t> live_;  // not ended yet, with their expected tokens
  int64_t live_tokens_ = 0;
  uint64_t submitted_ = 0;

  std::atomic<uint64_t> left_queue_{0};
  std::atomic<double> rows_per_s_{0};
  std::atomic<int64_t> last_step_ns_{0};
  mutable std::mutex load_mutex_;
  GroupLoad load_;  // guarded by load_mutex_

  std::atomic<bool> busy_{false};
  std::optional<PoolPopulator> populator_;
  std::thread step_thread_;
  std::vector<std::thread> tokenizer_threads_;
};

}  // namespace

size_t EngineOptions::own_weights_at_most() const {
  if (weights == Weights::page_cache || (weights == Weights::automatic && groups_on_host > 1)) return 0;
  const size_t left = granted_memory().available_bytes, groups = static_cast<size_t>(std::max(groups_on_host, 1));
  const size_t caches = kv_cache_bytes * groups;
  if (left <= caches) return 0;
  return weights == Weights::own_memory ? (left - caches) / groups / 10 * 9 : (left - caches) / 2;
}

Expected<std::unique_ptr<Engine>> Engine::create(std::shared_ptr<const model::PackedModel> model,
                                                 const EngineOptions& options, EventSink sink) {
  const bool drafts = options.num_speculative_tokens > 0 && !model->graph().mtp.empty();
  const kernels::KvShape shape = kv_shape_of(*model, drafts);
  const ResolvedOptions resolved = MR_TRY(resolve_options(options, model->config(), shape));
  auto tokenizer = MR_TRY(model::Tokenizer::create(model->tokenizer_spec()));
  model->bring_into_memory(resolved.options.own_weights_at_most());
  auto executor = MR_TRY(Executor::create(
      model, {.cpus = resolved.options.cpus,
              .max_rows = resolved.options.max_num_batched_tokens,
              .max_logit_rows = resolved.options.max_num_seqs + kPromptLogitRows + (drafts ? kDraftRows : 0),
              .max_positions = resolved.options.max_model_len,
              .drafts = drafts}));
  auto pool = MR_TRY(KvPool::create(resolved.pages, shape.page_bytes()));
  log(LogLevel::info, "engine", "{}: {} KV pages of {} tokens ({} MiB), context {}, {} threads, {}",
      model->config().name, resolved.pages, kernels::kPageTokens, (resolved.options.kv_cache_bytes >> 20),
      resolved.options.max_model_len, resolved.options.cpus.size(), kernels::isa_name(kernels::active_isa()));
  return std::make_unique<EngineImpl>(std::move(model), std::move(tokenizer), std::move(executor),
                                      std::move(pool), resolved.options, std::move(sink));
}

}  // namespace millrace::engine
