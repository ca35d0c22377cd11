#include "base/file.h"

#include <gtest/gtest.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <fstream>

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
