#include "base/thread_team.h"

#include <gtest/gtest.h>

#include <atomic>
#include <vector>

namespace millrace {
namespace {

TEST(ThreadTeam, EveryMemberRunsOnceAndBarrierOrders) {
  ThreadTeam team({-1, -1, -1});
  std::vector<int> first(3), sums(3);
  for (int round = 0; round < 2000; ++round) {
    team.run([&](int thread) {
      first[static_cast<size_t>(thread)] = round + thread;
      team.barrier();
      sums[static_cast<size_t>(thread)] = first[0] + first[1] + first[2];
      team.barrier();
    });
    for (const int sum : sums) ASSERT_EQ(sum, 3 * round + 3);
  }
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
