#include "hub/hub.h"

#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>
#include <fstream>

#include "hub/internal/store.h"
#include "model/packed_model.h"

namespace millrace::hub {
namespace {

namespace fs = std::filesystem;

class HubTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = (fs::temp_directory_path() / "hub_test.XXXXXX").string();
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    home_ = pattern;
    ::setenv("MILLRACE_HOME", home_.c_str(), 1);
  }
  void TearDown() override { fs::remove_all(home_); }

  // A model as a finished pull leaves it.
  fs::path place(std::string_view model, std::string_view file) {
    const auto name = parse_model_name(model);
    EXPECT_TRUE(name);
    fs::create_directories(partial_folder(*name));
    std::ofstream(partial_folder(*name) / file) << "GGUF";
    const auto path = finish(*name, file);
    EXPECT_TRUE(path);
    return path.value_or(fs::path());
  }

  fs::path home_;
};

TEST_F(HubTest, WhatIsAbsentNamesTheCommandThatFetchesIt) {
  const auto path = resolve("smollm2");
  ASSERT_FALSE(path);
  EXPECT_EQ(path.error().code, Code::not_found);
  EXPECT_NE(path.error().message.find("millrace pull smollm2"), std::string::npos);
  EXPECT_TRUE(list().empty());
}

TEST_F(HubTest, PulledModelsAreFoundListedAndRemoved) {
  const fs::path small = place("smollm2", "model.gguf"), other = place("hf:own/thing:b.gguf", "b.gguf");
  EXPECT_EQ(resolve("smollm2").value_or(fs::path()), small);
  EXPECT_EQ(pull("hf:own/thing:b.gguf").value_or(fs::path()), other);  // already there: no network
  const auto models = list();
  ASSERT_EQ(models.size(), 2u);
  EXPECT_EQ(models[0].name, "hf:own/thing:b.gguf");
  EXPECT_EQ(models[1].name, "smollm2");
  EXPECT_GT(models[1].bytes, 4u);
  EXPECT_TRUE(remove("smollm2"));
  EXPECT_FALSE(fs::exists(small.parent_path()));
  EXPECT_EQ(remove("smollm2").error().code, Code::not_found);
  EXPECT_EQ(list().size(), 1u);
}

TEST_F(HubTest, PackedFilesOfAModelAreListedAndRemovedWithIt) {
  const fs::path checkpoint = place("smollm2", "model.gguf");
  const std::string plain = model::packed_file_name(checkpoint, model::PackType::int8).value();
  const std::string calibrated = model::calibrated_file_name(plain, 7),
                    begun = model::calibrated_file_name(plain, 8);
  fs::create_directories(packed_folder());
  for (const std::string& file :
       {plain, calibrated, begun + ".partial", begun + ".journal", std::string("another.int8.mrpack")})
    std::ofstream(packed_folder() / file) << "12345";
  const auto models = list();
  ASSERT_EQ(models.size(), 1u);
  ASSERT_EQ(models[0].packed.size(), 2u);
  EXPECT_EQ(models[0].packed[1].path.filename(), calibrated);
  EXPECT_EQ(models[0].packed[1].bytes, 5u);
  ASSERT_TRUE(remove("smollm2"));
  EXPECT_EQ(std::distance(fs::directory_iterator(packed_folder()), {}), 1) << "only the other model's";
}

TEST_F(HubTest, AFolderWithoutAManifestIsNobodysModel) {
  const auto name = parse_model_name("smollm2");
  fs::create_directories(model_folder(*name));
  std::ofstream(model_folder(*name) / "model.gguf") << "GGUF";
  EXPECT_FALSE(resolve("smollm2"));
  std::ofstream(model_folder(*name) / "millrace.json")
      << R"({"model": "smollm2", "checkpoint": "../../x.gguf"})";
  EXPECT_FALSE(resolve("smollm2"));
}

TEST_F(HubTest, NamesThatLeadElsewhereAreRefused) {
  for (const char* model :
       {"hf:../x", "hf:a", "hf:a/b/c", "hf:a/b:../c.gguf", "hf:a/.b", "pypi:-r", "pypi:a/b", ""})
    EXPECT_EQ(resolve(model).error().code, Code::invalid_argument) << model;
  for (const char* file : {"", ".", "..", ".x", "a/b", "a\\b", "a b", "ä"})
    EXPECT_FALSE(safe_file_name(file)) << file;
  EXPECT_FALSE(safe_file_name(std::string(201, 'a')));
  EXPECT_TRUE(safe_file_name("model-00001-of-00002.safetensors"));
}

TEST_F(HubTest, APathIsTheUsersOwn) {
  const fs::path file = home_ / "own.gguf";
  std::ofstream(file.string()) << "GGUF";
  EXPECT_EQ(resolve(file.string()).value_or(fs::path()), file);
  EXPECT_EQ(remove(file.string()).error().code, Code::invalid_argument);
  EXPECT_TRUE(fs::exists(file));
}

TEST_F(HubTest, ALockIsHeldByOne) {
  const auto name = parse_model_name("smollm2");
  int waited = 0;
  {
    const auto lock = StoreLock::acquire(*name, {});
    ASSERT_TRUE(lock);
    const auto second = StoreLock::acquire(*name, [&] { return ++waited < 2; });
    EXPECT_EQ(second.error().code, Code::cancelled);
    EXPECT_EQ(waited, 2);
  }
  EXPECT_TRUE(StoreLock::acquire(*name, {}));
}

}  // namespace
}  // namespace millrace::hub
