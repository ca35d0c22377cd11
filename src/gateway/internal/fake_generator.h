// For tests: a Generator that answers from a script, a tokenizer of bytes, and a small chat template.
// Header-only, so that the library does not carry them.
#pragma once
#include <atomic>
#include <boost/json.hpp>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <map>
#include <mutex>
#include <thread>

#include "base/utf8.h"
#include "gateway/generator.h"
#include "gateway/http_server.h"

namespace millrace::gateway {

// Ids 0..255 are the bytes; then "<|im_start|>" (256), "<|im_end|>" (257, the end of a turn).
inline std::shared_ptr<const model::Tokenizer> byte_tokenizer() {
  model::TokenizerSpec spec;
  int spare = 256;  // GPT-2's alphabet: printable Latin-1 stands for itself, the others take U+0100 and up
  for (int byte = 0; byte < 256; ++byte) {
    const bool plain = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
    std::string text;
    utf8_append(text, static_cast<uint32_t>(plain ? byte : spare++));
    spec.tokens.push_back(text);
  }
  for (const char* text : {"<|im_start|>", "<|im_end|>"}) {
    spec.added.push_back({.id = static_cast<TokenId>(spec.tokens.size()), .text = text, .special = true});
    spec.tokens.emplace_back(text);
  }
  spec.bos = 256;
  spec.eos = 257;
  auto tokenizer = model::Tokenizer::create(std::move(spec));
  MR_CHECK(tokenizer.has_value(), "the byte tokenizer is broken");
  return *tokenizer;
}

class ChatMlTemplate final : public model::ChatTemplate {  // SmolLM2's form, without Jinja
 public:
  Expected<std::vector<model::RenderedSegment>> render(const json::value& context) const override {
    std::vector<model::RenderedSegment> out;
    const auto text_of = [](const json::object& message, const char* key) {
      const json::value* value = message.if_contains(key);
      return value && value->is_string() ? std::string(value->get_string()) : std::string();
    };
    for (const json::value& value : context.as_object().at("messages").as_array()) {
      const json::object& message = value.as_object();
      if (text_of(message, "role") == "forbidden") return invalid("this template forbids it");
      out.push_back({"<|im_start|>", false});
      out.push_back({text_of(message, "role"), true});
      out.push_back({"\n", false});
      out.push_back({text_of(message, "content"), true});
      out.push_back({"<|im_end|>\n", false});
    }
    if (!context.as_object().at("add_generation_prompt").as_bool()) return out;
    out.push_back({"<|im_start|>assistant\n", false});
    // Thinking switches as families have them: one opens the thought, the other closes it.
    const auto is = [&](const char* name, bool value) {
      const json::value* found = context.as_object().if_contains(name);
      return found && found->is_bool() && found->get_bool() == value;
    };
    if (is("thinking", true)) out.push_back({"<think>\n", false});
    if (is("enable_thinking", false)) out.push_back({"<think>\n\n</think>\n\n", false});
    return out;
  }
};

inline engine::ReasoningFormat fake_reasoning() { return {"<think>", "</think>"}; }

inline ServedModel fake_served_model(int64_t max_model_len = 2048) {
  ServedModel model{
      .names = {"fake", "alias/of-fake"}, .created_unix_s = 1700000000, .max_model_len = max_model_len};
  model.tokenizer = byte_tokenizer();
  model.chat_template = std::make_shared<ChatMlTemplate>();
  model.fingerprint = "fp_fake";
  return model;
}

// Replies with `text`, a byte a token, again and again until max_tokens, or once if max_tokens was left out;
// a stop string or token ends it. Requests run one step each `step` on one thread. Tests may also script by
// hand (hold()).
class FakeGenerator final : public Generator {
 public:
  explicit FakeGenerator(std::string text = "Hello, world.", std::chrono::microseconds step = {})
      : text_(std::move(text)), step_(step), thread_([this] { loop(); }) {}
  ~FakeGenerator() override {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    changed_.notify_all();
    thread_.join();
  }

  Expected<RequestId> start(engine::GenerateRequest request, Sink sink) override {
    const std::lock_guard lock(mutex_);
    if (refusal_) return std::unexpected(*refusal_);
    if (request.stop.max_tokens == 0) request.stop.max_tokens = static_cast<int64_t>(text_.size());
    request.id = RequestId(next_id_++);
    last_ = request;
    started_.push_back(request);
    const RequestId id = request.id;
    live_[id] = {std::move(request), std::move(sink), 0, {}};
    changed_.notify_all();
    return id;
  }

  void cancel(RequestId id) override {
    const std::lock_guard lock(mutex_);  // sinks are called with it held: none runs after this
    if (live_.erase(id) > 0) ++cancelled;
    changed_.notify_all();
  }

  std::vector<GroupStatus> groups() const override {
    const std::lock_guard lock(mutex_);
    return {
        {.id = GroupId(0),
         .connected = true,
         .progressing = is_ready,
         .restarts = 1,
         .boot_id = boot_id,
         .load = {
             .steps = 7,
             .running = static_cast<int>(live_.size()),
             .kv_pages_total = 100,
             .kv_pages_free = 75,
             .preemptions = preemptions,
             .drafts = {{.proposed = 7 + preemptions, .accepted = 8}, {.proposed = 10, .accepted = 5}},
             .experts = {{.layer = 4, .rows = 32 * preemptions, .busiest_rows = 15, .imbalance = 1.25f}}}}};
  }
  bool ready() const override { return is_ready; }

  // Delivers an event by hand; false if the request is gone.
  bool emit(RequestId id, engine::GenerateEvent event) {
    const std::lock_guard lock(mutex_);
    const auto found = live_.find(id);
    if (found == live_.end()) return false;
    const bool last_event = event.finish != engine::FinishReason::none;
    found->second.sink(std::move(event));
    if (last_event) live_.erase(found);
    return true;
  }
  size_t live() const {
    const std::lock_guard lock(mutex_);
    return live_.size();
  }
  size_t starts() const {
    const std::lock_guard lock(mutex_);
    return started_.size();
  }
  engine::GenerateRequest last_request() const {
    const std::lock_guard lock(mutex_);
    return last_;
  }
  void refuse_with(std::optional<Status> status) {
    const std::lock_guard lock(mutex_);
    refusal_ = std::move(status);
  }

  std::atomic<bool> hold{false};  // no steps: only emit() answers
  std::atomic<bool> is_ready{true};
  std::atomic<uint64_t> boot_id{1}, preemptions{3};  // of its group's load
  std::atomic<int> cancelled{0};

 private:
  struct Live {
    engine::GenerateRequest request;
    Sink sink;
    int64_t made = 0;
    std::string text;
  };

  static engine::TokenOut token_out(const engine::GenerateRequest& request, TokenId id) {
    engine::TokenOut out{.token = id, .logprob = -0.25f};
    for (int i = 0; i < request.top_logprobs; ++i)
      out.top.push_back({(id + i) % 256, -0.25f - static_cast<float>(i)});
    return out;
  }

  // One token; true if it was the last.
  bool step(Live& live) {
    const engine::GenerateRequest& request = live.request;
    engine::GenerateEvent event{.id = request.id};
    if (live.made == 0) {
      event.has_prompt = true;
      event.prompt_tokens = static_cast<int64_t>(request.prompt.tokens.size());
      for (const auto& segment : request.prompt.text)
        event.prompt_tokens += static_cast<int64_t>(segment.text.size());
      event.cached_tokens = event.prompt_tokens / 2;
      event.queue_s = 0.75;
      if (request.prompt_logprobs >= 0) {
        event.prompt_ids = request.prompt.tokens;
        for (const auto& segment : request.prompt.text)
          for (const char c : segment.text) event.prompt_ids.push_back(static_cast<unsigned char>(c));
        for (const TokenId id : event.prompt_ids) event.prompt_logprobs.push_back(token_out(request, id));
      }
    }
    const char c = text_[static_cast<size_t>(live.made++) % text_.size()];
    event.tokens.push_back(token_out(request, static_cast<unsigned char>(c)));
    event.text = c;
    live.text += c;
    for (const std::string& stop : request.stop.strings) {
      if (!live.text.ends_with(stop)) continue;
      event.text.clear();
      event.finish = engine::FinishReason::stop;
      event.stop_match = stop;
    }
    for (const TokenId id : request.stop.token_ids) {
      if (id != static_cast<unsigned char>(c)) continue;
      event.text.clear();
      event.finish = engine::FinishReason::stop;
      event.stop_token = id;
    }
    if (event.finish == engine::FinishReason::none && live.made >= request.stop.max_tokens)
      event.finish = engine::FinishReason::length;
    const bool done = event.finish != engine::FinishReason::none;
    live.sink(std::move(event));
    return done;
  }

  void loop() {
    std::unique_lock lock(mutex_);
    while (!stopping_) {
      if (live_.empty() || hold) {
        changed_.wait_for(lock, std::chrono::milliseconds(5));
        continue;
      }
      for (auto it = live_.begin(); it != live_.end();)
        it = step(it->second) ? live_.erase(it) : std::next(it);
      changed_.wait_for(lock, step_, [this] { return stopping_; });
    }
  }

  const std::string text_;
  const std::chrono::microseconds step_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::map<RequestId, Live> live_;
  std::vector<engine::GenerateRequest> started_;
  engine::GenerateRequest last_;
  std::optional<Status> refusal_;
  uint64_t next_id_ = 1;
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace millrace::gateway
