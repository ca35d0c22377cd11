#include "apps/progress.h"

#include <gtest/gtest.h>

namespace millrace::apps {
namespace {

TEST(HumanBytes, PicksTheUnit) {
  EXPECT_EQ(human_bytes(0), "0 B");
  EXPECT_EQ(human_bytes(999), "999 B");
  EXPECT_EQ(human_bytes(98'362'432), "98.4 MB");
  EXPECT_EQ(human_bytes(999'960), "1.0 MB");
  EXPECT_EQ(human_bytes(2'000'000'000), "2.0 GB");
}

TEST(HumanDuration, PicksTheUnit) {
  EXPECT_EQ(human_duration(-1), "0 s");
  EXPECT_EQ(human_duration(59.4), "59 s");
  EXPECT_EQ(human_duration(59.6), "1 min 0 s");
  EXPECT_EQ(human_duration(200), "3 min 20 s");
  EXPECT_EQ(human_duration(7500), "2 h 5 min");
  EXPECT_EQ(human_duration(1e300), "277777 h 46 min");
}

}  // namespace
}  // namespace millrace::apps
