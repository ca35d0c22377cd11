#include "base/thread_team.h"

#include <xmmintrin.h>

#include <utility>

#include "base/cpu.h"
#include "base/status.h"

namespace millrace {
namespace {

constexpr unsigned kFlushToZero = 0x8000, kDenormalsAreZero = 0x0040;
// About 50 microseconds of pauses: longer than the gap between two parallel regions of a step, shorter than a scheduler tick.
constexpr int kSpins = 2000;

template <class Ready>
void spin_then_wait(const std::atomic<uint32_t>& word, uint32_t old, Ready ready) {
  for (int i = 0; i < kSpins; ++i) {
    if (ready()) return;
    _mm_pause();
  }
  while (!ready()) word.wait(old, std::memory_order_acquire);
}

}  // namespace

FlushDenormals::FlushDenormals() : saved_(_mm_getcsr()) { _mm_setcsr(saved_ | kFlushToZero | kDenormalsAreZero); }
FlushDenormals::~FlushDenormals() { _mm_setcsr(saved_); }

ThreadTeam::ThreadTeam(std::vector<int> cpus) : cpus_(std::move(cpus)) {
  MR_CHECK(!cpus_.empty(), "a thread team needs at least one thread");
  for (int thread = 1; thread < size(); ++thread) threads_.emplace_back([this, thread] { member(thread); });
}

ThreadTeam::~ThreadTeam() {
  stop_.store(true, std::memory_order_relaxed);
  generation_.fetch_add(1, std::memory_order_release);
  generation_.notify_all();
  for (auto& thread : threads_) thread.join();
}

void ThreadTeam::run(const std::function<void(int)>& f) {
  if (!caller_pinned_) {
    caller_pinned_ = true;
    if (cpus_[0] >= 0) pin_this_thread(cpus_[0]);
  }
  const FlushDenormals flush;
  if (size() == 1) return f(0);
  work_ = &f;
  running_.store(size() - 1, std::memory_order_relaxed);
  generation_.fetch_add(1, std::memory_order_release);
  generation_.notify_all();
  f(0);
  for (int spins = 0; running_.load(std::memory_order_acquire) != 0; ++spins) {
    if (spins < kSpins) {
      _mm_pause();
    } else if (const int left = running_.load(std::memory_order_acquire); left != 0) {
      running_.wait(left, std::memory_order_acquire);
    }
  }
}

void ThreadTeam::barrier() {
  if (size() == 1) return;
  const uint32_t generation = barrier_generation_.load(std::memory_order_acquire);
  if (barrier_arrived_.fetch_add(1, std::memory_order_acq_rel) == size() - 1) {
    barrier_arrived_.store(0, std::memory_order_relaxed);
    barrier_generation_.fetch_add(1, std::memory_order_release);
    barrier_generation_.notify_all();
    return;
  }
  spin_then_wait(barrier_generation_, generation,
                 [&] { return barrier_generation_.load(std::memory_order_acquire) != generation; });
}

void ThreadTeam::member(int thread) {
  if (cpus_[static_cast<size_t>(thread)] >= 0) pin_this_thread(cpus_[static_cast<size_t>(thread)]);
  const FlushDenormals flush;
  uint32_t seen = 0;
  while (true) {
    spin_then_wait(generation_, seen, [&] { return generation_.load(std::memory_order_acquire) != seen; });
    seen = generation_.load(std::memory_order_acquire);
    if (stop_.load(std::memory_order_relaxed)) return;
    (*work_)(thread);
    if (running_.fetch_sub(1, std::memory_order_acq_rel) == 1) running_.notify_all();
  }
}

}  // namespace millrace
