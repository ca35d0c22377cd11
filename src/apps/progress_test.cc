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

}  // namespace
}  // namespace millrace::apps
