// Against made-up machines: what /proc and /sys would say there.
#include "base/granted_memory.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>
#include <string>

#include "base/cgroup.h"
#include "base/units.h"

namespace millrace {
namespace {

class GrantedMemoryTest : public ::testing::Test {
 protected:
  GrantedMemoryTest()
      : root_(std::filesystem::path(::testing::TempDir()) /
              ("millrace_memory_" + std::to_string(::getpid()))) {
    std::filesystem::remove_all(root_);
    put("proc/meminfo",
        "MemTotal:       16777216 kB\nMemFree:         1048576 kB\nMemAvailable:    8388608 kB\nBuffers: 1 "
        "kB\n");
  }
  ~GrantedMemoryTest() override { std::filesystem::remove_all(root_); }
  void put(const std::string& path, const std::string& content) const {
    std::filesystem::create_directories((root_ / path).parent_path());
    std::ofstream(root_ / path) << content;
  }
  std::string gib(double count) const { return std::to_string(static_cast<uint64_t>(count * kGiB)) + "\n"; }
  const std::filesystem::path root_;
};

TEST_F(GrantedMemoryTest, TheMachineAlone) {
  const GrantedMemory granted = granted_memory(root_);
  EXPECT_EQ(granted.total_bytes, 16 * kGiB);
  EXPECT_EQ(granted.available_bytes, 8 * kGiB);
}

// A service in a slice: no limit of its own, one on the slice above it.
TEST_F(GrantedMemoryTest, TheTightestOfV2FromOurOwnUp) {
  put("proc/self/cgroup", "0::/tokens.slice/millrace.service\n");
  put("sys/fs/cgroup/tokens.slice/millrace.service/memory.max", "max\n");
  put("sys/fs/cgroup/tokens.slice/memory.max", gib(6));
  put("sys/fs/cgroup/tokens.slice/memory.current", gib(5));
  put("sys/fs/cgroup/tokens.slice/memory.stat",
      "anon 5\nfile 9\ninactive_file " + gib(3) + "active_file 1\n");
  GrantedMemory granted = granted_memory(root_);
  EXPECT_EQ(granted.total_bytes, 6 * kGiB);
  EXPECT_EQ(granted.available_bytes, 4 * kGiB) << "files nobody reads can go";
  put("sys/fs/cgroup/tokens.slice/millrace.service/memory.max", gib(2));
  put("sys/fs/cgroup/tokens.slice/millrace.service/memory.current", gib(3));  // lowered under what it held
  granted = granted_memory(root_);
  EXPECT_EQ(granted.total_bytes, 2 * kGiB);
  EXPECT_EQ(granted.available_bytes, 0u);
}

// A container sees its own group as the root.
TEST_F(GrantedMemoryTest, AContainersRoot) {
  put("proc/self/cgroup", "0::/\n");
  put("sys/fs/cgroup/memory.max", gib(1));
  put("sys/fs/cgroup/memory.current", gib(0.25));
  EXPECT_EQ(granted_memory(root_).total_bytes, kGiB);
  EXPECT_EQ(granted_memory(root_).available_bytes, kGiB * 3 / 4);
}

TEST_F(GrantedMemoryTest, V1HasNamesAndAHierarchyOfItsOwn) {
  put("proc/self/cgroup",
      "5:cpuset,memory_other:/elsewhere\n4:memory:/jobs/one\n1:cpu,cpuacct:/jobs\n0::/\n");
  put("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
  put("sys/fs/cgroup/memory/jobs/memory.limit_in_bytes", gib(4));
  put("sys/fs/cgroup/memory/jobs/memory.usage_in_bytes", gib(2));
  put("sys/fs/cgroup/memory/jobs/memory.stat", "inactive_file 5\ntotal_inactive_file " + gib(1));
  put("sys/fs/cgroup/memory/elsewhere/memory.limit_in_bytes", "4096\n");
  const GrantedMemory granted = granted_memory(root_);
  EXPECT_EQ(granted.total_bytes, 4 * kGiB);
  EXPECT_EQ(granted.available_bytes, 3 * kGiB);
}

TEST_F(GrantedMemoryTest, FoldersGoFromOurOwnToTheRoot) {
  put("proc/self/cgroup", "nonsense\n2:cpu,cpuacct:/a/b\n0::/c\n");
  const auto folders = cgroup_folders("cpu", root_);
  const auto at = root_ / "sys/fs/cgroup";
  ASSERT_EQ(folders.size(), 5u);
  EXPECT_EQ(folders[0].path, at / "cpu/a/b");
  EXPECT_EQ(folders[2].path, at / "cpu");
  EXPECT_FALSE(folders[2].v2);
  EXPECT_EQ(folders[3].path, at / "c");
  EXPECT_EQ(folders[4].path, at);
  EXPECT_TRUE(folders[4].v2);
}

TEST(GrantedMemory, ThisMachine) {
  const GrantedMemory granted = granted_memory();
  EXPECT_GT(granted.total_bytes, 64 * kMiB);
  EXPECT_GT(granted.available_bytes, 0u);
  EXPECT_LE(granted.available_bytes, granted.total_bytes);
}

}  // namespace
}  // namespace millrace
