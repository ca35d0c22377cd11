// Groups in processes of their own, under a real supervisor, killed again and again (SIGKILL) or stopped
// (SIGSTOP) under live streams: every stream must equal an undisturbed run. The test binary plays all the
// processes.
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>

#include "base/file.h"
#include "base/log.h"
#include "base/random.h"
#include "cluster/supervisor.h"
#include "cluster/testing/fixture.h"
#include "gateway/dispatcher.h"

namespace millrace::gateway {
namespace {

using namespace cluster::testing;

constexpr int kGroups = 2;

// The child: "group SOCKET PAGE INDEX".
int run_group(char** arguments) {
  auto page = cluster::StatusPage::open(arguments[2]);
  if (!page) return cluster::kExitConfiguration;
  auto server = cluster::GroupServer::start(
      {.address = arguments[1],
       .id = GroupId(static_cast<uint32_t>(std::atoi(arguments[3]))),
       .model_fingerprint = 42,
       .status = *page},
      [](engine::EventSink sink) -> Expected<std::unique_ptr<engine::Engine>> {
        return std::make_unique<FakeEngine>(small_engine(), FakeEngine::Script{}, std::move(sink));
      });
  if (!server) return 1;
  while (true) ::pause();
}

class GroupKillTest : public ::testing::Test {
 protected:
  void start(double silent_after_s) {
    cluster::SupervisorOptions supervision;
    supervision.backoff_initial_s = 0.02;
    supervision.backoff_cap_s = 0.1;
    supervision.silent_after_s = silent_after_s;
    supervision.tick_s = 0.02;
    std::vector<cluster::ChildSpec> children;
    DispatcherOptions options;
    options.model_fingerprint = 42;
    for (int i = 0; i < kGroups; ++i) {
      const std::string index = std::to_string(i);
      pages_.push_back(*cluster::StatusPage::create(folder_.file("page" + index)));
      children.push_back({.name = "group " + index,
                          .arguments = {"/proc/self/exe", "group", folder_.file("g" + index),
                                        folder_.file("page" + index), index},
                          .status = pages_.back()});
      options.groups.push_back({GroupId(static_cast<uint32_t>(i)), folder_.file("g" + index)});
    }
    supervisor_pid_ = ::fork();  // before this process has threads
    if (supervisor_pid_ == 0) {
      set_log_level(LogLevel::off);
      auto supervisor = cluster::Supervisor::create(std::move(children), supervision);
      ::_exit((*supervisor)->run());
    }
    dispatcher_ = std::move(*Dispatcher::create(options));
    ASSERT_TRUE(eventually([&] {
      const auto groups = dispatcher_->groups();
      return std::all_of(groups.begin(), groups.end(),
                         [](const GroupStatus& group) { return group.connected; });
    }));
  }
  void TearDown() override {
    dispatcher_.reset();
    if (supervisor_pid_ <= 0) return;
    ::kill(supervisor_pid_, SIGTERM);
    int status = -1;
    ::waitpid(supervisor_pid_, &status, 0);
    EXPECT_TRUE(WIFEXITED(status)) << status;
  }
  // The group's process, from the kernel: children of the supervisor, found by their socket argument.
  int group_pid(int group) const {
    for (const auto& entry : std::filesystem::directory_iterator("/proc")) {
      const int pid = std::atoi(entry.path().filename().c_str());
      if (pid <= 0 || pid == supervisor_pid_) continue;
      const auto command = read_file(entry.path() / "cmdline", 4096);
      if (command && command->find(folder_.file("g" + std::to_string(group))) != std::string::npos)
        return pid;
    }
    return 0;
  }
  std::vector<std::pair<engine::GenerateRequest, std::shared_ptr<Collector>>> start_streams(int count,
                                                                                            int64_t tokens) {
    std::vector<std::pair<engine::GenerateRequest, std::shared_ptr<Collector>>> streams;
    for (int i = 0; i < count; ++i) {
      auto request = make_request(static_cast<uint64_t>(i + 1), tokens, "prompt " + std::to_string(i));
      auto got = std::make_shared<Collector>();
      EXPECT_TRUE(
          dispatcher_->start(request, [got](engine::GenerateEvent event) { got->add(std::move(event)); }));
      streams.emplace_back(std::move(request), std::move(got));
    }
    return streams;
  }
  static void expect_undisturbed(const engine::GenerateRequest& request, const Collector& got) {
    EXPECT_EQ(got.error().message, "");
    const auto [tokens, text] = FakeEngine::expected(request);
    EXPECT_EQ(got.tokens(), tokens);
    EXPECT_EQ(got.text(), text);
    EXPECT_EQ(got.prompts(), 1);
  }

  TemporaryFolder folder_;
  std::vector<std::shared_ptr<cluster::StatusPage>> pages_;
  pid_t supervisor_pid_ = -1;
  std::unique_ptr<Dispatcher> dispatcher_;
};

TEST_F(GroupKillTest, StreamsOutliveKills) {
  start(60);
  const auto streams = start_streams(16, 2500);
  int kills = 0;
  const double end_s = monotonic_s() + 5;
  std::vector<size_t> seen(streams.size());
  for (uint64_t i = 0; monotonic_s() < end_s || (kills < 4 && i < 100); ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(250));
    // A request that loses its group again and again without a new token is given up, as it should be: where
    // groups start slower than they are killed (under a sanitizer), wait for each stream to have moved.
    for (size_t s = 0; s < streams.size(); ++s) {
      const Collector& got = *streams[s].second;
      ASSERT_TRUE(eventually([&] {
        return got.finish() != engine::FinishReason::none || got.tokens().size() > seen[s];
      })) << "stream "
          << s << " stands still after " << kills << " kills";
      seen[s] = got.tokens().size();
    }
    const int pid = group_pid(static_cast<int>(uniform_at(7, i) * kGroups));
    if (pid > 0 && ::kill(pid, SIGKILL) == 0) ++kills;
  }
  for (const auto& [request, got] : streams) {
    ASSERT_TRUE(got->wait_finish(120));
    expect_undisturbed(request, *got);
  }
  EXPECT_GE(kills, 4);
  EXPECT_GE(dispatcher_->stats().resumes, 16u);
  uint64_t restarts = 0;
  for (const GroupStatus& group : dispatcher_->groups()) restarts += group.restarts;
  EXPECT_GE(restarts + 2, static_cast<uint64_t>(kills));  // the last ones may not be back yet
}

// A process that is stopped keeps its sockets open and answers nothing: only silence tells. The gateway moves
// its requests, the supervisor replaces it.
TEST_F(GroupKillTest, StreamsOutliveAFrozenGroup) {
  start(1);
  const auto streams = start_streams(8, 1500);
  for (const auto& [request, got] : streams) ASSERT_TRUE(got->wait_tokens(10));
  const int frozen = group_pid(0);
  ASSERT_GT(frozen, 0);
  ::kill(frozen, SIGSTOP);
  for (const auto& [request, got] : streams) {
    ASSERT_TRUE(got->wait_finish(120));
    expect_undisturbed(request, *got);
  }
  EXPECT_TRUE(eventually([&] { return pages_[0]->fields().restarts.load() == 1; }));
}

}  // namespace
}  // namespace millrace::gateway

int main(int argc, char** argv) {
  if (argc == 5 && std::strcmp(argv[1], "group") == 0) return millrace::gateway::run_group(argv + 1);
  ::testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
