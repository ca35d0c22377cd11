#include "base/thread_team.h"

#include <xmmintrin.h>

#include <bit>
#include <chrono>
#include <utility>

#include "base/cpu.h"
#include "base/status.h"

namespace millrace {
namespace {

constexpr unsigned kFlushToZero = 0x8000, kDenormalsAreZero = 0x0040;
// About 50 microseconds of pauses: longer than the gap between two parallel regions of a step, shorter than a
// scheduler tick.
constexpr int kSpins = 2000;
// At a barrier, after the spins: a member that lost its core to somebody else is given as many turns to get
// it back.
constexpr int kYields = 20000;

thread_local size_t t_member = 0;  // of the team that this thread works for now

template <class Ready>
void spin_then_wait(const std::atomic<uint32_t>& word, uint32_t old, Ready ready) {
  for (int i = 0; i < kSpins; ++i) {
    if (ready()) return;
    _mm_pause();
  }
  while (!ready()) word.wait(old, std::memory_order_acquire);
}

}  // namespace

FlushDenormals::FlushDenormals() : saved_(_mm_getcsr()) {
  _mm_setcsr(saved_ | kFlushToZero | kDenormalsAreZero);
}
FlushDenormals::~FlushDenormals() { _mm_setcsr(saved_); }

ThreadTeam::ThreadTeam(std::vector<int> cpus) : cpus_(std::move(cpus)) {
  MR_CHECK(!cpus_.empty(), "a thread team needs at least one thread");
  barrier_turn_ = std::make_unique<Turn[]>(cpus_.size());
  barrier_flags_ =
      std::make_unique<Flag[]>(cpus_.size() * static_cast<size_t>(std::bit_width(cpus_.size() - 1)));
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
  // A member of another team may call this one, and goes on as that member.
  struct Restored {
    const size_t was = std::exchange(t_member, 0);
    ~Restored() { t_member = was; }
  } const restored;
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

// Dissemination (Hensgen, Finkel and Manber 1988): in round r a member tells the one 2^r further on that it
// is here and waits for the one 2^r before it; after log2(size) rounds everyone has heard of everyone. A flag
// has one writer and one reader, so that arriving is a store that waits for nothing, where a shared counter
// is two misses in turn.
void ThreadTeam::barrier() {
  const size_t members = cpus_.size(), me = t_member;
  if (members == 1) return;
  const uint32_t turn = ++barrier_turn_[me].turn;
  Flag* flags = barrier_flags_.get();
  for (size_t reach = 1; reach < members; reach *= 2, flags += members) {
    flags[me].turn.store(turn, std::memory_order_release);
    const std::atomic<uint32_t>& before = flags[(me + members - reach) % members].turn;
    // A fast member may be a turn ahead.
    for (int spins = 0; static_cast<int32_t>(before.load(std::memory_order_acquire) - turn) < 0; ++spins) {
      if (spins < kSpins) {
        _mm_pause();
      } else if (spins < kSpins + kYields) {
        std::this_thread::yield();
      } else {
        std::this_thread::sleep_for(std::chrono::microseconds(20));
      }
    }
  }
}

void ThreadTeam::member(int thread) {
  t_member = static_cast<size_t>(thread);
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
