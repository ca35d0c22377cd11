#include "base/file.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <fstream>

namespace {

// How the calls below behave in place of the C library's.
size_t piece_bytes = SIZE_MAX;     // moved by a call at most
bool interrupted = false;          // every second call, before it has moved anything
int64_t taken_in_all = INT64_MAX;  // pwrite says 0 then
int calls = 0;

bool interrupt() {
  if (!interrupted || ++calls % 2 == 0) return false;
  errno = EINTR;
  return true;
}

}  // namespace

extern "C" {
ssize_t pwrite(int fd, const void* bytes, size_t count, off_t offset) {
  if (interrupt()) return -1;
  if (taken_in_all == 0) return 0;
  count = std::min({count, piece_bytes, static_cast<size_t>(taken_in_all)});
  taken_in_all -= static_cast<int64_t>(count);
  return ::syscall(SYS_pwrite64, fd, bytes, count, offset);
}
ssize_t pread(int fd, void* bytes, size_t count, off_t offset) {
  if (interrupt()) return -1;
  return ::syscall(SYS_pread64, fd, bytes, std::min(count, piece_bytes), offset);
}
}

namespace millrace {
namespace {

std::filesystem::path fresh_folder() {
  std::string name = (std::filesystem::temp_directory_path() / "millrace-file-test-XXXXXX").string();
  EXPECT_NE(::mkdtemp(name.data()), nullptr);
  return name;
}

TEST(WriteFileAtomic, ReplacesAndLeavesNothingBeside) {
  const auto folder = fresh_folder();
  ASSERT_TRUE(write_file_atomic(folder / "a", "one"));
  ASSERT_TRUE(write_file_atomic(folder / "a", std::string(300000, 'x')));
  EXPECT_EQ(read_file(folder / "a", 1 << 20)->size(), 300000u);
  int count = 0;
  for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator(folder)) ++count;
  EXPECT_EQ(count, 1);
  std::filesystem::remove_all(folder);
}

TEST(ReadFile, RefusesAboveLimitAndNamesWhatIsMissing) {
  const auto folder = fresh_folder();
  ASSERT_TRUE(write_file_atomic(folder / "a", "0123456789"));
  const auto over = read_file(folder / "a", 9);
  ASSERT_FALSE(over);
  EXPECT_EQ(over.error().code, Code::invalid_argument);
  const auto missing = read_file(folder / "b", 9);
  ASSERT_FALSE(missing);
  EXPECT_EQ(missing.error().code, Code::not_found);
  EXPECT_NE(missing.error().message.find("b"), std::string::npos);
  // Paths that no second try will mend.
  EXPECT_EQ(read_file(folder, 9).error().code, Code::invalid_argument);
  EXPECT_EQ(read_file(folder / "a" / "b", 9).error().code, Code::invalid_argument);
  EXPECT_EQ(read_file(folder / std::string(300, 'x'), 9).error().code, Code::invalid_argument);
  std::filesystem::remove_all(folder);
}

class WholePieces : public testing::Test {
 protected:
  WholePieces() : folder(fresh_folder()) {
    fd = ::open((folder / "a").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    EXPECT_GE(fd, 0);
  }
  ~WholePieces() override {
    ::close(fd);
    piece_bytes = SIZE_MAX;
    interrupted = false;
    taken_in_all = INT64_MAX;
    std::filesystem::remove_all(folder);
  }
  static std::span<const std::byte> bytes_of(std::string_view text) { return std::as_bytes(std::span(text)); }
  std::filesystem::path folder;
  int fd = -1;
};

TEST_F(WholePieces, InHoweverManyCalls) {
  piece_bytes = 3;
  interrupted = true;
  ASSERT_TRUE(write_all(fd, 5, bytes_of("0123456789")));
  EXPECT_EQ(read_file(folder / "a", 99).value_or(""), std::string(5, '\0') + "0123456789");
  std::string read(7, '?');
  EXPECT_EQ(read_all(fd, 6, std::as_writable_bytes(std::span(read))), 7);
  EXPECT_EQ(read, "1234567");
  EXPECT_EQ(read_all(fd, 13, std::as_writable_bytes(std::span(read))), 2) << "the file ends there";
  EXPECT_EQ(read, "8934567");
  EXPECT_EQ(read_all(fd, 99, std::as_writable_bytes(std::span(read))), 0);
}

TEST_F(WholePieces, WhatTheSystemDoesNotTakeIsAnErrorAndNoHang) {
  taken_in_all = 4;
  errno = 0;
  EXPECT_FALSE(write_all(fd, 0, bytes_of("0123456789")));
  EXPECT_EQ(errno, EIO);
  taken_in_all = 4;
  EXPECT_FALSE(write_file_atomic(folder / "b", "0123456789"));
  EXPECT_FALSE(std::filesystem::exists(folder / "b"));
  taken_in_all = INT64_MAX;
  const int read_only = ::open((folder / "a").c_str(), O_RDONLY | O_CLOEXEC);
  EXPECT_FALSE(write_all(read_only, 0, bytes_of("0")));
  EXPECT_EQ(errno, EBADF);
  ::close(read_only);
  char byte = 0;
  EXPECT_EQ(read_all(read_only, 0, std::as_writable_bytes(std::span(&byte, 1))), -1);
  EXPECT_EQ(errno, EBADF);
}

TEST(MappedFile, HugePagesHoldTheSameBytes) {
  const auto folder = fresh_folder();
  std::string content(5 << 20, 'x');
  for (size_t i = 0; i < content.size(); i += 4096) content[i] = static_cast<char>(i >> 12);
  ASSERT_TRUE(write_file_atomic(folder / "a", content));
  const auto file = MappedFile::open(folder / "a");
  ASSERT_TRUE(file);
  file->advise_huge_pages();
  MappedFile().advise_huge_pages();  // nothing, quietly
  EXPECT_EQ(std::memcmp(file->bytes().data(), content.data(), content.size()), 0);
  std::filesystem::remove_all(folder);
}

TEST(MappedFile, ComesIntoMemoryWithTheSameBytesWhateverPagesTheCacheHadThemIn) {
  const auto folder = fresh_folder();
  std::string content((9 << 20) + 12345, 'x');
  for (size_t i = 0; i < content.size(); i += 512) content[i] = static_cast<char>(i >> 9);
  {
    std::ofstream out(folder / "a", std::ios::binary);  // small pages, dirty ones
    for (size_t i = 0; i < content.size(); i += 4096)
      out.write(&content[i], static_cast<std::streamsize>(std::min<size_t>(4096, content.size() - i)))
          .flush();
  }
  const auto file = MappedFile::open(folder / "a");
  ASSERT_TRUE(file);
  volatile std::byte first = file->bytes()[0];
  (void)first;
  EXPECT_EQ(reinterpret_cast<uintptr_t>(file->bytes().data()) % (2 << 20), 0u)
      << "else no page is a huge one";
  EXPECT_EQ(file->bring_into_memory(), MappedFile::Place::cache);
  EXPECT_EQ(std::memcmp(file->bytes().data(), content.data(), content.size()), 0);
  std::string resident((content.size() + 4095) / 4096, 0);
  ASSERT_EQ(::mincore(const_cast<std::byte*>(file->bytes().data()), content.size(),
                      reinterpret_cast<unsigned char*>(resident.data())),
            0);
  EXPECT_EQ(std::ranges::count_if(resident, [](char page) { return (page & 1) == 0; }), 0);
  // Another file of that name is none of its business.
  std::filesystem::rename(folder / "a", folder / "b");
  ASSERT_TRUE(write_file_atomic(folder / "a", "another"));
  EXPECT_EQ(file->bring_into_memory(), MappedFile::Place::cache);
  EXPECT_EQ(std::memcmp(file->bytes().data(), content.data(), content.size()), 0);
  EXPECT_EQ(MappedFile().bring_into_memory(), MappedFile::Place::nowhere);
  std::filesystem::remove_all(folder);
}

TEST(MappedFile, ACopyOfItsOwnStandsAtTheSameAddresses) {
  const auto folder = fresh_folder();
  std::string content((5 << 20) + 77, 'x');
  for (size_t i = 0; i < content.size(); i += 100) content[i] = static_cast<char>(i / 100);
  ASSERT_TRUE(write_file_atomic(folder / "a", content));
  {
    auto file = MappedFile::open(folder / "a");
    ASSERT_TRUE(file);
    const auto* const first = file->bytes().data();
    EXPECT_EQ(file->bring_into_memory(content.size() - 1), MappedFile::Place::cache) << "too large";
    EXPECT_EQ(file->bring_into_memory(content.size()), MappedFile::Place::own);
    EXPECT_EQ(file->bytes().data(), first);
    EXPECT_EQ(file->bring_into_memory(), MappedFile::Place::own) << "it stays one";
    EXPECT_EQ(std::memcmp(first, content.data(), content.size()), 0);
    std::filesystem::resize_file(folder / "a", 0);  // a map would raise SIGBUS
    EXPECT_EQ(std::memcmp(first, content.data(), content.size()), 0);
    const MappedFile moved = std::move(*file);
    EXPECT_EQ(std::memcmp(moved.bytes().data(), content.data(), content.size()), 0);
  }
  std::filesystem::remove_all(folder);
}

TEST(MappedFile, MapsBytesEmptyFilesAndRefusesFolders) {
  const auto folder = fresh_folder();
  ASSERT_TRUE(write_file_atomic(folder / "a", "abc"));
  ASSERT_TRUE(write_file_atomic(folder / "empty", ""));
  auto mapped = MappedFile::open(folder / "a");
  ASSERT_TRUE(mapped);
  const MappedFile moved = std::move(*mapped);
  ASSERT_EQ(moved.bytes().size(), 3u);
  EXPECT_EQ(static_cast<char>(moved.bytes()[2]), 'c');
  EXPECT_TRUE(MappedFile::open(folder / "empty")->bytes().empty());
  EXPECT_FALSE(MappedFile::open(folder));
  std::filesystem::remove_all(folder);
}

}  // namespace
}  // namespace millrace
