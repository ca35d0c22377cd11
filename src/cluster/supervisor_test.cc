#include "cluster/supervisor.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fstream>
#include <iterator>
#include <thread>

#include "base/clock.h"
#include "cluster/launch.h"
#include "cluster/testing/fixture.h"

namespace millrace::cluster::testing {
namespace {

ChildSpec shell(std::string name, std::string script) {
  return {.name = std::move(name), .arguments = {"/bin/sh", "-c", std::move(script)}};
}

std::string content(const std::string& path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}
size_t lines(const std::string& path) {
  const std::string text = content(path);
  return static_cast<size_t>(std::count(text.begin(), text.end(), '\n'));
}

SupervisorOptions quick() {
  SupervisorOptions options;
  options.backoff_initial_s = 0.02;
  options.backoff_cap_s = 0.2;
  options.healthy_after_s = 60;
  options.wedged_after_s = 0.4;
  options.silent_after_s = 0.6;
  options.tick_s = 0.01;
  return options;
}

// run() on a thread of its own; stopped at the latest by the destructor.
class Running {
 public:
  Running(std::vector<ChildSpec> children, SupervisorOptions options) {
    auto made = Supervisor::create(std::move(children), options);
    EXPECT_TRUE(made);
    supervisor_ = std::move(*made);
    thread_ = std::thread([this] {
      status_ = supervisor_->run();
      done_ = true;
    });
  }
  ~Running() {
    if (!thread_.joinable()) return;
    supervisor_->request_stop();
    wait();
  }
  int wait() {
    thread_.join();
    return status_;
  }
  bool done() const { return done_; }
  Supervisor* operator->() { return supervisor_.get(); }

 private:
  std::unique_ptr<Supervisor> supervisor_;
  int status_ = -1;
  std::atomic<bool> done_{false};
  std::thread thread_;
};

bool alive(int pid) { return ::kill(pid, 0) == 0; }

TEST(Supervisor, StartsAgainWithGrowingPauses) {
  TemporaryFolder folder;
  const std::string log = folder.file("log");
  Running running({shell("child", "date +%s%N >> " + log + "; exit 1")}, quick());
  ASSERT_TRUE(eventually([&] { return lines(log) >= 7; }));
  std::ifstream file(log);
  std::vector<double> starts_s;
  for (int64_t ns; file >> ns;) starts_s.push_back(static_cast<double>(ns) * 1e-9);
  ASSERT_GE(starts_s.size(), 7u);
  // Pauses of at least 0.02, 0.04, 0.08, 0.16, 0.2, 0.2 s: the sum from the first start to the seventh.
  EXPECT_GE(starts_s[6] - starts_s[0], 0.70 - 0.01);
  EXPECT_GE(starts_s[6] - starts_s[5], 0.2 - 0.005);
  EXPECT_GE(running->children()[0].restarts, 6u);
}

TEST(Supervisor, AHealthyLifeForgetsTheBackoff) {
  TemporaryFolder folder;
  const std::string log = folder.file("log");
  SupervisorOptions options = quick();
  options.backoff_cap_s = 100;
  options.healthy_after_s = 0.05;
  Running running({shell("child", "echo x >> " + log + "; sleep 0.1; exit 1")}, options);
  EXPECT_TRUE(
      eventually([&] { return lines(log) >= 8; }));  // 20 ms doubled seven times would be 2.5 s a pause
  EXPECT_LT(lines(log), 200u);
}

TEST(Supervisor, AKilledChildComesBack) {
  const ChildSpec child = shell("child", "exec sleep 1000");
  Running running({child}, quick());
  ASSERT_TRUE(eventually([&] { return running->children()[0].pid != 0; }));
  const int first = running->children()[0].pid;
  ::kill(first, SIGKILL);
  ASSERT_TRUE(
      eventually([&] { return running->children()[0].pid != 0 && running->children()[0].pid != first; }));
  EXPECT_EQ(running->children()[0].restarts, 1u);
}

TEST(Supervisor, AConfigurationErrorEndsEverything) {
  TemporaryFolder folder;
  auto page = *StatusPage::create(folder.file("page"));
  ChildSpec bad = shell("bad", "sleep 0.1; exit 2");
  bad.status = page;
  Running running({shell("good", "exec sleep 1000"), bad}, quick());
  EXPECT_EQ(running.wait(), kExitConfiguration);
  EXPECT_EQ(running->children()[0].pid, 0);
  EXPECT_EQ(running->children()[1].restarts, 0u);
}

TEST(Supervisor, AProgramThatCannotRunEndsEverything) {
  Running running({{.name = "none", .arguments = {"/nonexistent/program"}}}, quick());
  EXPECT_EQ(running.wait(), kExitConfiguration);
}

// The gateway (rank 0) drains while the groups (rank 1) still run, and one that dies meanwhile is replaced.
TEST(Supervisor, DrainsInOrder) {
  TemporaryFolder folder;
  const std::string log = folder.file("log");
  ChildSpec gateway =
      shell("gateway", "trap 'echo draining >> " + log + "; sleep 0.6; echo gateway >> " + log +
                           "; exit 0' TERM; echo up >> " + log + "; while true; do sleep 0.02; done");
  ChildSpec group = shell("group", "trap 'echo group >> " + log + "; exit 0' TERM; echo up >> " + log +
                                       "; while true; do sleep 0.02; done");
  group.stop_rank = 1;
  Running running({gateway, group}, quick());
  ASSERT_TRUE(eventually([&] { return lines(log) == 2; }));
  const int first_group = running->children()[1].pid;
  running->request_stop();
  ASSERT_TRUE(eventually([&] { return lines(log) == 3; }));
  ::kill(first_group, SIGKILL);
  EXPECT_EQ(running.wait(), 0);
  EXPECT_EQ(content(log), "up\nup\ndraining\nup\ngateway\ngroup\n");
}

TEST(Supervisor, AChildThatDoesNotStopIsKilled) {
  TemporaryFolder folder;
  const std::string log = folder.file("log");
  ChildSpec stubborn =
      shell("stubborn", "trap '' TERM; echo up >> " + log + "; while true; do sleep 0.05; done");
  stubborn.stop_timeout_s = 0.2;
  Running running({stubborn}, quick());
  ASSERT_TRUE(eventually([&] { return lines(log) == 1; }));
  running->request_stop();
  EXPECT_EQ(running.wait(), 1);
}

TEST(Supervisor, TheSecondSignalIsAtOnce) {
  TemporaryFolder folder;
  const std::string log = folder.file("log");
  ChildSpec stubborn =
      shell("stubborn", "trap '' TERM; echo up >> " + log + "; while true; do sleep 0.05; done");
  stubborn.stop_timeout_s = 100;
  Running running({stubborn, shell("other", "exec sleep 1000")}, quick());
  ASSERT_TRUE(eventually([&] { return lines(log) == 1; }));
  const double start_s = monotonic_s();
  running->request_stop();
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  EXPECT_FALSE(running.done());
  running->request_stop();
  EXPECT_EQ(running.wait(), 1);
  EXPECT_LT(monotonic_s() - start_s, 20);
}

TEST(Supervisor, AWedgedGroupIsKilledAndAnIdleOneIsNot) {
  TemporaryFolder folder;
  auto page = *StatusPage::create(folder.file("page"));
  ChildSpec group = shell("group", "exec sleep 1000");
  group.status = page;
  Running running({group}, quick());
  ASSERT_TRUE(eventually([&] { return running->children()[0].pid != 0; }));
  const int first = running->children()[0].pid;
  StatusPage::Fields& fields = page->fields();
  std::atomic<bool> beating{true};
  std::thread beat([&] {  // the group's housekeeping thread, in its place
    while (beating) {
      fields.beat_ns = monotonic_ns();
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
  });
  fields.ready = 1;
  std::this_thread::sleep_for(std::chrono::milliseconds(800));
  EXPECT_EQ(running->children()[0].pid, first);  // idle: nothing pending
  fields.pending = 3;
  for (int i = 0; i < 80; ++i) {  // busy: steps advance
    ++fields.steps;
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  EXPECT_EQ(running->children()[0].pid, first);
  EXPECT_TRUE(eventually([&] { return running->children()[0].restarts == 1; }));  // wedged
  EXPECT_EQ(running->children()[0].wedges, 1u);
  EXPECT_EQ(fields.restarts.load(), 1u);
  beating = false;
  beat.join();
}

TEST(Supervisor, ASilentGroupIsKilled) {
  TemporaryFolder folder;
  auto page = *StatusPage::create(folder.file("page"));
  ChildSpec group = shell("group", "exec sleep 1000");
  group.status = page;
  Running running({group}, quick());
  ASSERT_TRUE(eventually([&] { return running->children()[0].pid != 0; }));
  page->fields().ready = 1;
  page->fields().beat_ns = monotonic_ns();  // and never again, as after SIGSTOP
  EXPECT_TRUE(
      eventually([&] { return running->children()[0].wedges == 1 && running->children()[0].restarts == 1; }));
}

TEST(Supervisor, ChildrenGetEnvironmentAndListedDescriptorsOnly) {
  TemporaryFolder folder;
  const auto listener = *listen_tcp("127.0.0.1", 0);
  const auto other = *listen_tcp("127.0.0.1", 0);
  const std::string log = folder.file("log");
  ChildSpec child =
      shell("child", "echo \"$MILLRACE_TEST_VALUE\" > " + log + ".part; test -e /proc/self/fd/" +
                         std::to_string(listener.fd) + " && echo listed >> " + log +
                         ".part; test -e /proc/self/fd/" + std::to_string(other.fd) + " && echo leaked >> " +
                         log + ".part; mv " + log + ".part " + log + "; exec sleep 1000");
  child.environment = {{"MILLRACE_TEST_VALUE", "given"}};
  child.inherited_fds = {listener.fd};
  Running running({child}, quick());
  ASSERT_TRUE(eventually([&] { return std::filesystem::exists(log); }));
  EXPECT_EQ(content(log), "given\nlisted\n");
  ::close(listener.fd);
  ::close(other.fd);
}

// A supervisor in a process of its own, so that real signals can be sent to it.
class SupervisorProcess {
 public:
  SupervisorProcess(const ChildSpec& child, const SupervisorOptions& options) {
    pid_ = ::fork();
    if (pid_ == 0) {
      auto supervisor = Supervisor::create({child}, options);
      ::_exit((*supervisor)->run());
    }
  }
  ~SupervisorProcess() {
    ::kill(pid_, SIGKILL);
    if (!waited_) ::waitpid(pid_, nullptr, 0);
  }
  int pid() const { return pid_; }
  int wait() {
    int status = 0;
    ::waitpid(pid_, &status, 0);
    waited_ = true;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
  }

 private:
  pid_t pid_ = -1;
  bool waited_ = false;
};

TEST(Supervisor, SigtermStopsItAndItsChildren) {
  TemporaryFolder folder;
  const std::string log = folder.file("log");
  SupervisorProcess process(shell("child", "echo $$ > " + log + "; exec sleep 1000"), quick());
  ASSERT_TRUE(eventually([&] { return lines(log) == 1; }));
  const int child = std::stoi(content(log));
  ::kill(process.pid(), SIGTERM);
  EXPECT_EQ(process.wait(), 0);
  EXPECT_FALSE(alive(child));
}

TEST(Supervisor, AClosedTerminalStopsItUnlessToldOtherwise) {
  for (const bool ignored : {false, true}) {
    TemporaryFolder folder;
    const std::string log = folder.file("log");
    const auto before = ::signal(SIGHUP, ignored ? SIG_IGN : SIG_DFL);
    SupervisorProcess process(
        shell("child", "trap 'sleep 0.3; echo drained >> " + log + "; exit 0' TERM; echo up > " + log +
                           "; while true; do sleep 0.02; done"),
        quick());
    ::signal(SIGHUP, before);
    ASSERT_TRUE(eventually([&] { return lines(log) == 1; }));
    // One from the kernel, one from the shell. The second must not cut the drain short.
    ::kill(process.pid(), SIGHUP);
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    ::kill(process.pid(), SIGHUP);
    if (ignored) {
      std::this_thread::sleep_for(std::chrono::milliseconds(200));
      EXPECT_EQ(lines(log), 1u);
      ::kill(process.pid(), SIGTERM);
    }
    EXPECT_EQ(process.wait(), 0);
    EXPECT_EQ(content(log), "up\ndrained\n");
  }
}

// A session that ends closes its terminals and then ends its processes: nobody has asked twice.
TEST(Supervisor, ASigtermAfterAClosedTerminalIsTheFirst) {
  TemporaryFolder folder;
  const std::string log = folder.file("log");
  SupervisorProcess process(
      shell("child", "trap 'sleep 0.3; echo drained >> " + log + "; exit 0' TERM; echo up > " + log +
                         "; while true; do sleep 0.02; done"),
      quick());
  ASSERT_TRUE(eventually([&] { return lines(log) == 1; }));
  for (const int signal : {SIGHUP, SIGTERM}) {
    ::kill(process.pid(), signal);
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }
  EXPECT_EQ(process.wait(), 0);
  EXPECT_EQ(content(log), "up\ndrained\n");
}

TEST(Supervisor, ChildrenDoNotOutliveAKilledSupervisor) {
  TemporaryFolder folder;
  const std::string log = folder.file("log");
  SupervisorProcess process(shell("child", "echo $$ > " + log + "; exec sleep 1000"), quick());
  ASSERT_TRUE(eventually([&] { return lines(log) == 1; }));
  const int child = std::stoi(content(log));
  ::kill(process.pid(), SIGKILL);
  process.wait();
  // Adopted by init, which may take its time to reap it: a zombie counts as dead.
  EXPECT_TRUE(eventually([&] {
    const std::string stat = content("/proc/" + std::to_string(child) + "/stat");
    return stat.empty() || stat.find(") Z") != std::string::npos;
  }));
}

}  // namespace
}  // namespace millrace::cluster::testing
