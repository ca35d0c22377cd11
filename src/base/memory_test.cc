#include "base/memory.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <utility>

#include "base/cpu.h"
#include "base/units.h"

namespace millrace {
namespace {

TEST(Buffer, IsAlignedZeroedAndMoves) {
  for (const size_t size : {size_t{1}, 3 * kMiB, 5 * kMiB}) {
    auto buffer = Buffer::allocate(size);
    ASSERT_TRUE(buffer);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer->data()) % (size >= 4 * kMiB ? 2 * kMiB : 4 * kKiB), 0u);
    EXPECT_EQ(buffer->data()[size - 1], std::byte{0});
    buffer->data()[size - 1] = std::byte{7};
    const Buffer moved = std::move(*buffer);
    EXPECT_EQ(moved.data()[size - 1], std::byte{7});
    EXPECT_EQ(moved.size_bytes(), size);
  }
}

TEST(Buffer, RefusesWhatCannotBeMapped) {
  const auto buffer = Buffer::allocate(size_t{1} << 60);
  ASSERT_FALSE(buffer);
  EXPECT_EQ(buffer.error().code, Code::resource_exhausted);
}

TEST(GrantedCpus, NamesAtLeastOneAndPinsToIt) {
  const GrantedCpus granted = granted_cpus();
  ASSERT_FALSE(granted.cpus.empty());
  EXPECT_GE(granted.threads(), 1);
  EXPECT_LE(granted.threads(), static_cast<int>(granted.cpus.size()));
  EXPECT_TRUE(pin_this_thread(granted.cpus[0]));
  EXPECT_EQ(granted_cpus().cpus, std::vector<int>{granted.cpus[0]});
  EXPECT_FALSE(pin_this_thread(-1));
}

TEST(GrantedCpus, QuotaBoundsThreads) {
  GrantedCpus granted;
  granted.cpus = {0, 1, 2, 3};
  granted.physical_cores = 4;
  EXPECT_EQ(granted.threads(), 4);
  granted.quota_cores = 1.5;
  EXPECT_EQ(granted.threads(), 2);
}

}  // namespace
}  // namespace millrace
