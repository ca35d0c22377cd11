#include "hub/hub.h"

#include <gtest/gtest.h>

#include <cstdlib>

#include "base/file.h"
#include "hub/internal/store.h"

namespace millrace::hub {
namespace {

class HubTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string name = (std::filesystem::temp_directory_path() / "millrace-hub-test-XXXXXX").string();
    ASSERT_NE(::mkdtemp(name.data()), nullptr);
    home_ = name;
    ::setenv("MILLRACE_HOME", name.c_str(), 1);
  }
  void TearDown() override { std::filesystem::remove_all(home_); }
  std::filesystem::path home_;
};

TEST_F(HubTest, ResolveSaysWhatToDo) {
  const auto absent = resolve("smollm2");
  ASSERT_FALSE(absent);
  EXPECT_EQ(absent.error().code, Code::not_found);
  EXPECT_NE(absent.error().message.find("millrace pull smollm2"), std::string::npos);
  const auto unknown = resolve("smollm3");
  ASSERT_FALSE(unknown);
  EXPECT_EQ(unknown.error().code, Code::invalid_argument);
  EXPECT_NE(unknown.error().message.find("smollm2"), std::string::npos);
  EXPECT_FALSE(resolve(""));
  EXPECT_EQ(resolve("./nothing.gguf").error().code, Code::not_found);
}

TEST_F(HubTest, ResolvesPathsAndPulledModels) {
  std::filesystem::create_directories(home_ / "models" / "smollm2");
  ASSERT_TRUE(write_file_atomic(home_ / "models" / "smollm2" / "x.gguf", "GGUF"));
  EXPECT_EQ(*resolve("smollm2"), home_ / "models" / "smollm2" / "x.gguf");
  EXPECT_EQ(*resolve((home_ / "models" / "smollm2").string()), home_ / "models" / "smollm2" / "x.gguf");
  EXPECT_EQ(*pull("smollm2", {}), home_ / "models" / "smollm2" / "x.gguf");  // here already: no network
  std::filesystem::create_directories(home_ / "hf-folder");
  EXPECT_EQ(resolve((home_ / "hf-folder").string()).error().code, Code::not_found);
  ASSERT_TRUE(write_file_atomic(home_ / "hf-folder" / "config.json", "{}"));
  EXPECT_EQ(*resolve((home_ / "hf-folder").string()), home_ / "hf-folder");
}

TEST_F(HubTest, NamesCannotLeaveTheFolder) {
  EXPECT_EQ(*internal::folder_name("hf:owner/repo:file.gguf"), "hf--owner--repo--file.gguf");
  for (const char* bad : {"", "..", "hf:../x", ".hidden", "a b", "a\nb"}) EXPECT_FALSE(internal::folder_name(bad)) << bad;
  EXPECT_FALSE(internal::folder_name(std::string(300, 'a')));
}

TEST_F(HubTest, ListsAndRemoves) {
  EXPECT_TRUE(list()->empty());
  std::filesystem::create_directories(home_ / "models" / "smollm2");
  ASSERT_TRUE(write_file_atomic(home_ / "models" / "smollm2" / "x.gguf", std::string(1000, 'x')));
  const auto models = list();
  ASSERT_EQ(models->size(), 1u);
  EXPECT_EQ((*models)[0].name, "smollm2");
  EXPECT_GE((*models)[0].size_bytes, 1000u);
  EXPECT_GE(*remove("smollm2"), 1000u);
  EXPECT_TRUE(list()->empty());
  EXPECT_EQ(remove("smollm2").error().code, Code::not_found);
}

}  // namespace
}  // namespace millrace::hub
