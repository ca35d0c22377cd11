#include "engine/internal/pool_populator.h"

#include <gtest/gtest.h>
#include <sched.h>
#include <sys/resource.h>

#include <chrono>
#include <string>

#include "base/clock.h"
#include "base/cpu.h"
#include "base/log.h"
#include "base/units.h"

namespace millrace::engine {
namespace {

using std::chrono::milliseconds;

constexpr size_t kBytes = 160 * kMiB;

bool can_populate() {
  const auto memory = Buffer::allocate(kMiB);
  return memory && memory->populate(0, kMiB);
}

bool wait_for_bytes(const PoolPopulator& populator, size_t bytes) {
  for (int i = 0; i < 20000 && populator.taken_bytes() < bytes; ++i)
    std::this_thread::sleep_for(milliseconds(1));
  return populator.taken_bytes() >= bytes;
}

class PoolPopulatorTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!can_populate()) GTEST_SKIP() << "this kernel has no MADV_POPULATE_WRITE (Linux 5.14)";
  }
  PoolPopulator::Options options() {
    return {.margin_bytes = 100 * kMiB,
            .available_bytes = [this] { return available.load(); },
            .look_again_s = 0.005};
  }
  const Buffer memory = Buffer::allocate(kBytes).value();
  std::atomic<bool> busy{false};
  std::atomic<size_t> available{kGiB};
};

TEST_F(PoolPopulatorTest, TakesAllWhileNothingIsBusy) {
  busy = true;
  PoolPopulator populator(memory, busy, options());
  std::this_thread::sleep_for(milliseconds(100));
  EXPECT_EQ(populator.taken_bytes(), 0u);
  busy = false;
  EXPECT_TRUE(wait_for_bytes(populator, kBytes));
}

TEST_F(PoolPopulatorTest, StopsWhereMemoryIsShortAndSaysSoOnce) {
  // Two looks find plenty, then others have taken it: too little for the margin and the next 64 MiB.
  available = 150 * kMiB;
  PoolPopulator::Options scarce = options();
  scarce.available_bytes = [this, looks = 0]() mutable { return looks++ < 2 ? kGiB : available.load(); };
  set_log_level(LogLevel::warn);
  ::testing::internal::CaptureStderr();
  std::string said;
  {
    PoolPopulator populator(memory, busy, std::move(scarce));
    EXPECT_TRUE(wait_for_bytes(populator, 128 * kMiB));
    std::this_thread::sleep_for(milliseconds(200));
    EXPECT_EQ(populator.taken_bytes(), 128 * kMiB);
    said = ::testing::internal::GetCapturedStderr();
    available = 100 * kGiB;  // somebody has gone
    EXPECT_TRUE(wait_for_bytes(populator, kBytes));
  }
  const size_t first = said.find("128 of the KV cache's 160 MiB");
  ASSERT_NE(first, std::string::npos) << said;
  EXPECT_EQ(said.find("KV cache's", first + 20), std::string::npos) << said;
}

TEST_F(PoolPopulatorTest, RunsOnTheGroupsOwnCpus) {
  const int cpu = granted_cpus().cpus.back();
  PoolPopulator::Options pinned = options();
  std::atomic<int> allowed{0}, mine{0};
  pinned.cpus = {cpu};
  pinned.available_bytes = [&] {
    cpu_set_t mask;
    CPU_ZERO(&mask);
    sched_getaffinity(0, sizeof mask, &mask);
    allowed = CPU_COUNT(&mask);
    mine = CPU_ISSET(cpu, &mask) ? 1 : 0;
    return kGiB;
  };
  PoolPopulator populator(memory, busy, std::move(pinned));
  EXPECT_TRUE(wait_for_bytes(populator, kBytes));
  EXPECT_EQ(allowed, 1);
  EXPECT_EQ(mine, 1);
}

// It sleeps after each piece. (How long it computes would say so only on a machine that has nothing else to
// do.)
TEST_F(PoolPopulatorTest, LeavesMemorysBandwidthToOthers) {
  PoolPopulator::Options gentle = options();
  gentle.leave_bandwidth = true;
  std::atomic<long> sleeps{0};
  gentle.available_bytes = [&] {
    rusage usage{};
    getrusage(RUSAGE_THREAD, &usage);
    sleeps = usage.ru_nvcsw;
    return kGiB;
  };
  PoolPopulator populator(memory, busy, std::move(gentle));
  EXPECT_TRUE(wait_for_bytes(populator, kBytes));
  EXPECT_GE(sleeps, 60) << "seen last after 64 pieces";
}

TEST_F(PoolPopulatorTest, EndsAtOnceInTheMiddle) {
  PoolPopulator::Options waiting = options();
  waiting.look_again_s = 1000;
  available = 0;
  auto populator = std::make_unique<PoolPopulator>(memory, busy, std::move(waiting));
  std::this_thread::sleep_for(milliseconds(50));
  const double start_s = monotonic_s();
  populator.reset();
  EXPECT_LT(monotonic_s() - start_s, 5);
}

}  // namespace
}  // namespace millrace::engine
