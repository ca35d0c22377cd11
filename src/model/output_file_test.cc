// The file that appears whole or not at all, where its neighbours, its disk or its journal misbehave. What
// packing makes of it is in pack_resume_test.
#include "model/internal/output_file.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/file.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <fstream>
#include <functional>
#include <optional>
#include <thread>
#include <utility>

#include "base/file.h"
#include "model/fixtures/own_folder.h"

namespace {

// What the disk says, for the calls below in place of the C library's: 0, or errno.
std::atomic<int> storing_error{0}, flush_error{0};
std::atomic<int> times_dropped{0};  // pages of a file's whole range
std::function<void()> before_lock;  // what happens, once, before the next file is locked

int answer(int error, long otherwise) {
  if (error == 0) return static_cast<int>(otherwise);
  errno = error;
  return -1;
}

}  // namespace

extern "C" {
int sync_file_range(int fd, off64_t offset, off64_t bytes, unsigned int flags) {
  const int error = (flags & SYNC_FILE_RANGE_WAIT_AFTER) != 0 ? storing_error.load() : 0;
  return answer(error, ::syscall(SYS_sync_file_range, fd, offset, bytes, flags));
}
int fsync(int fd) { return answer(flush_error, ::syscall(SYS_fsync, fd)); }
int flock(int fd, int operation) {
  if (const auto first = std::exchange(before_lock, nullptr)) first();
  return answer(::syscall(SYS_flock, fd, operation) == 0 ? 0 : errno, 0);
}
int posix_fadvise(int fd, off_t offset, off_t bytes, int advice) {
  if (offset == 0 && bytes == 0 && advice == POSIX_FADV_DONTNEED) ++times_dropped;
  return ::syscall(SYS_fadvise64, fd, offset, bytes, advice) == 0 ? 0 : errno;
}
}

namespace millrace::model {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

class Output : public fixtures::OwnFolderTest {
 protected:
  void SetUp() override {
    OwnFolderTest::SetUp();
    out = folder / "out";
  }
  void TearDown() override {
    storing_error = flush_error = 0;
    OwnFolderTest::TearDown();
  }
  OutputFile opened() const {
    auto file = OutputFile::open(out, {.size = bytes.size(), .identity = 3, .max_entries = 8, .on_wait = {}});
    EXPECT_TRUE(file.has_value()) << (file ? "" : file.error().message);
    return std::move(*file);
  }
  std::span<const std::byte> content() const { return std::as_bytes(std::span(bytes)); }

  const std::string bytes = std::string(8192, 'x');
  fs::path out;
};

TEST_F(Output, WhatStandsBehindADamagedEntryIsGone) {
  {
    OutputFile file = opened();
    for (uint32_t i = 0; i < 3; ++i) ASSERT_TRUE(file.record({1, i, i}).has_value());
  }
  {
    std::fstream journal(out.string() + ".journal", std::ios::in | std::ios::out | std::ios::binary);
    journal.seekp(32 + 24 + 8).put('!');  // the second entry's checksum
  }
  {
    OutputFile file = opened();
    ASSERT_EQ(file.found().size(), 1u);
    ASSERT_TRUE(file.record({1, 7, 7}).has_value());
  }
  const OutputFile file = opened();
  ASSERT_EQ(file.found().size(), 2u) << "the third of another life came back";
  EXPECT_EQ(file.found()[1].index, 7u);
}

// The kernel tells of a lost page once: who does not listen then hears nothing from fsync.
TEST_F(Output, BytesThatDidNotReachTheDiskAreAnError) {
  OutputFile file = opened();
  ASSERT_TRUE(file.write_at(0, content()).has_value());
  EXPECT_TRUE(file.forget(0, bytes.size()).has_value());
  storing_error = EIO;
  const auto lost = file.forget(0, bytes.size());
  ASSERT_FALSE(lost.has_value());
  EXPECT_THAT(lost.error().message, HasSubstr("out.partial"));
  storing_error = ENOSPC;
  EXPECT_EQ(file.forget(0, bytes.size()).error().code, Code::resource_exhausted);
  storing_error = ENOSYS;  // this kernel cannot: then fsync tells
  EXPECT_TRUE(file.forget(0, bytes.size()).has_value());
}

// Lost pages stay in the page cache as if they were stored: whoever continues has to compare what the disk
// has.
TEST_F(Output, AFailedFlushIsNotReadBackFromMemory) {
  OutputFile file = opened();
  ASSERT_TRUE(file.write_at(0, content()).has_value());
  flush_error = EIO;
  const int before = times_dropped;
  const auto committed = file.commit(bytes.size());
  ASSERT_FALSE(committed.has_value());
  EXPECT_THAT(committed.error().message, HasSubstr("cannot flush"));
  EXPECT_EQ(times_dropped, before + 1);
  EXPECT_FALSE(fs::exists(out));
}

TEST_F(Output, AFolderUnderTheNameIsRefusedBeforeTheWork) {
  fs::create_directories(out);
  const auto file = OutputFile::open(out, {.size = 8, .identity = 3, .max_entries = 8, .on_wait = {}});
  ASSERT_FALSE(file.has_value());
  EXPECT_EQ(file.error().code, Code::invalid_argument);
  EXPECT_THAT(file.error().message, HasSubstr("is a folder"));
  EXPECT_EQ(std::distance(fs::directory_iterator(folder), {}), 1);
}

// Between the remover's look and its lock one writer ends and another begins.
TEST_F(Output, RemovingSparesAWriterThatCameJustThen) {
  std::optional<OutputFile> first = opened(), second;
  ASSERT_TRUE(first->write_at(0, content()).has_value());
  before_lock = [&] {
    ASSERT_TRUE(first->commit(bytes.size()).has_value());
    first.reset();
    second.emplace(opened());
  };
  remove_unfinished_output(out);
  ASSERT_TRUE(second.has_value());
  ASSERT_TRUE(second->write_at(0, content()).has_value());
  const auto committed = second->commit(bytes.size());
  ASSERT_TRUE(committed.has_value()) << committed.error().message;

  fs::remove(out);
  second.reset();
  std::optional<OutputFile> third;  // where there was none
  before_lock = [&] { third.emplace(opened()); };
  remove_unfinished_output(out);
  ASSERT_TRUE(third.has_value());
  ASSERT_TRUE(third->write_at(0, content()).has_value());
  EXPECT_TRUE(third->commit(bytes.size()).has_value());
}

// One that begins or ends its work at any time.
TEST_F(Output, RemovingWhatIsUnfinishedSparesAWriter) {
  std::atomic<bool> stop{false};
  std::jthread remover([&] {
    while (!stop) {
      remove_unfinished_output(out);
      std::this_thread::sleep_for(
          std::chrono::microseconds(50));  // without a rest the writer starves for minutes
    }
  });
  for (int i = 0; i < 40; ++i) {
    OutputFile file = opened();
    ASSERT_TRUE(file.write_at(0, content()).has_value());
    const auto committed = file.commit(bytes.size());
    ASSERT_TRUE(committed.has_value()) << i << ": " << committed.error().message;
    ASSERT_EQ(read_file(out, 1 << 20).value_or(""), bytes);
  }
  stop = true;
}

}  // namespace
}  // namespace millrace::model
