// What tests of sessions and of the dispatcher share: a private folder, a group served by a FakeEngine, and a
// collector of a request's events.
#pragma once
#include <gtest/gtest.h>
#include <unistd.h>

#include <condition_variable>
#include <cstdlib>
#include <filesystem>
#include <mutex>
#include <string>

#include "base/clock.h"
#include "cluster/group_server.h"
#include "cluster/testing/fake_engine.h"

namespace millrace::cluster::testing {

class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string name = (std::filesystem::temp_directory_path() / "millrace-test-XXXXXX").string();
    EXPECT_NE(::mkdtemp(name.data()), nullptr);
    path_ = name;
  }
  ~TemporaryFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  std::string file(const std::string& name) const { return path_ / name; }

 private:
  std::filesystem::path path_;
};

inline engine::EngineOptions small_engine() {
  engine::EngineOptions options;
  options.max_num_seqs = 8;
  options.max_waiting = 64;
  return options;
}

inline std::unique_ptr<GroupServer> serve_fake(
    const std::string& address, uint32_t group = 0, FakeEngine::Script script = {},
    engine::EngineOptions engine_options = small_engine(),
    size_t max_queued_bytes = GroupServerOptions{}.max_queued_bytes, uint64_t fingerprint = 42) {
  auto server =
      GroupServer::start({.address = address,
                          .id = GroupId(group),
                          .model_fingerprint = fingerprint,
                          .max_queued_bytes = max_queued_bytes},
                         [&](engine::EventSink sink) -> Expected<std::unique_ptr<engine::Engine>> {
                           return std::make_unique<FakeEngine>(engine_options, script, std::move(sink));
                         });
  EXPECT_TRUE(server) << (server ? "" : server.error().message);
  return server ? std::move(*server) : nullptr;
}

inline engine::GenerateRequest make_request(uint64_t seed, int64_t max_tokens,
                                            const std::string& prompt = "a prompt") {
  engine::GenerateRequest request;
  request.id = RequestId(seed);
  request.prompt.text = {{prompt, false}};
  request.sampling.seed = seed;
  request.stop.max_tokens = max_tokens;
  request.stop.ignore_eos = true;
  return request;
}

// Gathers what a sink is given, and waits for it.
class Collector {
 public:
  void add(engine::GenerateEvent event) {
    const std::lock_guard lock(mutex_);
    EXPECT_EQ(finish_, engine::FinishReason::none) << "an event after the last one";
    if (event.has_prompt) ++prompts_;
    for (const auto& token : event.tokens) tokens_.push_back(token.token);
    text_ += event.text;
    finish_ = event.finish;
    error_ = event.error;
    ++events_;
    changed_.notify_all();
  }
  bool wait_finish(double timeout_s = 30) {
    return wait([&] { return finish_ != engine::FinishReason::none; }, timeout_s);
  }
  bool wait_tokens(size_t count, double timeout_s = 30) {
    return wait([&] { return tokens_.size() >= count; }, timeout_s);
  }
  std::vector<TokenId> tokens() const { return locked(tokens_); }
  std::string text() const { return locked(text_); }
  engine::FinishReason finish() const { return locked(finish_); }
  Status error() const { return locked(error_); }
  int prompts() const { return locked(prompts_); }
  int events() const { return locked(events_); }

 private:
  template <class Predicate>
  bool wait(Predicate predicate, double timeout_s) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, std::chrono::duration<double>(timeout_s), predicate);
  }
  template <class T>
  T locked(const T& value) const {
    const std::lock_guard lock(mutex_);
    return value;
  }
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<TokenId> tokens_;
  std::string text_;
  engine::FinishReason finish_ = engine::FinishReason::none;
  Status error_;
  int prompts_ = 0, events_ = 0;
};

template <class Predicate>
bool eventually(Predicate predicate, double timeout_s = 20) {
  const double deadline_s = monotonic_s() + timeout_s;
  while (!predicate()) {
    if (monotonic_s() > deadline_s) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  return true;
}

}  // namespace millrace::cluster::testing
