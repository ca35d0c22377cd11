#include "gateway/internal/generation_reply.h"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <mutex>
#include <optional>

#include "base/clock.h"
#include "base/random.h"
#include "gateway/internal/api_error.h"
#include "gateway/internal/response_shapes.h"

namespace millrace::gateway {
namespace {

using engine::FinishReason;
using engine::GenerateEvent;

double seconds_between(int64_t from_ns, int64_t to_ns) { return static_cast<double>(to_ns - from_ns) * 1e-9; }

template <class T>
void append(std::vector<T>& to, std::vector<T>& from) {
  if (to.empty())
    to = std::move(from);
  else
    to.insert(to.end(), std::make_move_iterator(from.begin()), std::make_move_iterator(from.end()));
}

// Later news of the same request after earlier, as if they had come together.
void merge(GenerateEvent& to, GenerateEvent&& from) {
  if (from.has_prompt && !to.has_prompt) {
    to.has_prompt = true;
    to.prompt_tokens = from.prompt_tokens;
    to.cached_tokens = from.cached_tokens;
    to.queue_s = from.queue_s;
    to.prompt_ids = std::move(from.prompt_ids);
    to.prompt_logprobs = std::move(from.prompt_logprobs);
  }
  append(to.tokens, from.tokens);
  to.text += from.text;
  if (from.finish == FinishReason::none) return;
  to.finish = from.finish;
  to.stop_match = std::move(from.stop_match);
  to.stop_token = from.stop_token;
  to.error = std::move(from.error);
}

struct Choice {
  // Guarded by the reply's mutex.
  RequestId id;
  bool started = false, ended = false;  // ended: its last event has come, or it was cancelled
  bool has_news = false;
  GenerateEvent inbox;
  int64_t started_ns = 0, first_token_ns = 0, last_token_ns = 0;
  FinishedRequest totals;

  // The connection's thread's.
  bool prompt_seen = false, role_sent = false, finished = false;
  std::string text, reasoning;           // of a reply that is not streamed
  std::vector<engine::TokenOut> tokens;  // the same, chat with logprobs
  LegacyLogprobs columns;                // the same, completions with logprobs
  int64_t text_offset = 0;  // completions: characters of this choice's text so far, by its tokens
  // The same splitting twice: of the text as it comes, and of the tokens' bytes, which are ahead of it, for
  // the count.
  std::optional<engine::ReasoningSplitter> thought, token_thought;
  Usage usage;
  Ending ending;
};

class GenerationReply : public std::enable_shared_from_this<GenerationReply> {
 public:
  GenerationReply(std::shared_ptr<Exchange> exchange, GenerationPlan plan,
                  std::shared_ptr<const ServedModel> model, std::shared_ptr<Generator> generator,
                  std::shared_ptr<Metrics> metrics, double ping_interval_s)
      : exchange_(std::move(exchange)),
        plan_(std::move(plan)),
        model_(std::move(model)),
        generator_(std::move(generator)),
        metrics_(std::move(metrics)),
        ping_interval_s_(ping_interval_s),
        choices_(plan_.requests.size()) {
    head_ = {.chat = plan_.chat,
             .id = fmt::format("{}{:016x}{:016x}", plan_.chat ? "chatcmpl-" : "cmpl-", random_seed(),
                               random_seed()),
             .created_unix_s = unix_time_s(),
             .model = plan_.model,
             .fingerprint = model_->fingerprint};
    for (const engine::GenerateRequest& request : plan_.requests) {
      stop_ids_ = request.stop.token_ids;  // the same for every choice
      include_stop_ = request.stop.include_stop_in_text;
      skip_special_ = request.skip_special_tokens;
      reasoning_ = request.reasoning;
    }
    if (!plan_.chat || !reasoning_.used()) return;
    for (Choice& choice : choices_) {
      choice.thought.emplace(reasoning_);
      choice.token_thought.emplace(reasoning_);
      choice.usage.reasoning_tokens = 0;
    }
  }

  void start();

 private:
  void arm();
  void receive(size_t index, GenerateEvent event);
  void pump();
  void handle(size_t index, GenerateEvent event);
  void handle_streamed(size_t index, GenerateEvent& event);
  void handle_whole(size_t index, GenerateEvent& event);
  void count_reasoning(Choice& choice, std::span<const engine::TokenOut> tokens) const;
  engine::ReplyParts split(Choice& choice, std::string& text) const;
  void add_text_chunk(size_t index, const char* name, const std::string& text, GenerateEvent& event);
  void fail(const Status& status);
  void finish();
  void cancel_all();
  void commit();
  void ping();
  void record_timing(Choice& choice, const GenerateEvent& event);
  void end_choice(Choice& choice, FinishReason reason);
  void write_delta(JsonWriter& w, Choice& choice, GenerateEvent& event);
  void add_chunk(size_t index, const std::function<void(JsonWriter&)>& body, const Ending& ending);
  void write_whole_choice(JsonWriter& w, size_t index, Choice& choice);
  Usage total_usage() const;
  LegacyLogprobs& legacy_columns(Choice& choice, const GenerateEvent& event, LegacyLogprobs& columns);

  const std::shared_ptr<Exchange> exchange_;
  GenerationPlan plan_;
  const std::shared_ptr<const ServedModel> model_;
  const std::shared_ptr<Generator> generator_;
  const std::shared_ptr<Metrics> metrics_;
  const double ping_interval_s_;
  ReplyHead head_;
  std::vector<TokenId> stop_ids_;
  bool include_stop_ = false, skip_special_ = true;
  engine::ReasoningFormat reasoning_;

  std::mutex mutex_;
  bool cancelled_ = false;  // guarded: no more starts, events are dropped
  bool scheduled_ = false;  // guarded: a pump() is posted, or waits for the client to read
  std::vector<Choice> choices_;

  bool committed_ = false;  // the status line of a stream has been sent
  bool closed_ = false;     // answered
  bool paused_ = false;     // the client does not read
  bool quiet_ = true;       // nothing written since the last ping
  size_t finished_ = 0;
  std::string sse_;  // chunks of this pump
};

// On a worker thread.
void GenerationReply::start() {
  exchange_->post([self = shared_from_this()] { self->arm(); });
  for (size_t i = 0; i < choices_.size(); ++i) {
    {
      const std::lock_guard lock(mutex_);
      if (cancelled_) return;
      choices_[i].started_ns = monotonic_ns();
    }
    metrics_->generation_in_flight(+1);
    Expected<RequestId> id = generator_->start(
        std::move(plan_.requests[i]),
        [self = shared_from_this(), i](GenerateEvent event) { self->receive(i, std::move(event)); });
    if (!id) {
      metrics_->generation_in_flight(-1);
      metrics_->generation_refused(id.error().code);
      exchange_->post([self = shared_from_this(), error = std::move(id).error()] { self->fail(error); });
      return;
    }
    bool cancel = false;
    {
      const std::lock_guard lock(mutex_);
      choices_[i].id = *id;
      choices_[i].started = true;
      cancel = cancelled_ && !choices_[i].ended;
      if (cancel) end_choice(choices_[i], FinishReason::cancelled);
    }
    if (cancel) return generator_->cancel(*id);
  }
}

// The exchange's callbacks own the reply until the exchange ends: the generator forgets it after the last
// event, which a slow reader has yet to be sent.
void GenerationReply::arm() {
  exchange_->on_disconnect([self = shared_from_this()] {
    if (std::exchange(self->closed_, true)) return;
    self->cancel_all();
  });
  if (!plan_.stream) return;
  exchange_->on_drained([self = shared_from_this()] {
    if (std::exchange(self->paused_, false)) self->pump();
  });
  exchange_->call_after(ping_interval_s_, [self = shared_from_this()] { self->ping(); });
}

void GenerationReply::ping() {
  if (closed_) return;
  if (quiet_ && !paused_) {
    commit();
    exchange_->write(": ping\n\n");
  }
  quiet_ = true;
  exchange_->call_after(ping_interval_s_, [self = shared_from_this()] { self->ping(); });
}

// On the generator's thread.
void GenerationReply::receive(size_t index, GenerateEvent event) {
  {
    const std::lock_guard lock(mutex_);
    Choice& choice = choices_[index];
    if (cancelled_ || choice.ended) return;
    record_timing(choice, event);
    if (event.finish != FinishReason::none) end_choice(choice, event.finish);
    const bool last = event.finish != FinishReason::none;
    merge(choice.inbox, std::move(event));
    choice.has_news = true;
    if (!plan_.stream && !last) return;  // a whole reply needs nobody before its end
    if (std::exchange(scheduled_, true)) return;
  }
  exchange_->post([self = shared_from_this()] { self->pump(); });
}

void GenerationReply::record_timing(Choice& choice, const GenerateEvent& event) {
  const int64_t now = monotonic_ns();
  if (event.has_prompt && choice.totals.prompt_tokens == 0) {
    choice.totals.queue_s = event.queue_s;
    choice.totals.prompt_tokens = event.prompt_tokens;
    choice.totals.cached_tokens = event.cached_tokens;
  }
  if (event.tokens.empty()) return;
  size_t later = event.tokens.size();
  if (choice.first_token_ns == 0) {
    choice.first_token_ns = choice.last_token_ns = now;
    metrics_->first_token(seconds_between(exchange_->request().received_ns, now));
    --later;
  }
  if (later > 0) metrics_->next_tokens(seconds_between(choice.last_token_ns, now), later);
  choice.last_token_ns = now;
  choice.totals.generated_tokens += static_cast<int64_t>(event.tokens.size());
}

// With the mutex held.
void GenerationReply::end_choice(Choice& choice, FinishReason reason) {
  choice.ended = true;
  metrics_->generation_in_flight(-1);
  const int64_t now = monotonic_ns();
  FinishedRequest& totals = choice.totals;
  totals.reason = reason;
  if (choice.first_token_ns != 0) {
    totals.prefill_s = std::max(
        seconds_between(choice.started_ns, choice.first_token_ns) - std::max(totals.queue_s, 0.0), 0.0);
    totals.decode_s = seconds_between(choice.first_token_ns, now);
  }
  totals.e2e_s = seconds_between(exchange_->request().received_ns, now);
  metrics_->finished(totals);
}

void GenerationReply::cancel_all() {
  std::vector<RequestId> ids;
  {
    const std::lock_guard lock(mutex_);
    cancelled_ = true;
    for (Choice& choice : choices_) {
      if (!choice.started || choice.ended) continue;
      ids.push_back(choice.id);
      end_choice(choice, FinishReason::cancelled);
    }
  }
  for (const RequestId id : ids) generator_->cancel(id);  // without the mutex: it waits for a sink that runs
}

void GenerationReply::pump() {
  if (closed_) return;
  if (plan_.stream && exchange_->buffered_bytes() > kStreamHighWaterBytes) {
    paused_ = true;  // scheduled_ stays set: the drained callback is the next to look
    return;
  }
  std::vector<std::pair<size_t, GenerateEvent>> news;
  {
    const std::lock_guard lock(mutex_);
    scheduled_ = false;
    for (size_t i = 0; i < choices_.size(); ++i)
      if (std::exchange(choices_[i].has_news, false))
        news.emplace_back(i, std::exchange(choices_[i].inbox, {}));
  }
  for (auto& [index, event] : news) {
    handle(index, std::move(event));
    if (closed_) return;
  }
  if (!sse_.empty()) {
    quiet_ = false;
    exchange_->write(sse_);
    sse_.clear();
  }
  if (finished_ == choices_.size()) finish();
}

void GenerationReply::handle(size_t index, GenerateEvent event) {
  Choice& choice = choices_[index];
  if (event.finish == FinishReason::error) {
    // The group knows tokens, not the field of the API that they came in.
    if (event.error.reason == "context_length_exceeded")
      event.error.param = plan_.chat ? "messages" : "prompt";
    return fail(event.error);
  }
  if (event.finish == FinishReason::cancelled)
    return fail({.code = Code::unavailable, .message = "The server cancelled this request; try again"});
  if (event.has_prompt && !choice.prompt_seen) {
    choice.prompt_seen = true;
    choice.usage.prompt_tokens = event.prompt_tokens;
    choice.usage.cached_tokens = event.cached_tokens;
  } else {
    event.has_prompt = false;  // said again after a resume
  }
  if (plan_.drop_reply) {
    event.tokens.clear();
    event.text.clear();
  }
  choice.usage.completion_tokens += static_cast<int64_t>(event.tokens.size());
  if (event.finish != FinishReason::none) {
    choice.finished = true;
    ++finished_;
    choice.ending.finish_reason =
        event.finish == FinishReason::length || plan_.drop_reply ? "length" : "stop";
    choice.ending.stop_string = event.stop_match;
    for (const TokenId id : stop_ids_)
      if (id == event.stop_token) choice.ending.stop_token = id;
    // The token that ended the reply is no part of its text, so it is none of its logprobs either.
    if (event.stop_token >= 0 && !include_stop_ && !event.tokens.empty() &&
        event.tokens.back().token == event.stop_token)
      event.tokens.pop_back();
  }
  count_reasoning(choice, event.tokens);
  plan_.stream ? handle_streamed(index, event) : handle_whole(index, event);
}

// A token is of the thought if the thought was open before and after it. So a marker that is one token, as
// every family's is in its own vocabulary, does not count; of a closing marker that takes several, all but
// the last do.
void GenerationReply::count_reasoning(Choice& choice, std::span<const engine::TokenOut> tokens) const {
  if (!choice.token_thought) return;
  const model::Tokenizer& tokenizer = *model_->tokenizer;
  for (const engine::TokenOut& token : tokens) {
    const std::string_view bytes = tokenizer.token_bytes(token.token);
    if (skip_special_ && tokenizer.is_special(token.token) && bytes != reasoning_.open &&
        bytes != reasoning_.close)
      continue;
    const bool before = choice.token_thought->inside();
    engine::ReplyParts parts;
    choice.token_thought->push(bytes, parts);
    if (before && choice.token_thought->inside()) ++choice.usage.reasoning_tokens;
  }
}

// What of an event's new text is thought and what is answer; text is consumed. A thought that the reply
// leaves out keeps its tokens in logprobs, as in vLLM's whole replies: they were generated and are counted.
// (vLLM's streams drop them with the chunk; here streamed equals whole.)
engine::ReplyParts GenerationReply::split(Choice& choice, std::string& text) const {
  engine::ReplyParts parts;
  if (!choice.thought) {
    parts.answer = std::move(text);
    return parts;
  }
  choice.thought->push(text, parts);
  if (choice.finished) choice.thought->finish(parts);
  if (!plan_.include_reasoning) parts.reasoning.clear();
  return parts;
}

// Completions: the event's tokens as columns, the prompt's before them where they were asked for.
LegacyLogprobs& GenerationReply::legacy_columns(Choice& choice, const GenerateEvent& event,
                                                LegacyLogprobs& columns) {
  const model::Tokenizer& tokenizer = *model_->tokenizer;
  if (event.has_prompt && plan_.echo)
    add_legacy_tokens(tokenizer, event.prompt_logprobs, false, &choice.text_offset, columns);
  add_legacy_tokens(tokenizer, event.tokens, true, &choice.text_offset, columns);
  return columns;
}

void GenerationReply::handle_whole(size_t index, GenerateEvent& event) {
  Choice& choice = choices_[index];
  if (event.has_prompt && plan_.echo) choice.text += plan_.prompt_texts[index / static_cast<size_t>(plan_.n)];
  const engine::ReplyParts parts = split(choice, event.text);
  choice.reasoning += parts.reasoning;
  choice.text += parts.answer;
  if (!plan_.logprobs) return;
  if (plan_.chat)
    append(choice.tokens, event.tokens);
  else
    legacy_columns(choice, event, choice.columns);
}

void GenerationReply::commit() {
  if (std::exchange(committed_, true)) return;
  exchange_->begin_stream({.status = 200,
                           .content_type = "text/event-stream; charset=utf-8",
                           .headers = {{"Cache-Control", "no-cache"}, {"X-Accel-Buffering", "no"}}});
}

// One `data:` line with one choice; body writes what lies between "index" and "finish_reason".
void GenerationReply::add_chunk(size_t index, const std::function<void(JsonWriter&)>& body,
                                const Ending& ending) {
  JsonWriter w;
  begin_reply(w, head_, true);
  w.begin_object().key("index").integer(static_cast<int64_t>(index));
  body(w);
  write_ending(w, ending);
  w.end_object().end_array();
  if (plan_.include_usage) {
    w.key("usage");
    plan_.continuous_usage ? write_usage(w, choices_[index].usage) : static_cast<void>(w.null());
  }
  w.end_object();
  sse_ += "data: ";
  sse_ += w.text();
  sse_ += "\n\n";
}

void GenerationReply::handle_streamed(size_t index, GenerateEvent& event) {
  commit();
  Choice& choice = choices_[index];
  if (!plan_.chat) {
    if (event.has_prompt && plan_.echo)
      event.text.insert(0, plan_.prompt_texts[index / static_cast<size_t>(plan_.n)]);
    if (event.text.empty() && !choice.finished && !(plan_.logprobs && !event.tokens.empty())) return;
    add_chunk(
        index,
        [&](JsonWriter& w) {
          w.key("text").string(event.text).key("logprobs");
          LegacyLogprobs columns;
          if (plan_.logprobs)
            write_legacy_logprobs(w, *model_->tokenizer, legacy_columns(choice, event, columns),
                                  plan_.top_logprobs);
          else
            w.null();
        },
        choice.ending);
    return;
  }
  if (!std::exchange(choice.role_sent, true)) {
    add_chunk(index,
              [](JsonWriter& w) {
                w.key("delta")
                    .begin_object()
                    .key("role")
                    .string("assistant")
                    .key("content")
                    .string("")
                    .end_object();
                w.key("logprobs").null();
              },
              {});
  }
  const engine::ReplyParts parts = split(choice, event.text);
  if (!parts.reasoning.empty()) add_text_chunk(index, "reasoning_content", parts.reasoning, event);
  if (!parts.answer.empty() || (plan_.logprobs && !event.tokens.empty()))
    add_text_chunk(index, "content", parts.answer, event);
  if (choice.finished)
    add_chunk(
        index, [](JsonWriter& w) { w.key("delta").begin_object().end_object().key("logprobs").null(); },
        choice.ending);
}

// A chunk of new text with the event's logprobs, which the first chunk of an event takes.
void GenerationReply::add_text_chunk(size_t index, const char* name, const std::string& text,
                                     GenerateEvent& event) {
  add_chunk(index,
            [&](JsonWriter& w) {
              w.key("delta").begin_object().key(name).string(text);
              if (std::string_view(name) != "content") w.key("reasoning").string(text);  // vLLM's newer name
              w.end_object().key("logprobs");
              plan_.logprobs ? write_chat_logprobs(w, *model_->tokenizer, event.tokens, plan_.top_logprobs)
                             : static_cast<void>(w.null());
            },
            {});
  event.tokens.clear();
}

Usage GenerationReply::total_usage() const {
  Usage total;
  if (plan_.chat && reasoning_.used()) total.reasoning_tokens = 0;
  for (size_t i = 0; i < choices_.size(); ++i) {
    const Usage& usage = choices_[i].usage;
    total.completion_tokens += usage.completion_tokens;
    if (total.reasoning_tokens >= 0) total.reasoning_tokens += usage.reasoning_tokens;
    if (i % static_cast<size_t>(plan_.n) != 0) continue;  // a prompt counts once, however many choices it has
    total.prompt_tokens += usage.prompt_tokens;
    total.cached_tokens += usage.cached_tokens;
  }
  return total;
}

void GenerationReply::write_whole_choice(JsonWriter& w, size_t index, Choice& choice) {
  w.begin_object().key("index").integer(static_cast<int64_t>(index));
  if (plan_.chat) {
    w.key("message").begin_object().key("role").string("assistant").key("content");
    const bool only_thought =
        choice.thought && choice.thought->inside();  // the reply ended before an answer began
    only_thought ? w.null() : w.string(choice.text);
    w.key("refusal").null();
    if (choice.thought) {
      for (const char* name : {"reasoning_content", "reasoning"}) {
        w.key(name);
        choice.reasoning.empty() ? w.null() : w.string(choice.reasoning);
      }
    }
    w.end_object();
  } else {
    w.key("text").string(choice.text);
  }
  w.key("logprobs");
  if (!plan_.logprobs)
    w.null();
  else if (plan_.chat)
    write_chat_logprobs(w, *model_->tokenizer, choice.tokens, plan_.top_logprobs);
  else
    write_legacy_logprobs(w, *model_->tokenizer, choice.columns, plan_.top_logprobs);
  write_ending(w, choice.ending);
  w.end_object();
}

void GenerationReply::finish() {
  if (std::exchange(closed_, true)) return;
  JsonWriter w;
  begin_reply(w, head_, plan_.stream);
  if (plan_.stream) {
    w.end_array().key("usage");
    write_usage(w, total_usage());
    w.end_object();
    if (plan_.include_usage) exchange_->write("data: " + w.text() + "\n\n");
    exchange_->write("data: [DONE]\n\n");
    exchange_->end_stream();
    return;
  }
  for (size_t i = 0; i < choices_.size(); ++i) write_whole_choice(w, i, choices_[i]);
  w.end_array().key("usage");
  write_usage(w, total_usage());
  w.end_object();
  exchange_->respond({.status = 200, .body = w.take()});
}

void GenerationReply::fail(const Status& status) {
  if (std::exchange(closed_, true)) return;
  cancel_all();
  if (!committed_) return exchange_->respond(error_response(status));
  exchange_->write(sse_ + "data: " + error_body(status) + "\n\ndata: [DONE]\n\n");
  exchange_->end_stream();
}

}  // namespace

void start_generation(std::shared_ptr<Exchange> exchange, GenerationPlan plan,
                      std::shared_ptr<const ServedModel> model, std::shared_ptr<Generator> generator,
                      std::shared_ptr<Metrics> metrics, double ping_interval_s) {
  std::make_shared<GenerationReply>(std::move(exchange), std::move(plan), std::move(model),
                                    std::move(generator), std::move(metrics), ping_interval_s)
      ->start();
}

}  // namespace millrace::gateway
