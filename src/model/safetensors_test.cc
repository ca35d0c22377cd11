#include "model/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>

namespace millrace::model {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

std::string file_of(std::string_view header, size_t data_bytes) {
  const uint64_t size = header.size();
  std::string bytes(reinterpret_cast<const char*>(&size), sizeof size);
  bytes.append(header);
  bytes.append(data_bytes, '\x11');
  return bytes;
}
std::span<const std::byte> span_of(const std::string& bytes) {
  return {reinterpret_cast<const std::byte*>(bytes.data()), bytes.size()};
}
std::string error_of(const std::string& bytes) {
  const auto parsed = SafetensorsFiles::parse(span_of(bytes));
  return parsed ? "" : parsed.error().message;
}

constexpr std::string_view kGood =
    R"({"__metadata__": {"format": "pt"}, "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
        "b": {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]}, "c": {"dtype": "I64", "shape": [], "data_offsets": [32, 40]}})";

TEST(Safetensors, ReadsTensors) {
  const std::string bytes = file_of(kGood, 40);
  const auto files = SafetensorsFiles::parse(span_of(bytes));
  ASSERT_TRUE(files.has_value()) << files.error().message;
  const auto& tensors = (*files)->tensors();
  ASSERT_EQ(tensors.size(), 3u);
  EXPECT_EQ(tensors[0].name, "a");
  EXPECT_EQ(tensors[0].type, SafetensorsType::f32);
  EXPECT_THAT(tensors[0].shape, ElementsAre(2, 3));
  EXPECT_EQ(tensors[0].data.size(), 24u);
  EXPECT_EQ(tensors[1].type, SafetensorsType::bf16);
  EXPECT_EQ(tensors[2].type, SafetensorsType::other);
}

TEST(Safetensors, EveryTruncationIsAnError) {
  const std::string whole = file_of(kGood, 40);
  for (size_t size = 0; size < whole.size(); ++size) {
    std::string cut = whole.substr(0, size);
    cut.shrink_to_fit();
    EXPECT_NE(error_of(cut), "") << size;
  }
}

TEST(Safetensors, RefusesWhatCannotBe) {
  const auto entry = [](std::string_view fields) {
    return error_of(file_of(std::string(R"({"t": )").append(fields) + "}", 64));
  };
  EXPECT_EQ(entry(R"({"dtype": "F32", "shape": [16], "data_offsets": [0, 64]})"), "");
  EXPECT_THAT(entry(R"({"dtype": "F32", "shape": [16], "data_offsets": [0, 60]})"),
              HasSubstr("needs 64 bytes but has 60"));
  EXPECT_THAT(entry(R"({"dtype": "F32", "shape": [16], "data_offsets": [64, 0]})"), HasSubstr("spans"));
  EXPECT_THAT(entry(R"({"dtype": "F32", "shape": [17], "data_offsets": [0, 68]})"), HasSubstr("cut short"));
  EXPECT_THAT(entry(R"({"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]})"),
              HasSubstr("impossible shape"));
  // 2^32 * 2^32 wraps to 0 elements in 64 bits.
  EXPECT_THAT(entry(R"({"dtype": "F32", "shape": [4294967296, 4294967296], "data_offsets": [0, 0]})"),
              HasSubstr("impossible shape"));
  // No elements, so any bytes of the file will do; and rounding the columns up to blocks of 128 overflows.
  EXPECT_EQ(entry(R"({"dtype": "F32", "shape": [0, 7], "data_offsets": [8, 8]})"), "");
  EXPECT_THAT(entry(R"({"dtype": "F8_E4M3", "shape": [0, 9223372036854775807], "data_offsets": [0, 0]})"),
              HasSubstr("impossible shape"));
  EXPECT_THAT(entry(R"({"dtype": "F32", "shape": [16], "data_offsets": [-64, 0]})"), HasSubstr("not a size"));
  EXPECT_THAT(entry(R"({"dtype": "F32", "shape": [16], "data_offsets": [0]})"), HasSubstr("pair"));
  EXPECT_THAT(entry(R"({"dtype": "Q4", "shape": [16], "data_offsets": [0, 64]})"), HasSubstr("Q4"));
  EXPECT_THAT(entry(R"({"dtype": "F32", "shape": "x", "data_offsets": [0, 64]})"), HasSubstr("shape"));
  // A leak once (seen by the fuzzer): the tensor's long name was built when the missing dtype made the reader
  // return.
  EXPECT_THAT(error_of(file_of(R"({"a tensor name that needs memory of its own": {"shape": [16]}})", 64)),
              HasSubstr("dtype"));
  EXPECT_THAT(entry("3"), HasSubstr("not an object"));
  EXPECT_THAT(error_of(file_of(R"({"a": {"dtype": "U8", "shape": [8], "data_offsets": [0, 8]},
                                   "b": {"dtype": "U8", "shape": [8], "data_offsets": [7, 15]}})",
                               16)),
              HasSubstr("overlap"));
  std::string huge = file_of("{}", 0);
  huge[7] = '\x7f';
  EXPECT_THAT(error_of(huge), HasSubstr("over the limit"));
  EXPECT_THAT(error_of(file_of("{\"a\"", 0)), HasSubstr("header"));
}

class Folder : public testing::Test {
 protected:
  void SetUp() override {
    path = std::filesystem::path(testing::TempDir()) /
           ("millrace_safetensors_" +
            std::string(testing::UnitTest::GetInstance()->current_test_info()->name()));
    std::filesystem::remove_all(path);
    std::filesystem::create_directories(path);
  }
  void TearDown() override { std::filesystem::remove_all(path); }
  void write(const std::string& name, const std::string& content) const {
    std::ofstream(path / name, std::ios::binary) << content;
  }
  std::string error() const {
    const auto opened = SafetensorsFiles::open_folder(path);
    return opened ? "" : opened.error().message;
  }
  std::filesystem::path path;
};

std::string shard(std::string_view name) {
  return file_of(std::string("{\"") + std::string(name) +
                     R"(": {"dtype": "F16", "shape": [4], "data_offsets": [0, 8]}})",
                 8);
}

TEST_F(Folder, ReadsOneFileOrShards) {
  write("model.safetensors", shard("whole"));
  ASSERT_EQ(error(), "");
  EXPECT_EQ((*SafetensorsFiles::open_folder(path))->tensors()[0].name, "whole");
  write("x-1.safetensors", shard("a"));
  write("x-2.safetensors", shard("b"));
  write("model.safetensors.index.json",
        R"({"weight_map": {"b": "x-2.safetensors", "a": "x-1.safetensors"}})");
  const auto files = SafetensorsFiles::open_folder(path);
  ASSERT_TRUE(files.has_value()) << files.error().message;
  EXPECT_EQ((*files)->tensors().size(), 2u);
}

TEST_F(Folder, TheIndexMustTellTheTruth) {
  write("x-1.safetensors", shard("a"));
  write("x-2.safetensors", shard("b"));
  const auto with_index = [&](const std::string& map) {
    write("model.safetensors.index.json", R"({"weight_map": )" + map + "}");
    return error();
  };
  EXPECT_THAT(with_index(R"({"a": "x-1.safetensors", "b": "x-1.safetensors"})"),
              HasSubstr("holds 1 tensors; the index names 2"));
  EXPECT_THAT(with_index(R"({"a": "x-2.safetensors"})"), HasSubstr("does not name"));
  EXPECT_THAT(with_index(R"({"a": "x-1.safetensors", "b": "x-3.safetensors"})"),
              HasSubstr("x-3.safetensors"));
  EXPECT_THAT(with_index(R"({"a": "../x-1.safetensors"})"), HasSubstr("not a plain file name"));
  // packed_file_name() knows shards by their ending: a change of this one would leave an old packed file in
  // use.
  EXPECT_THAT(with_index(R"({"a": "x-1.bin"})"), HasSubstr("\"x-1.bin\" is not a .safetensors file"));
  EXPECT_THAT(with_index("3"), HasSubstr("weight_map"));
}

}  // namespace
}  // namespace millrace::model
