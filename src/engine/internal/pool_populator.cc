#include "engine/internal/pool_populator.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "base/clock.h"
#include "base/cpu.h"
#include "base/granted_memory.h"
#include "base/log.h"
#include "base/units.h"

namespace millrace::engine {
namespace {

constexpr size_t kPiece = 2 * kMiB;       // some milliseconds: what a first step or the engine's end may wait
constexpr size_t kLookEvery = 64 * kMiB;  // looking at what is available costs a tenth of a millisecond
constexpr double kBusyPause_s = 0.02;
// Clearing memory takes a good part of what a machine can write; others' steps keep three quarters of it.
constexpr double kRestPerWork = 3;

}  // namespace

PoolPopulator::Options PoolPopulator::options_for(std::vector<int> cpus, int groups_on_host) {
  return {.cpus = std::move(cpus),
          .leave_bandwidth = groups_on_host > 1,
          .margin_bytes = std::clamp(granted_memory().total_bytes / 16, 256 * kMiB, 2 * kGiB),
          .available_bytes = [] { return granted_memory().available_bytes; }};
}

PoolPopulator::PoolPopulator(const Buffer& memory, const std::atomic<bool>& busy, Options options)
    : memory_(memory), busy_(busy), options_(std::move(options)), thread_([this] { run(); }) {}

PoolPopulator::~PoolPopulator() {
  {
    const std::lock_guard lock(mutex_);
    ends_ = true;
  }
  ending_.notify_all();
  thread_.join();
}

// At ordinary priority: a thread of the idle class would hold the address space's lock whenever a step takes
// the core from it.
void PoolPopulator::run() {
  // Elsewhere it would clear memory on cores where another group decodes, and find the pages on another NUMA
  // node.
  if (!options_.cpus.empty()) pin_this_thread(options_.cpus);
  size_t done = 0, look_at = 0;
  double pause_s = 0;
  while (rest(pause_s) && done < memory_.size_bytes()) {
    pause_s = kBusyPause_s;
    if (busy_.load(std::memory_order_relaxed)) continue;
    if (done >= look_at) {
      pause_s = options_.look_again_s;
      if (!may_take()) continue;
      look_at = done + kLookEvery;
    }
    const double start_s = monotonic_s();
    const size_t bytes = std::min(kPiece, memory_.size_bytes() - done);
    if (const auto taken = memory_.populate(done, bytes); !taken) {
      log(LogLevel::warn, "engine", "steps that first use a KV page will wait for its memory: {}",
          taken.error().message);
      return;
    }
    done += bytes;
    taken_.store(done, std::memory_order_relaxed);
    pause_s = options_.leave_bandwidth ? kRestPerWork * (monotonic_s() - start_s) : 0;
  }
}

bool PoolPopulator::may_take() {
  const size_t available = options_.available_bytes();
  if (available >= options_.margin_bytes + std::min(kLookEvery, memory_.size_bytes())) return true;
  if (!std::exchange(told_, true))
    log(LogLevel::warn, "engine",
        "only {} MiB of memory are available: {} of the KV cache's {} MiB have theirs, the rest waits for "
        "use. A smaller cache (--kv-cache-gib) would be safer",
        available / kMiB, taken_bytes() / kMiB, memory_.size_bytes() / kMiB);
  return false;
}

bool PoolPopulator::rest(double seconds) {
  std::unique_lock lock(mutex_);
  if (seconds > 0) ending_.wait_for(lock, std::chrono::duration<double>(seconds), [this] { return ends_; });
  return !ends_;
}

}  // namespace millrace::engine
