// Client and server over real unix sockets, with a fake engine behind.
#include <gtest/gtest.h>

#include <map>

#include "cluster/group_client.h"
#include "cluster/testing/fixture.h"

namespace millrace::cluster::testing {
namespace {

// A client that files events by request id.
class Gateway {
 public:
  explicit Gateway(const std::string& address, uint64_t fingerprint = 0) {
    auto client = GroupClient::start(
        {.address = address, .model_fingerprint = fingerprint},
        {.up =
             [this](const GroupInfo& info) {
               const std::lock_guard lock(mutex_);
               info_ = info;
               ++ups_;
             },
         .events =
             [this](std::vector<engine::GenerateEvent> events, const engine::GroupLoad& load) {
               if (hold) std::this_thread::sleep_for(std::chrono::milliseconds(50));
               for (auto& event : events) of(event.id.value).add(std::move(event));
               const std::lock_guard lock(mutex_);
               load_ = load;
               ++messages_;
             },
         .down =
             [this](const Status&) {
               const std::lock_guard lock(mutex_);
               ++downs_;
             }});
    EXPECT_TRUE(client) << client.error().message;
    client_ = std::move(*client);
  }
  Collector& of(uint64_t id) {
    const std::lock_guard lock(mutex_);
    return collectors_[id];
  }
  bool wait_up(int times = 1) {
    return eventually([&] { return ups() >= times; });
  }
  int ups() const { return locked(ups_); }
  int downs() const { return locked(downs_); }
  int messages() const { return locked(messages_); }
  GroupInfo info() const { return locked(info_); }
  engine::GroupLoad load() const { return locked(load_); }
  GroupClient& client() { return *client_; }
  std::atomic<bool> hold{false};

 private:
  template <class T>
  T locked(const T& value) const {
    const std::lock_guard lock(mutex_);
    return value;
  }
  mutable std::mutex mutex_;
  std::map<uint64_t, Collector> collectors_;
  GroupInfo info_;
  engine::GroupLoad load_;
  int ups_ = 0, downs_ = 0, messages_ = 0;
  std::unique_ptr<GroupClient> client_;  // last: its callbacks use the above
};

TEST(GroupSession, HelloTellsTheGroup) {
  TemporaryFolder folder;
  const auto server = serve_fake(folder.file("g"), 3);
  Gateway gateway(folder.file("g"), 42);
  ASSERT_TRUE(gateway.wait_up());
  const GroupInfo info = gateway.info();
  EXPECT_EQ(info.id, GroupId(3));
  EXPECT_EQ(info.model_fingerprint, 42u);
  EXPECT_EQ(info.max_num_seqs, 8);
  EXPECT_EQ(info.max_waiting, 64);
  EXPECT_EQ(info.pid, ::getpid());
  EXPECT_NE(info.boot_id, 0u);
}

TEST(GroupSession, StreamsAreWhatTheEngineSays) {
  TemporaryFolder folder;
  const auto server = serve_fake(folder.file("g"));
  Gateway gateway(folder.file("g"));
  ASSERT_TRUE(gateway.wait_up());
  for (uint64_t seed = 1; seed <= 20; ++seed) ASSERT_TRUE(gateway.client().submit(make_request(seed, 40)));
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    ASSERT_TRUE(gateway.of(seed).wait_finish());
    const auto [tokens, text] = FakeEngine::expected(make_request(seed, 40));
    EXPECT_EQ(gateway.of(seed).tokens(), tokens);
    EXPECT_EQ(gateway.of(seed).text(), text);
    EXPECT_EQ(gateway.of(seed).finish(), engine::FinishReason::length);
    EXPECT_EQ(gateway.of(seed).prompts(), 1);
  }
  EXPECT_EQ(server->live_requests(), 0u);
}

TEST(GroupSession, AnEngineRefusalIsAnEvent) {
  TemporaryFolder folder;
  const auto server = serve_fake(folder.file("g"));
  Gateway gateway(folder.file("g"));
  ASSERT_TRUE(gateway.wait_up());
  ASSERT_TRUE(gateway.client().submit(make_request(1, 0)));
  ASSERT_TRUE(gateway.of(1).wait_finish());
  EXPECT_EQ(gateway.of(1).error().code, Code::invalid_argument);
  EXPECT_EQ(gateway.of(1).error().param, "max_tokens");
}

TEST(GroupSession, CancelEndsOneRequest) {
  TemporaryFolder folder;
  const auto server = serve_fake(folder.file("g"));
  Gateway gateway(folder.file("g"));
  ASSERT_TRUE(gateway.wait_up());
  gateway.client().submit(make_request(1, 1000000));
  gateway.client().submit(make_request(2, 100));
  ASSERT_TRUE(gateway.of(1).wait_tokens(5));
  gateway.client().cancel(RequestId(1));
  ASSERT_TRUE(gateway.of(1).wait_finish());
  EXPECT_EQ(gateway.of(1).finish(), engine::FinishReason::cancelled);
  ASSERT_TRUE(gateway.of(2).wait_finish());
  EXPECT_EQ(gateway.of(2).tokens(), FakeEngine::expected(make_request(2, 100)).first);
}

TEST(GroupSession, HeartbeatsWhenIdle) {
  TemporaryFolder folder;
  const auto server = serve_fake(folder.file("g"));
  Gateway gateway(folder.file("g"));
  ASSERT_TRUE(gateway.wait_up());
  const int before = gateway.messages();
  const double start_s = monotonic_s();
  ASSERT_TRUE(eventually([&] { return gateway.messages() >= before + 4; }));
  EXPECT_LT(monotonic_s() - start_s, 4 * 0.25 + 1.0);  // 250 ms each, and a second for a busy machine
}

TEST(GroupSession, RequestsOfALostGatewayAreCancelled) {
  TemporaryFolder folder;
  const auto server = serve_fake(folder.file("g"));
  Gateway other(folder.file("g"));
  ASSERT_TRUE(other.wait_up());
  other.client().submit(make_request(1, 300));  // the same id in another session is another request
  {
    Gateway gateway(folder.file("g"));
    ASSERT_TRUE(gateway.wait_up());
    gateway.client().submit(make_request(1, 1000000));
    ASSERT_TRUE(gateway.of(1).wait_tokens(3));
    EXPECT_EQ(server->live_requests(), 2u);
  }
  EXPECT_TRUE(eventually([&] { return server->live_requests() <= 1; }));
  ASSERT_TRUE(other.of(1).wait_finish());
  EXPECT_EQ(other.of(1).tokens(), FakeEngine::expected(make_request(1, 300)).first);
  EXPECT_TRUE(eventually([&] { return other.load().running == 0; }));  // the engine's pages are free
}

TEST(GroupSession, ReconnectsAfterTheGroupIsBack) {
  TemporaryFolder folder;
  auto server = serve_fake(folder.file("g"));
  Gateway gateway(folder.file("g"));
  ASSERT_TRUE(gateway.wait_up());
  const uint64_t first_boot = gateway.info().boot_id;
  server.reset();
  ASSERT_TRUE(eventually([&] { return gateway.downs() == 1; }));
  EXPECT_FALSE(gateway.client().connected());
  EXPECT_FALSE(gateway.client().submit(make_request(1, 10)));
  server = serve_fake(folder.file("g"));
  ASSERT_TRUE(gateway.wait_up(2));
  EXPECT_NE(gateway.info().boot_id, first_boot);
  ASSERT_TRUE(gateway.client().submit(make_request(2, 10)));
  EXPECT_TRUE(gateway.of(2).wait_finish());
}

TEST(GroupSession, AnotherModelIsRefused) {
  TemporaryFolder folder;
  const auto server = serve_fake(folder.file("g"));
  Gateway gateway(folder.file("g"), 43);
  ASSERT_TRUE(eventually([&] { return gateway.client().last_error().code == Code::failed_precondition; }));
  EXPECT_FALSE(gateway.client().connected());
  EXPECT_EQ(gateway.ups(), 0);
}

// A gateway that reads 20 times a second is no match for an engine that makes megabytes a step: it must be
// cut off before its queue grows far beyond the limit, and the other gateway must not notice.
TEST(GroupSession, ASlowGatewayIsCutOff) {
  TemporaryFolder folder;
  FakeEngine::Script script;
  script.text_bytes_per_token = 512 * 1024;
  const auto server = serve_fake(folder.file("g"), 0, script, small_engine(), 4 * kMiB);
  Gateway slow(folder.file("g"));
  ASSERT_TRUE(slow.wait_up());
  slow.hold = true;
  for (uint64_t seed = 1; seed <= 6; ++seed) slow.client().submit(make_request(seed, 100000));
  ASSERT_TRUE(eventually([&] { return slow.downs() >= 1; }));
  slow.hold = false;
  EXPECT_TRUE(eventually([&] { return server->live_requests() == 0; }));
}

TEST(GroupSession, TheNinthGatewayIsRefused) {
  TemporaryFolder folder;
  const auto server = serve_fake(folder.file("g"));
  std::vector<std::unique_ptr<Gateway>> gateways;
  for (int i = 0; i < 8; ++i) {
    gateways.push_back(std::make_unique<Gateway>(folder.file("g")));
    ASSERT_TRUE(gateways.back()->wait_up());
  }
  Gateway ninth(folder.file("g"));
  ASSERT_TRUE(eventually([&] {
    return ninth.client().last_error().message.find("8 gateways") != std::string::npos;
  })) << ninth.client().last_error().message;
  gateways.pop_back();
  EXPECT_TRUE(ninth.wait_up());
}

TEST(GroupSession, BadAddressesAreExplained) {
  EXPECT_FALSE(GroupClient::start({.address = "nonsense"}, {}));
  EXPECT_FALSE(GroupClient::start({.address = "/" + std::string(200, 'x')}, {}));
  EXPECT_FALSE(GroupClient::start({.address = "host:99999"}, {}));
}

TEST(GroupSession, WorksOverTcp) {
  std::unique_ptr<GroupServer> server;
  int port = 41000 + ::getpid() % 9000;
  for (int i = 0; i < 20 && !server; ++i, ++port) {
    auto started = GroupServer::start(
        {.address = "127.0.0.1:" + std::to_string(port)},
        [](engine::EventSink sink) -> Expected<std::unique_ptr<engine::Engine>> {
          return std::make_unique<FakeEngine>(small_engine(), FakeEngine::Script{}, std::move(sink));
        });
    if (started) server = std::move(*started);
  }
  ASSERT_TRUE(server);
  Gateway gateway("127.0.0.1:" + std::to_string(port - 1));
  ASSERT_TRUE(gateway.wait_up());
  gateway.client().submit(make_request(5, 30));
  ASSERT_TRUE(gateway.of(5).wait_finish());
  EXPECT_EQ(gateway.of(5).tokens(), FakeEngine::expected(make_request(5, 30)).first);
}

}  // namespace
}  // namespace millrace::cluster::testing
