#include "base/thread_team.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <numeric>
#include <thread>
#include <vector>

namespace millrace {
namespace {

// Sizes that are powers of two and not; what a member wrote before a barrier, each other reads after it.
TEST(ThreadTeam, EveryMemberRunsOnceAndBarrierOrders) {
  for (const int size : {1, 2, 3, 5, 8}) {
    ThreadTeam team(std::vector<int>(static_cast<size_t>(size), -1));
    std::vector<int> first(static_cast<size_t>(size)), sums(static_cast<size_t>(size));
    for (int round = 0; round < 300; ++round) {
      team.run([&](int thread) {
        first[static_cast<size_t>(thread)] = round + thread;
        team.barrier();
        sums[static_cast<size_t>(thread)] = std::accumulate(first.begin(), first.end(), 0);
        team.barrier();
      });
      for (const int sum : sums) ASSERT_EQ(sum, size * round + size * (size - 1) / 2) << size << " members";
    }
  }
}

TEST(ThreadTeam, BarrierWaitsForAMemberThatIsLong) {
  ThreadTeam team({-1, -1, -1});
  std::atomic<int> arrived{0}, seen{0};
  team.run([&](int thread) {
    // long enough that the others nap
    if (thread == 1) std::this_thread::sleep_for(std::chrono::milliseconds(200));
    ++arrived;
    team.barrier();
    seen += arrived.load();
  });
  EXPECT_EQ(seen.load(), 9);
}

// A thread may call one team and then another.
TEST(ThreadTeam, TwoTeamsOfOneCaller) {
  ThreadTeam one({-1, -1}), two({-1, -1, -1});
  std::atomic<int> calls{0};
  for (int round = 0; round < 100; ++round)
    for (ThreadTeam* team : {&one, &two})
      team->run([&](int) {
        ++calls;
        team->barrier();
      });
  EXPECT_EQ(calls.load(), 500);
}

// A member that has called another team is still who it was at its own team's barriers.
TEST(ThreadTeam, AMemberOfOneTeamCallsAnother) {
  ThreadTeam one({-1, -1, -1}), two({-1, -1});
  std::atomic<int> calls{0}, seen{0};
  for (int round = 1; round <= 50; ++round)
    one.run([&](int thread) {
      if (thread == 2)
        two.run([&](int) {
          ++calls;
          two.barrier();
        });
      one.barrier();
      seen += calls.load() == 2 * round;
      one.barrier();
    });
  EXPECT_EQ(seen.load(), 150);
}

TEST(ThreadTeam, FlushesDenormalsInsideAndRestoresOutside) {
  volatile float tiny = 1e-38f;
  volatile float quarter = 0.25f;
  std::atomic<int> zeros{0};
  ThreadTeam team({-1, -1});
  team.run([&](int) {
    if (tiny * quarter == 0.0f) ++zeros;
  });
  EXPECT_EQ(zeros.load(), 2);
  EXPECT_NE(tiny * quarter, 0.0f);
}

}  // namespace
}  // namespace millrace
