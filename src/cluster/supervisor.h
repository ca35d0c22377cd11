// Keeps a set of child processes alive, on one thread and without shared state with them but their status
// pages.
//
// A child that ends is started again after a backoff that doubles with each early death; a child that is
// wedged (work pending, no step; or silent) is killed and started again. Children die with the supervisor,
// however that dies (PR_SET_PDEATHSIG, which follows the *thread* that started them: call run() on the main
// thread).
//
// SIGTERM, SIGINT or (unless ignored, as under nohup) SIGHUP: children with the lowest stop_rank get SIGTERM
// and may drain, meanwhile the others are kept alive; then the next rank. A second SIGTERM or SIGINT kills
// everything at once; SIGHUP never does, and is not the first of two: a closing terminal sends more than one,
// and the end of its session SIGTERM besides. Children run in process groups of their own, so that Ctrl-C at
// a terminal reaches the supervisor alone.
//
// A child that exits with kExitConfiguration ends everything: starting it again would not help.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/status.h"
#include "cluster/status_page.h"

namespace millrace::cluster {

struct ChildSpec {
  std::string name;                                              // in the log: "group 0"
  std::vector<std::string> arguments;                            // [0] is the program, e.g. "/proc/self/exe"
  std::vector<std::pair<std::string, std::string>> environment;  // added to ours
  std::vector<int> inherited_fds;      // stay open, under the same numbers; all others are close-on-exec
  int stop_rank = 0;                   // lower stops first: gateway 0, groups 1
  double stop_timeout_s = 5;           // from SIGTERM to SIGKILL
  std::shared_ptr<StatusPage> status;  // watched for wedges, if set; the restart count is written there
};

struct SupervisorOptions {
  double backoff_initial_s = 0.1;
  double backoff_cap_s = 5;
  double healthy_after_s = 10;  // a child that lived this long starts again after backoff_initial_s
  // Work pending and no step: longer than any step we mean to allow, and than
  // DispatcherOptions::step_stalled_s.
  double wedged_after_s = 30;
  // Ready, but its housekeeping thread has not run (20 times a second is usual): stopped, swapped out or
  // spinning.
  double silent_after_s = 15;
  double tick_s = 0.1;
};

class Supervisor {
 public:
  static Expected<std::unique_ptr<Supervisor>> create(std::vector<ChildSpec> children,
                                                      SupervisorOptions options);
  virtual ~Supervisor() = default;

  // Starts the children and keeps them until a signal, request_stop() or a permanent failure; returns when
  // all have ended: 0 after an orderly stop, kExitConfiguration after a child's, 1 if a drain had to be cut
  // short. Blocks SIGTERM, SIGINT, SIGCHLD and (unless ignored) SIGHUP in the calling thread and takes them
  // from there: call it before other threads exist.
  virtual int run() = 0;
  virtual void request_stop() = 0;  // from any thread, as SIGTERM would

  struct ChildState {
    int pid = 0;  // 0: not running
    uint64_t restarts = 0, wedges = 0;
  };
  virtual std::vector<ChildState> children() const = 0;  // from any thread
};

}  // namespace millrace::cluster
