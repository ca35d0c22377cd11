// The dispatcher against groups with a fake engine: in this process (destroyed abruptly) and in processes of
// their own that are killed. Every stream must equal an undisturbed run, token for token and byte for byte.
#include "gateway/dispatcher.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <mutex>

#include "cluster/testing/fixture.h"

namespace millrace::gateway {
namespace {

using namespace cluster::testing;

class DispatcherTest : public ::testing::Test {
 protected:
  void serve(uint32_t group, FakeEngine::Script script = {}, engine::EngineOptions engine = small_engine()) {
    if (servers_.size() <= group) servers_.resize(group + 1);
    servers_[group].reset();
    servers_[group] = serve_fake(address(group), group, std::move(script), engine);
  }
  void kill(uint32_t group) { servers_[group].reset(); }
  std::string address(uint32_t group) const { return folder_.file("g" + std::to_string(group)); }
  void connect(int groups, DispatcherOptions options = {}) {
    for (int i = 0; i < groups; ++i)
      options.groups.push_back({GroupId(static_cast<uint32_t>(i)), address(static_cast<uint32_t>(i))});
    auto made = Dispatcher::create(options);
    ASSERT_TRUE(made) << made.error().message;
    dispatcher_ = std::move(*made);
    ASSERT_TRUE(eventually([&] {
      size_t up = 0;
      for (const GroupStatus& status : dispatcher_->groups()) up += status.connected ? 1 : 0;
      size_t serving = 0;
      for (const auto& server : servers_) serving += server ? 1 : 0;
      return up == serving;
    }));
  }
  // A stream that gathers its events; `request.id` is only a label here.
  struct Stream {
    engine::GenerateRequest request;
    std::shared_ptr<Collector> got = std::make_shared<Collector>();
    Expected<RequestId> id = fail(Code::unknown, "not started");
  };
  Stream start(uint64_t seed, int64_t max_tokens, const std::string& prompt = "a prompt") {
    Stream stream{.request = make_request(seed, max_tokens, prompt)};
    stream.id = dispatcher_->start(stream.request,
                                   [got = stream.got](engine::GenerateEvent e) { got->add(std::move(e)); });
    return stream;
  }
  static void expect_undisturbed(const Stream& stream, size_t padding = 0) {
    ASSERT_TRUE(stream.got->wait_finish(60));
    EXPECT_EQ(stream.got->error().message, "");
    const auto [tokens, text] = FakeEngine::expected(stream.request, padding);
    EXPECT_EQ(stream.got->tokens(), tokens);
    EXPECT_EQ(stream.got->text(), text);
    EXPECT_EQ(stream.got->prompts(), 1);
  }

  TemporaryFolder folder_;
  std::vector<std::unique_ptr<cluster::GroupServer>> servers_;
  std::unique_ptr<Dispatcher> dispatcher_;  // destroyed before the servers
};

TEST_F(DispatcherTest, StreamsFromTwoGroups) {
  serve(0);
  serve(1);
  connect(2);
  EXPECT_TRUE(dispatcher_->ready());
  std::vector<Stream> streams;
  for (uint64_t seed = 1; seed <= 16; ++seed)
    streams.push_back(start(seed, 50, "prompt " + std::to_string(seed)));
  for (const Stream& stream : streams) expect_undisturbed(stream);
  EXPECT_GT(dispatcher_->groups()[0].load.generated_tokens, 100u);  // both worked
  EXPECT_GT(dispatcher_->groups()[1].load.generated_tokens, 100u);
  EXPECT_TRUE(eventually([&] { return dispatcher_->stats().live == 0; }));
  EXPECT_EQ(dispatcher_->stats().finished, 16u);
}

TEST_F(DispatcherTest, ALostGroupsStreamsGoOnElsewhere) {
  serve(0);
  serve(1);
  connect(2);
  std::vector<Stream> streams;
  for (uint64_t seed = 1; seed <= 12; ++seed)
    streams.push_back(start(seed, 400, "prompt " + std::to_string(seed)));
  for (const Stream& stream : streams) ASSERT_TRUE(stream.got->wait_tokens(20));
  kill(0);
  for (const Stream& stream : streams) expect_undisturbed(stream);
  EXPECT_GT(dispatcher_->stats().resumes, 0u);
  EXPECT_FALSE(dispatcher_->groups()[0].connected);
  EXPECT_TRUE(dispatcher_->ready());
}

TEST_F(DispatcherTest, StreamsWaitForTheOnlyGroup) {
  serve(0);
  connect(1);
  std::vector<Stream> streams;
  for (uint64_t seed = 1; seed <= 6; ++seed) streams.push_back(start(seed, 300));
  for (int round = 0; round < 3; ++round) {
    for (const Stream& stream : streams)
      ASSERT_TRUE(stream.got->wait_tokens(static_cast<size_t>(20 * (round + 1))));
    kill(0);
    EXPECT_TRUE(eventually([&] { return !dispatcher_->ready(); }));
    streams.push_back(start(100 + static_cast<uint64_t>(round), 300));  // accepted while it is down
    ASSERT_TRUE(streams.back().id) << streams.back().id.error().message;
    serve(0);
  }
  for (const Stream& stream : streams) expect_undisturbed(stream);
  EXPECT_EQ(dispatcher_->groups()[0].restarts, 3u);
}

// What is resumed is the request that was asked for, whole, with the tokens that were said.
TEST_F(DispatcherTest, AResumedRequestIsTheSameRequest) {
  std::mutex mutex;
  std::vector<engine::GenerateRequest> seen;
  FakeEngine::Script script;
  script.on_submit = [&](const engine::GenerateRequest& request) {
    const std::lock_guard lock(mutex);
    seen.push_back(request);
  };
  serve(0, script);
  connect(1);
  Stream stream{.request = make_request(1, 300)};
  stream.request.stop.strings = {"never said"};
  stream.request.reasoning = {"<think>", "</think>", engine::ReasoningFormat::Start::inside};
  stream.id = dispatcher_->start(stream.request,
                                 [got = stream.got](engine::GenerateEvent e) { got->add(std::move(e)); });
  ASSERT_TRUE(stream.got->wait_tokens(20));
  kill(0);
  serve(0, script);
  expect_undisturbed(stream);
  const std::lock_guard lock(mutex);
  ASSERT_EQ(seen.size(), 2u);
  EXPECT_EQ(seen[1].reasoning, stream.request.reasoning);
  EXPECT_EQ(seen[1].stop.strings, stream.request.stop.strings);
  EXPECT_GE(seen[1].resumed.size(), 20u);
}

TEST_F(DispatcherTest, CancelIsSilentAndFreesTheGroup) {
  serve(0);
  connect(1);
  Stream stream = start(1, 1000000);
  ASSERT_TRUE(stream.got->wait_tokens(10));
  dispatcher_->cancel(*stream.id);
  const int events = stream.got->events();
  EXPECT_TRUE(eventually([&] { return servers_[0]->live_requests() == 0; }));
  EXPECT_EQ(stream.got->events(), events);
  EXPECT_EQ(stream.got->finish(), engine::FinishReason::none);
  EXPECT_EQ(dispatcher_->stats().live, 0u);
  dispatcher_->cancel(*stream.id);  // again, and unknown ones: nothing
  dispatcher_->cancel(RequestId(999));
}

TEST_F(DispatcherTest, ASinkMayCancelItsOwnRequest) {
  serve(0);
  connect(1);
  std::atomic<int> events{0};
  const auto id = dispatcher_->start(make_request(1, 1000000), [&](engine::GenerateEvent event) {
    if (++events == 5) dispatcher_->cancel(event.id);
  });
  ASSERT_TRUE(id);
  EXPECT_TRUE(
      eventually([&] { return servers_[0]->live_requests() == 0 && dispatcher_->stats().cancelled == 1; }));
  EXPECT_EQ(events.load(), 5);
}

// Who cancels may destroy what the sink uses, whatever the group says at that moment.
TEST_F(DispatcherTest, CancelWaitsForTheLastEvent) {
  serve(0);
  connect(1);
  std::atomic<bool> inside{false}, left{false};
  const auto id = dispatcher_->start(make_request(1, 5), [&](engine::GenerateEvent event) {
    if (event.finish == engine::FinishReason::none) return;
    inside = true;
    std::this_thread::sleep_for(std::chrono::milliseconds(200));
    left = true;
  });
  ASSERT_TRUE(id);
  ASSERT_TRUE(eventually([&] { return inside.load(); }));
  dispatcher_->cancel(*id);
  EXPECT_TRUE(left);
  EXPECT_TRUE(eventually([&] { return dispatcher_->stats().live == 0; }));
}

// One answer that no message can hold is its own request's affair: the gateway has left nothing unread.
TEST_F(DispatcherTest, AnAnswerThatIsTooLargeEndsItsRequestAlone) {
  FakeEngine::Script script;
  serve(0, script);
  connect(1);
  const Stream bad = start(1, 1000000);
  ASSERT_TRUE(bad.got->wait_tokens(5));
  *script.burst_bytes = cluster::kMaxMessageBytes;
  ASSERT_TRUE(bad.got->wait_finish());
  EXPECT_EQ(bad.got->error().code, Code::invalid_argument) << bad.got->error().message;
  EXPECT_TRUE(eventually([&] { return servers_[0]->live_requests() == 0; })) << "nobody reads it any more";
  expect_undisturbed(start(2, 20));
  EXPECT_EQ(dispatcher_->stats().resumes, 0u);
}

TEST_F(DispatcherTest, CancelWhileHomeless) {
  serve(0);
  connect(1);
  Stream stream = start(1, 1000000);
  ASSERT_TRUE(stream.got->wait_tokens(5));
  kill(0);
  ASSERT_TRUE(eventually([&] { return dispatcher_->stats().homeless == 1; }));
  dispatcher_->cancel(*stream.id);
  EXPECT_EQ(dispatcher_->stats().live, 0u);
  serve(0);
  ASSERT_TRUE(eventually([&] { return dispatcher_->ready(); }));
  expect_undisturbed(start(2, 20));
  EXPECT_EQ(servers_[0]->live_requests(), 0u);
}

TEST_F(DispatcherTest, NoGroupIsUnavailable) {
  servers_.clear();
  connect(1);
  EXPECT_FALSE(dispatcher_->ready());
  const Stream stream = start(1, 10);
  ASSERT_FALSE(stream.id);
  EXPECT_EQ(stream.id.error().code, Code::unavailable);
  EXPECT_GT(stream.id.error().retry_after_s, 0);
}

TEST_F(DispatcherTest, DrainingRefusesNewAndFinishesOld) {
  serve(0);
  connect(1);
  const Stream old = start(1, 200);
  dispatcher_->set_draining(true);
  EXPECT_FALSE(dispatcher_->ready());
  const Stream refused = start(2, 10);
  ASSERT_FALSE(refused.id);
  EXPECT_EQ(refused.id.error().code, Code::unavailable);
  expect_undisturbed(old);
}

TEST_F(DispatcherTest, OverloadIsRefusedWithAComputedTime) {
  FakeEngine::Script script;
  script.step_time = std::chrono::milliseconds(5);
  serve(0, script);
  DispatcherOptions options;
  options.max_queued = 12;
  connect(1, options);
  std::vector<Stream> streams;
  double last_s = 0;
  int refused = 0;
  for (uint64_t seed = 1; seed <= 40; ++seed) {
    Stream stream = start(seed, 100);
    if (stream.id) {
      streams.push_back(std::move(stream));
      continue;
    }
    ++refused;
    EXPECT_EQ(stream.id.error().code, Code::resource_exhausted);
    EXPECT_GE(stream.id.error().retry_after_s,
              std::max(1.0, last_s));  // each the next place, not all the same one
    EXPECT_LE(stream.id.error().retry_after_s, 60);
    last_s = stream.id.error().retry_after_s - 0.5;  // time passes between refusals
  }
  EXPECT_EQ(streams.size(), 8u + 12u);
  EXPECT_EQ(refused, 20);
  for (const Stream& stream : streams) expect_undisturbed(stream);
  EXPECT_TRUE(start(99, 5).id);
}

// Tokens that a group made before we heard of it, or that we learn of a second time, are no rate: Retry-After
// would promise everybody a place at once.
TEST_F(DispatcherTest, OnlyWhatIsMadeNowCountsAsRate) {
  serve(0);
  connect(1);
  std::vector<Stream> streams;
  for (uint64_t seed = 1; seed <= 8; ++seed) streams.push_back(start(seed, 500));
  for (const Stream& stream : streams) expect_undisturbed(stream);
  EXPECT_TRUE(eventually([&] { return dispatcher_->stats().tokens_per_s > 10; }));
  dispatcher_.reset();
  connect(1);  // as after the gateway's death: the group lives on, with its totals
  ASSERT_TRUE(eventually([&] { return dispatcher_->groups()[0].load.generated_tokens == 4000; }));
  for (int i = 0; i < 30; ++i) {
    EXPECT_EQ(dispatcher_->stats().tokens_per_s, 0);
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
}

// Refused requests free a place at once and say nothing of how long replies are.
TEST_F(DispatcherTest, RefusalsByAGroupShortenNoPromise) {
  serve(0);
  DispatcherOptions options;
  options.max_queued = 0;
  connect(1, options);
  std::vector<Stream> streams;
  for (uint64_t seed = 1; seed <= 8; ++seed) streams.push_back(start(seed, 500));
  for (const Stream& stream : streams) expect_undisturbed(stream);
  EXPECT_TRUE(eventually([&] { return dispatcher_->stats().tokens_per_s > 10; }));
  for (uint64_t seed = 1; seed <= 200; ++seed) {
    const Stream refused = start(seed, 0);  // the engine's error
    ASSERT_TRUE(refused.got->wait_finish());
    ASSERT_EQ(refused.got->error().code, Code::invalid_argument);
    ASSERT_TRUE(eventually([&] { return dispatcher_->stats().live == 0; }));
  }
  for (uint64_t seed = 1; seed <= 8; ++seed) ASSERT_TRUE(start(seed, 1000000).id);
  double last_s = 0;
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    const Stream refused = start(seed, 5);
    ASSERT_FALSE(refused.id);
    last_s = refused.id.error().retry_after_s;
  }
  EXPECT_GT(last_s, 2);  // the twentieth in line for replies of hundreds of tokens
}

// The group cuts a gateway off that leaves too much unread. It lives on, and so do its totals.
TEST_F(DispatcherTest, ALostConnectionTakesNothingFromAGroupsTotals) {
  FakeEngine::Script script;
  script.step_time = std::chrono::milliseconds(10);
  servers_.resize(1);
  servers_[0] = serve_fake(address(0), 0, script, small_engine(), 1 * kMiB);
  connect(1);
  std::vector<Stream> streams;
  for (uint64_t seed = 1; seed <= 4; ++seed) streams.push_back(start(seed, 100));
  for (const Stream& stream : streams) ASSERT_TRUE(stream.got->wait_tokens(10));
  const uint64_t boot_id = dispatcher_->groups()[0].boot_id;
  *script.burst_bytes = 2 * kMiB;
  uint64_t most = 10;
  EXPECT_TRUE(eventually([&] {
    const uint64_t now = dispatcher_->groups()[0].load.generated_tokens;
    EXPECT_GE(now, most);
    most = std::max(most, now);
    return std::all_of(streams.begin(), streams.end(), [](const Stream& stream) {
      return stream.got->finish() != engine::FinishReason::none;
    });
  }));
  for (const Stream& stream : streams) expect_undisturbed(stream);
  EXPECT_GE(dispatcher_->stats().resumes, 4u);
  EXPECT_EQ(dispatcher_->groups()[0].boot_id, boot_id);
}

TEST_F(DispatcherTest, JournalBytesAreBounded) {
  serve(0);
  DispatcherOptions options;
  options.max_journal_bytes = 1 * kMiB;
  connect(1, options);
  const Stream big = start(1, 100000, std::string(900 * 1024, 'x'));
  ASSERT_TRUE(big.id);
  const Stream refused = start(2, 100000, std::string(900 * 1024, 'y'));
  ASSERT_FALSE(refused.id);
  EXPECT_EQ(refused.id.error().code, Code::resource_exhausted);
  dispatcher_->cancel(*big.id);
  const Stream now_fits = start(3, 10, std::string(900 * 1024, 'y'));
  EXPECT_TRUE(now_fits.id);
  expect_undisturbed(now_fits);
}

TEST_F(DispatcherTest, AStalledGroupIsNotReadyAndGetsNothingNew) {
  FakeEngine::Script script;
  serve(0, script);
  serve(1);
  DispatcherOptions options;
  options.step_stalled_s = 1;
  connect(2, options);
  *script.frozen = true;
  std::vector<Stream> streams;
  for (uint64_t seed = 1; seed <= 4; ++seed) streams.push_back(start(seed, 30, "p" + std::to_string(seed)));
  ASSERT_TRUE(eventually([&] { return !dispatcher_->groups()[0].progressing; }));
  EXPECT_TRUE(dispatcher_->groups()[0].connected);    // its heartbeats come: that alone is not health
  EXPECT_TRUE(dispatcher_->groups()[1].progressing);  // idle is healthy
  for (uint64_t seed = 10; seed <= 20; ++seed)
    expect_undisturbed(start(seed, 20, "q" + std::to_string(seed)));
  *script.frozen = false;
  for (const Stream& stream : streams) expect_undisturbed(stream);
  EXPECT_TRUE(eventually([&] { return dispatcher_->groups()[0].progressing; }));
}

TEST_F(DispatcherTest, SharedPrefixesGoToTheSameGroup) {
  serve(0);
  serve(1);
  connect(2);
  const std::string prefix(8000, 'p');  // 2,000 tokens: worth seven live requests
  expect_undisturbed(start(1, 5, prefix + "first"));
  const auto generated = [&] {
    return std::pair{dispatcher_->groups()[0].load.generated_tokens,
                     dispatcher_->groups()[1].load.generated_tokens};
  };
  ASSERT_TRUE(eventually([&] { return generated().first + generated().second == 5; }));
  const bool on_first = generated().first == 5;
  for (uint64_t i = 0; i < 10; ++i) expect_undisturbed(start(2 + i, 5, prefix + "next " + std::to_string(i)));
  ASSERT_TRUE(eventually([&] { return generated().first + generated().second == 55; }));
  EXPECT_EQ(on_first ? generated().first : generated().second, 55u);
}

// A request that ends every group it comes to must not do so for ever, and must not take its neighbours with
// it.
TEST_F(DispatcherTest, APoisonousRequestIsGivenUp) {
  std::atomic<bool> poisoned{false};
  FakeEngine::Script script;
  script.on_submit = [&](const engine::GenerateRequest& request) {
    if (request.sampling.seed == 666) poisoned = true;
  };
  serve(0, script);
  DispatcherOptions options;
  options.max_fruitless_resumes = 3;
  connect(1, options);
  const Stream bad = start(666, 0x7fffffff);  // frozen below before it gets a token
  int kills = 0;
  while (bad.got->finish() == engine::FinishReason::none && kills < 10) {
    if (poisoned.exchange(false)) {
      kill(0);
      ++kills;
      FakeEngine::Script next = script;
      next.step_time = std::chrono::milliseconds(20);
      serve(0, next);
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  ASSERT_TRUE(bad.got->wait_finish(1));
  EXPECT_EQ(bad.got->error().code, Code::unavailable);
  EXPECT_LE(kills, 8);
  // The group is whole again for others. (One that shared the group with the poison and got no token between
  // two deaths counts those deaths as its own: the dispatcher cannot tell them apart.)
  serve(0);
  expect_undisturbed(start(1, 600));
}

TEST_F(DispatcherTest, WaitingForAGroupHasAnEnd) {
  serve(0);
  DispatcherOptions options;
  options.max_homeless_s = 0.3;
  connect(1, options);
  const Stream stream = start(1, 1000000);
  ASSERT_TRUE(stream.got->wait_tokens(3));
  kill(0);
  ASSERT_TRUE(stream.got->wait_finish(10));
  EXPECT_EQ(stream.got->error().code, Code::unavailable);
  EXPECT_TRUE(eventually([&] { return dispatcher_->stats().live == 0; }));
}

TEST_F(DispatcherTest, DestructionEndsLiveStreams) {
  serve(0);
  connect(1);
  const Stream stream = start(1, 1000000);
  ASSERT_TRUE(stream.got->wait_tokens(3));
  dispatcher_.reset();
  EXPECT_EQ(stream.got->finish(), engine::FinishReason::error);
  EXPECT_EQ(stream.got->error().code, Code::unavailable);
}

}  // namespace
}  // namespace millrace::gateway
