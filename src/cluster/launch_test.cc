#include "cluster/launch.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <fstream>

#include "cluster/status_page.h"
#include "cluster/testing/fixture.h"

namespace millrace::cluster {
namespace {

GrantedCpus granted(std::vector<int> cpus, int cores, double quota = 0) {
  GrantedCpus g;
  g.cpus = std::move(cpus);
  g.physical_cores = cores;
  g.quota_cores = quota;
  return g;
}
using Parts = std::vector<std::vector<int>>;

TEST(PartitionCpus, SplitsPhysicalCoresEvenly) {
  EXPECT_EQ(partition_cpus(granted({0, 1, 2, 3}, 4), 1), (Parts{{0, 1, 2, 3}}));
  EXPECT_EQ(partition_cpus(granted({0, 1, 2, 3}, 4), 2), (Parts{{0, 1}, {2, 3}}));
  EXPECT_EQ(partition_cpus(granted({0, 1, 2, 3, 4}, 5), 2), (Parts{{0, 1}, {2, 3, 4}}));
  EXPECT_EQ(partition_cpus(granted({0, 2, 4, 6, 1, 3, 5, 7}, 4), 2),
            (Parts{{0, 2}, {4, 6}}));  // siblings idle
}
TEST(PartitionCpus, MoreGroupsThanCoresShare) {
  EXPECT_EQ(partition_cpus(granted({5, 7}, 2), 4), (Parts{{5}, {5}, {7}, {7}}));
  EXPECT_EQ(partition_cpus(granted({3}, 1), 2), (Parts{{3}, {3}}));
}
TEST(PartitionCpus, AQuotaBelowTheMaskIsNotPinned) {
  EXPECT_EQ(partition_cpus(granted({0, 1, 2, 3, 4, 5, 6, 7}, 8, 4.0), 2), (Parts{{-1, -1}, {-1, -1}}));
  EXPECT_EQ(partition_cpus(granted({0, 1}, 2, 2.0), 2), (Parts{{0}, {1}}));
}

class RuntimeDirectoryTest : public ::testing::Test {
 protected:
  RuntimeDirectoryTest() {
    ::chmod(folder_.file("").c_str(), 0700);
    ::setenv("XDG_RUNTIME_DIR", folder_.file("").c_str(), 1);
  }
  ~RuntimeDirectoryTest() override { ::unsetenv("XDG_RUNTIME_DIR"); }
  testing::TemporaryFolder folder_;
};

TEST_F(RuntimeDirectoryTest, IsPrivateAndGoes) {
  std::filesystem::path path;
  {
    const auto runtime = RuntimeDirectory::create();
    ASSERT_TRUE(runtime) << runtime.error().message;
    path = runtime->path();
    struct stat info {};
    ASSERT_EQ(::stat(path.c_str(), &info), 0);
    EXPECT_EQ(info.st_mode & 0777, 0700u);
    EXPECT_EQ(path.parent_path(), std::filesystem::path(folder_.file("")).parent_path());
    std::ofstream(runtime->group_socket(0)) << "x";
  }
  EXPECT_FALSE(std::filesystem::exists(path));
}

TEST_F(RuntimeDirectoryTest, SweepsWhatTheKilledLeftAndNothingElse) {
  const auto live = RuntimeDirectory::create();
  ASSERT_TRUE(live);
  std::filesystem::create_directory(folder_.file("millrace-foreign"));  // no lock file: not ours
  ::chmod(folder_.file("millrace-foreign").c_str(), 0700);
  const pid_t pid = ::fork();
  if (pid == 0) {
    auto left = RuntimeDirectory::create();
    std::ofstream(folder_.file("left")) << left->path().string();
    ::_exit(left ? 0 : 1);  // without destructors, as a kill
  }
  int status = 1;
  ASSERT_EQ(::waitpid(pid, &status, 0), pid);
  ASSERT_EQ(status, 0);
  std::string left;
  std::ifstream(folder_.file("left")) >> left;
  ASSERT_TRUE(std::filesystem::exists(left));
  ASSERT_TRUE(RuntimeDirectory::create());
  EXPECT_FALSE(std::filesystem::exists(left));
  EXPECT_TRUE(std::filesystem::exists(live->path()));
  EXPECT_TRUE(std::filesystem::exists(folder_.file("millrace-foreign")));
}

// A supervisor that died between making its folder and naming its lock: nothing else says whose that was.
TEST_F(RuntimeDirectoryTest, SweepsWhatDiedAtItsStartOnceItIsOld) {
  const auto make = [&](const std::string& name, bool old, const std::string& more = "") {
    const std::filesystem::path folder = folder_.file("millrace-" + name);
    std::filesystem::create_directory(folder);
    ::chmod(folder.c_str(), 0700);
    std::ofstream(folder / "lock.new");
    if (!more.empty()) std::ofstream(folder / more);
    if (old)
      std::filesystem::last_write_time(
          folder, std::filesystem::file_time_type::clock::now() - std::chrono::minutes(5));
    return folder;
  };
  const auto young = make("young", false), old = make("old", true), full = make("full", true, "g0.sock");
  const auto held = make("held", true);  // old, but somebody has it
  const int fd = ::open((held / "lock.new").c_str(), O_RDWR);
  ASSERT_EQ(::flock(fd, LOCK_EX), 0);
  ASSERT_TRUE(RuntimeDirectory::create());
  EXPECT_FALSE(std::filesystem::exists(old));
  for (const auto& kept : {young, full, held}) EXPECT_TRUE(std::filesystem::exists(kept)) << kept;
  ::close(fd);
}

TEST(ListenTcp, GivesTheRealPortAndExplainsFailure) {
  const auto first = listen_tcp("127.0.0.1", 0);
  ASSERT_TRUE(first) << first.error().message;
  EXPECT_NE(first->port, 0);
  const auto taken = listen_tcp("127.0.0.1", first->port);
  ASSERT_FALSE(taken);
  EXPECT_NE(taken.error().message.find(std::to_string(first->port)), std::string::npos)
      << taken.error().message;
  EXPECT_FALSE(listen_tcp("no such host", 1));
  ::close(first->fd);
}

TEST(StatusPage, IsSharedBetweenMappings) {
  testing::TemporaryFolder folder;
  const auto ours = StatusPage::create(folder.file("page"));
  ASSERT_TRUE(ours);
  (*ours)->clear_for_start(7);
  const auto theirs = StatusPage::open(folder.file("page"));
  ASSERT_TRUE(theirs) << theirs.error().message;
  EXPECT_EQ((*theirs)->fields().restarts.load(), 7u);
  (*theirs)->fields().steps = 9;
  (*theirs)->set_message(std::string(5000, 'm'));
  EXPECT_EQ((*ours)->fields().steps.load(), 9u);
  EXPECT_EQ((*ours)->message().size(), sizeof(StatusPage::Fields::message) - 1);
}

TEST(StatusPage, OtherFilesAreRefused) {
  testing::TemporaryFolder folder;
  EXPECT_FALSE(StatusPage::open(folder.file("none")));
  std::ofstream(folder.file("short")) << "x";
  EXPECT_FALSE(StatusPage::open(folder.file("short")));
  std::ofstream(folder.file("zeros")) << std::string(4096, '\0');
  EXPECT_FALSE(StatusPage::open(folder.file("zeros")));
}

}  // namespace
}  // namespace millrace::cluster
