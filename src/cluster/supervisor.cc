#include "cluster/supervisor.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <limits>
#include <mutex>
#include <utility>

#include "base/clock.h"
#include "base/log.h"

extern char** environ;

namespace millrace::cluster {
namespace {

constexpr int kExitExecFailed = 126;  // the shell's number for "found, but cannot be run"

// Between fork and exec, in a copy of a process that may have had threads: async-signal-safe calls only.
[[noreturn]] void become_child(const char* program, char* const* arguments, char* const* environment,
                               const std::vector<int>& inherited_fds, pid_t parent) {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (::getppid() != parent) ::_exit(1);  // the parent died before prctl
  ::setpgid(0, 0);
  sigset_t none;
  sigemptyset(&none);
  ::sigprocmask(SIG_SETMASK, &none, nullptr);
  for (const int signal : {SIGTERM, SIGINT, SIGPIPE, SIGCHLD}) ::signal(signal, SIG_DFL);
  for (const int fd : inherited_fds) {
    const int flags = ::fcntl(fd, F_GETFD);
    if (flags >= 0) ::fcntl(fd, F_SETFD, flags & ~FD_CLOEXEC);
  }
  ::execve(program, arguments, environment);
  ::_exit(kExitExecFailed);
}

std::string describe_exit(int status) {
  if (WIFSIGNALED(status))
    return fmt::format("was killed by signal {} ({})", WTERMSIG(status), ::strsignal(WTERMSIG(status)));
  if (WEXITSTATUS(status) == kExitExecFailed) return "could not be executed";
  return fmt::format("exited with status {}", WEXITSTATUS(status));
}

struct Child {
  explicit Child(ChildSpec s) : spec(std::move(s)) {}
  const ChildSpec spec;
  pid_t pid = 0;  // 0: not running
  double started_s = 0;
  double start_at_s = 0;  // when not running
  double backoff_s = 0;
  double kill_at_s = 0;  // after SIGTERM; 0: not told to stop
  uint64_t starts = 0, wedges = 0;
  // Of the status page:
  uint64_t last_steps = 0;
  double progressed_s = 0;
};

class SupervisorImpl final : public Supervisor {
 public:
  SupervisorImpl(std::vector<ChildSpec> specs, SupervisorOptions options) : options_(options) {
    for (ChildSpec& spec : specs) children_.emplace_back(std::move(spec));
    stop_event_ = ::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  }
  ~SupervisorImpl() override {
    if (stop_event_ >= 0) ::close(stop_event_);
    if (signal_fd_ >= 0) ::close(signal_fd_);
  }

  int run() override {
    sigset_t signals;
    sigemptyset(&signals);
    for (const int signal : {SIGTERM, SIGINT, SIGCHLD}) sigaddset(&signals, signal);
    struct sigaction hangup {};
    if (::sigaction(SIGHUP, nullptr, &hangup) == 0 && hangup.sa_handler != SIG_IGN)
      sigaddset(&signals, SIGHUP);
    pthread_sigmask(SIG_BLOCK, &signals, nullptr);
    ::signal(SIGCHLD,
             SIG_DFL);  // whoever started us may have ignored it, and then nothing could be waited for
    signal_fd_ = ::signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK);
    if (signal_fd_ < 0 || stop_event_ < 0) {
      log(LogLevel::error, "cluster", "no signalfd or eventfd: {}", std::strerror(errno));
      return 1;
    }
    while (true) {
      {
        const std::lock_guard lock(mutex_);
        reap();
        if (stopping_) advance_stop();
        if (stopping_ && nobody_runs()) return exit_status_;
        start_due();
        check_progress();
      }
      wait_for_news();
    }
  }

  void request_stop() override {
    const uint64_t one = 1;
    [[maybe_unused]] const ssize_t written = ::write(stop_event_, &one, sizeof one);
  }

  std::vector<ChildState> children() const override {
    const std::lock_guard lock(mutex_);
    std::vector<ChildState> states;
    for (const Child& child : children_)
      states.push_back(
          {.pid = child.pid, .restarts = child.starts > 0 ? child.starts - 1 : 0, .wedges = child.wedges});
    return states;
  }

 private:
  // SIGCHLD wakes us at once (reap() runs each time round); otherwise a tick.
  void wait_for_news() {
    pollfd polled[] = {{signal_fd_, POLLIN, 0}, {stop_event_, POLLIN, 0}};
    ::poll(polled, 2, static_cast<int>(options_.tick_s * 1000));
    int stops = 0;
    bool hung_up = false;
    signalfd_siginfo info;
    while (::read(signal_fd_, &info, sizeof info) == sizeof info) {
      hung_up |= info.ssi_signo == SIGHUP;
      if (info.ssi_signo != SIGCHLD && info.ssi_signo != SIGHUP) ++stops;
    }
    uint64_t requested = 0;
    if (::read(stop_event_, &requested, sizeof requested) == sizeof requested) ++stops;
    const std::lock_guard lock(mutex_);
    // A closing terminal sends SIGHUP twice (the kernel's and the shell's), and the end of its session
    // SIGTERM besides: that is no person in a hurry.
    if (hung_up && stops == 0 && !stopping_) {
      stop_or_kill();
      hung_up_ = true;
    }
    for (int i = 0; i < stops; ++i) stop_or_kill();
  }

  // ---- all below: mutex_ held ----

  void stop_or_kill() {
    if (!stopping_) {
      log(LogLevel::info, "cluster", "stopping; once more to stop at once");
      begin_stop(0);
      return;
    }
    if (std::exchange(hung_up_, false)) {
      log(LogLevel::info, "cluster", "stopping since the terminal was closed; once more to stop at once");
      return;
    }
    log(LogLevel::warn, "cluster", "stopping at once");
    for (const Child& child : children_)
      if (child.pid != 0) ::kill(child.pid, SIGKILL);
    hurried_ = true;
    if (exit_status_ == 0) exit_status_ = 1;
  }

  void begin_stop(int exit_status) {
    stopping_ = true;
    exit_status_ = exit_status;
  }

  bool nobody_runs() const {
    return std::all_of(children_.begin(), children_.end(), [](const Child& child) { return child.pid == 0; });
  }

  // The lowest rank that still runs is being stopped; higher ranks are kept alive until it is gone.
  int stopping_rank() const {
    int rank = std::numeric_limits<int>::max();
    for (const Child& child : children_)
      if (child.pid != 0) rank = std::min(rank, child.spec.stop_rank);
    return rank;
  }

  void advance_stop() {
    const int rank = stopping_rank();
    const double now_s = monotonic_s();
    for (Child& child : children_) {
      if (child.pid == 0 || (child.spec.stop_rank != rank && !hurried_)) continue;
      if (child.kill_at_s == 0) {
        ::kill(child.pid, hurried_ ? SIGKILL : SIGTERM);
        child.kill_at_s = now_s + child.spec.stop_timeout_s;
      } else if (now_s > child.kill_at_s) {
        log(LogLevel::warn, "cluster", "{} has not stopped within {} s and is killed", child.spec.name,
            child.spec.stop_timeout_s);
        ::kill(child.pid, SIGKILL);
        child.kill_at_s = now_s + child.spec.stop_timeout_s;
        if (exit_status_ == 0) exit_status_ = 1;
      }
    }
  }

  void reap() {
    for (Child& child : children_) {
      int status = 0;
      if (child.pid == 0 || ::waitpid(child.pid, &status, WNOHANG) != child.pid) continue;
      on_exit(child, status);
    }
  }

  void on_exit(Child& child, int status) {
    const double now_s = monotonic_s(), lived_s = now_s - child.started_s;
    child.pid = 0;
    if (child.kill_at_s != 0) {  // told to stop
      log(LogLevel::info, "cluster", "{} {}", child.spec.name, describe_exit(status));
      return;
    }
    if (WIFEXITED(status) &&
        (WEXITSTATUS(status) == kExitConfiguration || WEXITSTATUS(status) == kExitExecFailed)) {
      const std::string why = child.spec.status ? child.spec.status->message() : "";
      log(LogLevel::error, "cluster", "{} {} and will not be started again{}{}", child.spec.name,
          describe_exit(status), why.empty() ? "" : ": ", why);
      if (!stopping_) begin_stop(kExitConfiguration);
      return;
    }
    child.backoff_s = child.backoff_s == 0 || lived_s >= options_.healthy_after_s
                          ? options_.backoff_initial_s
                          : std::min(child.backoff_s * 2, options_.backoff_cap_s);
    child.start_at_s = now_s + child.backoff_s;
    log(LogLevel::warn, "cluster", "{} {} after {:.1f} s; it starts again in {:.2f} s", child.spec.name,
        describe_exit(status), lived_s, child.backoff_s);
  }

  void start_due() {
    const double now_s = monotonic_s();
    const int rank = stopping_ ? stopping_rank() : std::numeric_limits<int>::min();
    for (Child& child : children_) {
      if (child.pid != 0 || now_s < child.start_at_s) continue;
      // While a lower rank drains, the others are still needed.
      if (stopping_ && (hurried_ || exit_status_ != 0 || child.spec.stop_rank <= rank)) continue;
      start(child, now_s);
    }
  }

  void start(Child& child, double now_s) {
    if (child.spec.status) child.spec.status->clear_for_start(child.starts);
    // Everything is allocated here, before fork.
    std::vector<std::string> environment;
    for (char** variable = environ; *variable != nullptr; ++variable) {
      const std::string_view text(*variable);
      const bool replaced =
          std::any_of(child.spec.environment.begin(), child.spec.environment.end(), [&](const auto& own) {
            return text.starts_with(own.first) && text.size() > own.first.size() &&
                   text[own.first.size()] == '=';
          });
      if (!replaced) environment.emplace_back(text);
    }
    for (const auto& [name, value] : child.spec.environment) environment.push_back(name + "=" + value);
    std::vector<char*> argument_pointers, environment_pointers;
    for (const std::string& argument : child.spec.arguments)
      argument_pointers.push_back(const_cast<char*>(argument.c_str()));
    for (std::string& variable : environment) environment_pointers.push_back(variable.data());
    argument_pointers.push_back(nullptr);
    environment_pointers.push_back(nullptr);

    const pid_t parent = ::getpid();
    const pid_t pid = ::fork();
    if (pid == 0)
      become_child(child.spec.arguments[0].c_str(), argument_pointers.data(), environment_pointers.data(),
                   child.spec.inherited_fds, parent);
    if (pid < 0) {
      child.start_at_s = now_s + options_.backoff_cap_s;
      log(LogLevel::error, "cluster", "{}: fork: {}", child.spec.name, std::strerror(errno));
      return;
    }
    child.pid = pid;
    child.started_s = child.progressed_s = now_s;
    child.last_steps = 0;
    ++child.starts;
    log(LogLevel::info, "cluster", "{} started, pid {}", child.spec.name, pid);
  }

  // Kills what is wedged; reap() then sees an ordinary death.
  void check_progress() {
    const double now_s = monotonic_s();
    for (Child& child : children_) {
      if (child.pid == 0 || !child.spec.status || child.kill_at_s != 0) continue;
      const StatusPage::Fields& page = child.spec.status->fields();
      const uint64_t steps = page.steps.load();
      if (page.ready.load() == 0 || page.pending.load() == 0 || steps != child.last_steps)
        child.progressed_s = now_s;
      child.last_steps = steps;
      const double beat_s = static_cast<double>(page.beat_ns.load()) * 1e-9;
      const bool silent = page.ready.load() != 0 && beat_s > 0 && now_s - beat_s > options_.silent_after_s;
      const bool wedged = now_s - child.progressed_s > options_.wedged_after_s;
      if (!silent && !wedged) continue;
      log(LogLevel::error, "cluster", "{} (pid {}) {}: it is killed", child.spec.name, child.pid,
          wedged ? fmt::format("has {} requests and has finished no step for {:.1f} s", page.pending.load(),
                               now_s - child.progressed_s)
                 : fmt::format("has given no sign of life for {:.1f} s", now_s - beat_s));
      ++child.wedges;
      child.progressed_s = now_s;  // once, until it is reaped
      child.spec.status->fields().ready.store(0);
      ::kill(child.pid, SIGKILL);
    }
  }

  const SupervisorOptions options_;
  int stop_event_ = -1, signal_fd_ = -1;

  mutable std::mutex mutex_;  // guards all below
  std::vector<Child> children_;
  bool stopping_ = false, hurried_ = false;
  bool hung_up_ = false;  // stopping since SIGHUP, and nothing else has asked for it yet
  int exit_status_ = 0;
};

}  // namespace

Expected<std::unique_ptr<Supervisor>> Supervisor::create(std::vector<ChildSpec> children,
                                                         SupervisorOptions options) {
  for (const ChildSpec& child : children)
    if (child.arguments.empty()) return invalid(fmt::format("child \"{}\" has no program", child.name));
  return std::make_unique<SupervisorImpl>(std::move(children), options);
}

}  // namespace millrace::cluster
