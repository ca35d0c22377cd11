// A team of pinned compute threads that run one function together, for the fork-join inside a step.
//
// run(f) calls f(thread) for thread = 0..size()-1, thread 0 on the caller, and returns when all have
// returned. barrier() may be called inside f by every member. Members spin briefly between calls (steps
// follow each other within microseconds) and then sleep, so an idle engine costs no CPU. One caller at a
// time; not reentrant.
//
// Every member runs with denormals flushed to zero (MXCSR FTZ and DAZ), the caller too while inside run():
// the matrix unit flushes, so all instruction-set levels do (design decision 1).
#pragma once
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

namespace millrace {

class ThreadTeam {
 public:
  // One thread per entry of `cpus`, pinned to it (-1: not pinned); the first entry is the caller of run(),
  // which is pinned at its first run(). At least one entry.
  explicit ThreadTeam(std::vector<int> cpus);
  ~ThreadTeam();
  ThreadTeam(const ThreadTeam&) = delete;
  ThreadTeam& operator=(const ThreadTeam&) = delete;

  int size() const { return static_cast<int>(cpus_.size()); }
  void run(const std::function<void(int thread)>& f);
  // What members wrote before it, all see after it. Waits in the open (spins, then yields, then naps):
  // members come within microseconds of each other.
  void barrier();

 private:
  void member(int thread);

  const std::vector<int> cpus_;
  std::vector<std::thread> threads_;
  const std::function<void(int)>* work_ = nullptr;  // written by the caller before generation_ is raised
  bool caller_pinned_ = false;
  std::atomic<bool> stop_{false};
  alignas(64) std::atomic<uint32_t> generation_{0};
  alignas(64) std::atomic<int> running_{0};
  struct alignas(64) Turn {  // how many barriers a member has come to
    uint32_t turn = 0;
  };
  struct alignas(64) Flag {
    std::atomic<uint32_t> turn{0};
  };
  std::unique_ptr<Turn[]> barrier_turn_;
  std::unique_ptr<Flag[]> barrier_flags_;  // [round][member]: the last turn that the member has told of
};

// Sets flush-to-zero and denormals-are-zero for a scope, and restores what was there.
class FlushDenormals {
 public:
  FlushDenormals();
  ~FlushDenormals();

 private:
  unsigned saved_;
};

}  // namespace millrace
