#include "apps/chat.h"

#include <fmt/core.h>
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <boost/json.hpp>
#include <condition_variable>
#include <cstdio>
#include <deque>
#include <iostream>
#include <iterator>
#include <mutex>

#include "apps/thought.h"
#include "base/clock.h"
#include "base/random.h"
#include "base/utf8.h"
#include "engine/engine.h"
#include "engine/reasoning_detect.h"
#include "model/chat_template.h"

namespace millrace::apps {
namespace {

std::atomic<bool> interrupted{false};
extern "C" void on_interrupt(int) { interrupted.store(true, std::memory_order_relaxed); }

// Without SA_RESTART, so that Ctrl-C at the prompt ends the read and is seen.
void catch_interrupts() {
  struct sigaction action {};
  action.sa_handler = on_interrupt;
  sigemptyset(&action.sa_mask);
  sigaction(SIGINT, &action, nullptr);
}

// Events of the one request that runs at a time, from the engine's step thread to the terminal's.
class Inbox {
 public:
  void put(std::span<engine::GenerateEvent> events) {
    const std::lock_guard lock(mutex_);
    for (auto& event : events) events_.push_back(std::move(event));
    ready_.notify_one();
  }
  // False after the timeout: nothing came.
  bool take(engine::GenerateEvent& event, std::chrono::milliseconds timeout) {
    std::unique_lock lock(mutex_);
    if (!ready_.wait_for(lock, timeout, [&] { return !events_.empty(); })) return false;
    event = std::move(events_.front());
    events_.pop_front();
    return true;
  }

 private:
  std::mutex mutex_;
  std::condition_variable ready_;
  std::deque<engine::GenerateEvent> events_;
};

class Conversation {
 public:
  static Expected<std::unique_ptr<Conversation>> create(const ChatOptions& options) {
    auto made = std::make_unique<Conversation>();
    made->options_ = options;
    made->model_ = MR_TRY(open_model(options.model));
    if (made->model_->chat_template().empty())
      return invalid(fmt::format("{} has no chat template; use `millrace serve` and /v1/completions",
                                 options.model.model));
    made->template_ = MR_TRY(model::ChatTemplate::parse(made->model_->chat_template()));
    const auto tokenizer = MR_TRY(model::Tokenizer::create(made->model_->tokenizer_spec()));
    made->reasoning_ = MR_TRY(engine::find_reasoning("auto", made->model_->chat_template(), *tokenizer));
    made->engine_ = MR_TRY(
        engine::Engine::create(made->model_, engine_options(options.engine),
                               [inbox = &made->inbox_](std::span<engine::GenerateEvent> events,
                                                       const engine::GroupLoad&) { inbox->put(events); }));
    if (!options.system.empty()) made->add("system", options.system);
    return made;
  }

  // Streams the reply to standard output. A Ctrl-C ends the reply, not the conversation. A thought is shown
  // before its answer; where standard output is no terminal it goes to standard error, so that a script reads
  // the answer alone.
  Expected<void> say(const std::string& words) {
    add("user", utf8_repair(words));
    auto answered = answer();
    if (!answered) messages_.pop_back();  // the words that got no answer are not part of the conversation
    return answered;
  }

  void forget() {
    messages_.clear();
    if (!options_.system.empty()) add("system", options_.system);
  }

 private:
  Expected<void> answer() {
    auto request = MR_TRY(make_request());
    const RequestId id = request.id;
    std::FILE* const aside = ::isatty(STDOUT_FILENO) != 0 ? stdout : stderr;
    ThoughtView view(request.reasoning, ::isatty(::fileno(aside)) != 0);
    const double start_s = monotonic_s();
    double first_s = 0;
    int64_t tokens = 0;
    MR_TRY(engine_->submit(std::move(request)));
    bool cancelling = false;
    engine::GenerateEvent event;
    while (true) {
      if (interrupted && !cancelling) {
        cancelling = true;
        engine_->cancel(id);
      }
      if (!inbox_.take(event, std::chrono::milliseconds(50)) || event.id != id) continue;
      if (first_s == 0 && !event.tokens.empty()) first_s = monotonic_s();
      tokens += static_cast<int64_t>(event.tokens.size());
      print(view.push(event.text), aside);
      if (event.finish == engine::FinishReason::error) return std::unexpected(event.error);
      if (event.finish != engine::FinishReason::none) break;
    }
    print(view.finish(), aside);
    std::fputc('\n', stdout);
    const double end_s = monotonic_s();
    if (options_.verbose && tokens > 1)
      fmt::print(stderr, "[{} tokens, {:.1f} tokens/s, first after {:.0f} ms]\n", tokens,
                 static_cast<double>(tokens - 1) / (end_s - first_s), (first_s - start_s) * 1e3);
    if (event.finish == engine::FinishReason::cancelled && view.said().answer.empty() &&
        view.said().reasoning.empty()) {
      messages_.pop_back();  // as a question that was refused
      return {};
    }
    add("assistant", view.said().answer);
    if (!view.said().reasoning.empty())  // templates decide what becomes of it
      messages_.back().as_object()["reasoning_content"] = view.said().reasoning;
    return {};
  }

  static void print(const ThoughtView::Shown& shown, std::FILE* aside) {
    std::fwrite(shown.thought.data(), 1, shown.thought.size(), aside);
    std::fflush(aside);
    std::fwrite(shown.answer.data(), 1, shown.answer.size(), stdout);
    std::fflush(stdout);
  }

  void add(std::string_view role, std::string_view content) {
    messages_.push_back(boost::json::object{{"role", role}, {"content", content}});
  }

  Expected<engine::GenerateRequest> make_request() {
    const auto& spec = model_->tokenizer_spec();
    const auto text_of = [&](TokenId id) {
      return id >= 0 && static_cast<size_t>(id) < spec.tokens.size() ? spec.tokens[static_cast<size_t>(id)]
                                                                     : std::string();
    };
    const boost::json::object context{
        {"messages", messages_},
        {"add_generation_prompt", true},
        {"bos_token", text_of(model_->config().bos)},
        {"eos_token", model_->config().eos.empty() ? "" : text_of(model_->config().eos[0])}};
    const auto segments = MR_TRY(template_->render(context));
    engine::GenerateRequest request;
    request.id = RequestId(++next_id_);
    request.prompt.add_special = false;  // the template writes them
    request.reasoning = reasoning_;
    request.reasoning.start = engine::reply_start(reasoning_, segments);
    for (const auto& segment : segments)
      request.prompt.text.push_back({.text = segment.text, .parse_special = !segment.from_request});
    const auto& defaults = model_->config().generation;
    request.sampling.temperature = options_.temperature >= 0 ? options_.temperature : defaults.temperature;
    request.sampling.top_p = defaults.top_p;
    request.sampling.top_k = defaults.top_k;
    request.sampling.min_p = defaults.min_p;
    request.sampling.repetition_penalty = defaults.repetition_penalty;
    request.sampling.seed = options_.seed_given ? options_.seed : random_seed();
    request.stop.max_tokens = options_.max_tokens;  // 0: what the context leaves
    return request;
  }

  ChatOptions options_;
  std::shared_ptr<const model::PackedModel> model_;
  std::shared_ptr<const model::ChatTemplate> template_;
  engine::ReasoningFormat reasoning_;
  Inbox inbox_;  // outlives the engine, which delivers into it
  std::unique_ptr<engine::Engine> engine_;
  boost::json::array messages_;
  uint64_t next_id_ = 0;
};

int converse(Conversation& conversation, const std::string& name) {
  fmt::print(stderr, "{}. /clear forgets, /bye leaves, Ctrl-C stops a reply.\n", name);
  while (true) {
    fmt::print(stderr, "\n>>> ");
    interrupted = false;
    std::string line;
    if (!std::getline(std::cin, line)) {
      if (!interrupted) break;  // end of input
      std::cin.clear();
      std::clearerr(stdin);
      fmt::print(stderr, "\n(/bye leaves)");
      continue;
    }
    if (line.empty()) continue;
    if (line == "/bye" || line == "/exit" || line == "/quit") break;
    if (line == "/clear") {
      conversation.forget();
      continue;
    }
    if (line[0] == '/') {
      fmt::print(stderr, "/clear forgets the conversation, /bye leaves\n");
      continue;
    }
    interrupted = false;
    if (const auto said = conversation.say(line); !said) report(said.error());
  }
  return 0;
}

}  // namespace

int run_chat(const ChatOptions& options) {
  std::string prompt = options.prompt;
  const bool piped = ::isatty(STDIN_FILENO) == 0;
  if (prompt.empty() && piped) {
    constexpr size_t kMaxPipedBytes = size_t{16} << 20;
    char buffer[65536];
    while (std::cin.read(buffer, sizeof buffer) || std::cin.gcount() > 0) {
      prompt.append(buffer, static_cast<size_t>(std::cin.gcount()));
      if (prompt.size() > kMaxPipedBytes)
        return report(
            Status{.code = Code::invalid_argument, .message = "standard input is over the limit of 16 MiB"});
    }
    while (!prompt.empty() && (prompt.back() == '\n' || prompt.back() == '\r'))
      prompt.pop_back();  // echo's, not the person's
    if (prompt.empty())
      return report(Status{.code = Code::invalid_argument, .message = "no prompt: standard input is empty"});
  }
  auto conversation = Conversation::create(options);
  if (!conversation) return report(conversation.error());
  catch_interrupts();  // not before: packing a model takes long, and goes on where Ctrl-C stopped it
  if (!prompt.empty()) {
    const auto said = (*conversation)->say(prompt);
    if (!said) return report(said.error());
    return interrupted ? 128 + SIGINT : 0;  // a script must not take what came for the whole
  }
  return converse(**conversation, options.model.model);
}

}  // namespace millrace::apps
