// A stand-in for engine::Engine in tests of what lies above it: no weights, but the contract. Each token
// depends on the prompt, on every token before it, and on the seed, so a request resumed with anything wrong
// goes astray at once. Text is a pure function of the tokens and is held back now and then, as stop strings
// and half characters make it.
//
// Header-only, for tests alone.
#pragma once
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <list>
#include <map>
#include <mutex>
#include <string>
#include <thread>

#include "base/hash.h"
#include "base/random.h"
#include "engine/engine.h"

namespace millrace::cluster::testing {

class FakeEngine final : public engine::Engine {
 public:
  struct Script {
    std::chrono::microseconds step_time{1000};
    size_t text_bytes_per_token = 0;  // padding, to make big events
    std::shared_ptr<std::atomic<bool>> frozen = std::make_shared<std::atomic<bool>>(false);  // true: no steps
    // Bytes too many in the next event's text: above the server's max_queued_bytes, they end the session.
    std::shared_ptr<std::atomic<size_t>> burst_bytes = std::make_shared<std::atomic<size_t>>(0);
    std::function<void(const engine::GenerateRequest&)> on_submit;  // may _exit, to play a request that kills
  };

  FakeEngine(engine::EngineOptions options, Script script, engine::EventSink sink)
      : options_(with_defaults(std::move(options))),
        script_(std::move(script)),
        sink_(std::move(sink)),
        thread_([this] { loop(); }) {}
  ~FakeEngine() override {
    {
      const std::lock_guard lock(mutex_);
      stop_ = true;
    }
    wake_.notify_all();
    thread_.join();
  }

  Expected<void> submit(engine::GenerateRequest request) override {
    if (script_.on_submit) script_.on_submit(request);
    const std::lock_guard lock(mutex_);
    if (request.stop.max_tokens <= 0) return invalid("max_tokens must be positive", "max_tokens");
    if (waiting_.size() >= static_cast<size_t>(options_.max_waiting))
      return std::unexpected(
          Status{.code = Code::resource_exhausted, .message = "queue full", .retry_after_s = 1});
    waiting_.push_back(Sequence(std::move(request)));
    wake_.notify_all();
    return {};
  }
  void cancel(RequestId id) override {
    const std::lock_guard lock(mutex_);
    cancelled_.push_back(id);
    wake_.notify_all();
  }
  engine::GroupLoad load() const override {
    const std::lock_guard lock(mutex_);
    return load_locked();
  }
  const engine::EngineOptions& options() const override { return options_; }

  // What an undisturbed run gives: the tokens and the whole text.
  static std::pair<std::vector<TokenId>, std::string> expected(const engine::GenerateRequest& request,
                                                               size_t padding = 0) {
    Sequence sequence(request);
    while (!sequence.finished()) sequence.sample();
    return {sequence.tokens, text_of(sequence.tokens, sequence.tokens.size(), padding)};
  }

 private:
  static constexpr TokenId kEos = 0;
  static engine::EngineOptions with_defaults(engine::EngineOptions options) {
    if (options.max_model_len == 0) options.max_model_len = 100000;
    return options;
  }

  struct Sequence {
    explicit Sequence(engine::GenerateRequest r) : request(std::move(r)), tokens(request.resumed) {
      for (const engine::TextSegment& segment : request.prompt.text)
        prompt_hash = hash64(segment.text, prompt_hash);
      for (const TokenId token : request.prompt.tokens)
        prompt_hash = hash64(std::to_string(token), prompt_hash);
      shown = releasable(tokens);  // replayed silently
    }
    bool finished() const {
      return (!tokens.empty() && tokens.back() == kEos && !request.stop.ignore_eos) ||
             static_cast<int64_t>(tokens.size()) >= request.stop.max_tokens;
    }
    void sample() {
      uint64_t state = prompt_hash;
      for (const TokenId token : tokens)
        state = (state ^ static_cast<uint64_t>(token + 1)) * 0x9E3779B97F4A7C15ull;
      tokens.push_back(static_cast<TokenId>(uniform_at(request.sampling.seed ^ state, tokens.size()) * 500));
    }
    engine::GenerateRequest request;
    std::vector<TokenId> tokens;
    uint64_t prompt_hash = 1;
    size_t shown = 0;  // tokens whose text has been emitted
    bool announced = false;
  };

  // Text of trailing tokens divisible by 3 is held back.
  static size_t releasable(const std::vector<TokenId>& tokens) {
    size_t n = tokens.size();
    while (n > 0 && tokens[n - 1] % 3 == 0) --n;
    return n;
  }
  static std::string text_of(const std::vector<TokenId>& tokens, size_t end, size_t padding,
                             size_t begin = 0) {
    std::string text;
    for (size_t i = begin; i < end; ++i) text += " w" + std::to_string(tokens[i]) + std::string(padding, 'x');
    return text;
  }

  engine::GroupLoad load_locked() const {
    return {.steps = steps_,
            .running = static_cast<int>(running_.size()),
            .waiting = static_cast<int>(waiting_.size()),
            .kv_pages_total = 1000,
            .kv_pages_free = 1000 - static_cast<int64_t>(running_.size()),
            .generated_tokens = generated_};
  }

  void step(std::vector<engine::GenerateEvent>& events) {
    for (const RequestId id : cancelled_) {
      for (auto* list : {&running_, &waiting_}) {
        for (auto it = list->begin(); it != list->end(); ++it) {
          if (it->request.id != id) continue;
          events.push_back({.id = id, .finish = engine::FinishReason::cancelled});
          list->erase(it);
          break;
        }
      }
    }
    cancelled_.clear();
    while (!waiting_.empty() && running_.size() < static_cast<size_t>(options_.max_num_seqs))
      running_.splice(running_.end(), waiting_, waiting_.begin());
    for (auto it = running_.begin(); it != running_.end();) {
      Sequence& sequence = *it;
      engine::GenerateEvent event{.id = sequence.request.id};
      if (!sequence.announced) {
        event.has_prompt = sequence.announced = true;
        event.prompt_tokens = 7;
      }
      if (!sequence.finished()) {
        sequence.sample();
        ++generated_;
        event.tokens.push_back({.token = sequence.tokens.back()});
      }
      const bool done = sequence.finished();
      const size_t end = done ? sequence.tokens.size() : releasable(sequence.tokens);
      event.text = text_of(sequence.tokens, end, script_.text_bytes_per_token, sequence.shown);
      sequence.shown = end;
      event.text.append(script_.burst_bytes->exchange(0), '!');
      if (done)
        event.finish =
            sequence.tokens.back() == kEos ? engine::FinishReason::stop : engine::FinishReason::length;
      events.push_back(std::move(event));
      it = done ? running_.erase(it) : std::next(it);
    }
    ++steps_;
  }

  void loop() {
    while (true) {
      std::vector<engine::GenerateEvent> events;
      engine::GroupLoad load;
      {
        std::unique_lock lock(mutex_);
        wake_.wait_for(lock, std::chrono::milliseconds(2), [&] {
          return stop_ ||
                 (!*script_.frozen && (!running_.empty() || !waiting_.empty() || !cancelled_.empty()));
        });
        if (stop_) return;
        if (*script_.frozen || (running_.empty() && waiting_.empty() && cancelled_.empty())) continue;
        step(events);
        load = load_locked();
      }
      std::this_thread::sleep_for(script_.step_time);
      sink_(events, load);
    }
  }

  const engine::EngineOptions options_;
  const Script script_;
  const engine::EventSink sink_;
  mutable std::mutex mutex_;
  std::condition_variable wake_;
  std::list<Sequence> running_, waiting_;
  std::vector<RequestId> cancelled_;
  uint64_t steps_ = 0, generated_ = 0;
  bool stop_ = false;
  std::thread thread_;
};

}  // namespace millrace::cluster::testing
