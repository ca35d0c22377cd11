// Takes the KV pool's memory from the kernel on a thread of its own, while the engine has nothing to compute.
// Where a step is first to write a page it waits for the kernel to clear it: 8 % of decoding at batch 32,
// measured.
//
// It stops where going on would have the kernel end a process: less memory than a margin must stay available.
// Then it looks again now and then; what it has not taken is taken by first writes, as without it. Logs once
// that it waits, and once if the kernel cannot do this (before Linux 5.14).
#pragma once
#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include "base/memory.h"

namespace millrace::engine {

class PoolPopulator {
 public:
  struct Options {
    std::vector<int> cpus;         // where the thread may run; empty or with a -1: anywhere
    bool leave_bandwidth = false;  // other engines on this machine may be decoding: rest most of the time
    size_t margin_bytes = 0;       // must stay available
    std::function<size_t()> available_bytes;  // called on the thread
    double look_again_s = 1;                  // while it waits for memory
  };
  // The memory that this machine has left, and the margin that a service should leave of it.
  static Options options_for(std::vector<int> cpus, int groups_on_host);

  // `memory` outlives this; `busy`: a step may want the cores.
  PoolPopulator(const Buffer& memory, const std::atomic<bool>& busy, Options options);
  ~PoolPopulator();  // waits for a piece at most, some milliseconds

  size_t taken_bytes() const { return taken_.load(std::memory_order_relaxed); }

 private:
  void run();
  bool may_take();
  bool rest(double seconds);  // false: it is over

  const Buffer& memory_;
  const std::atomic<bool>& busy_;
  const Options options_;
  bool told_ = false;  // the thread's own
  std::atomic<size_t> taken_{0};
  std::mutex mutex_;
  std::condition_variable ending_;
  bool ends_ = false;  // guarded by mutex_
  std::thread thread_;
};

}  // namespace millrace::engine
