// What the tests against kept numbers share (tests/numbers, tests/models): reading a fixture's files, and
// packing a checkpoint in a folder of the test's own. Tests only.
#pragma once
#include <gtest/gtest.h>
#include <unistd.h>

#include <boost/json.hpp>
#include <cstring>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "base/file.h"
#include "base/json.h"
#include "base/strong_id.h"
#include "model/packed_model.h"

namespace millrace::engine::testing {

inline constexpr double kUnit = 0x1p-24;  // rounding of one float operation
inline constexpr size_t kMaxFixtureFile = size_t{1} << 20;

// An array as numpy's tofile() left it; empty if there is no such file.
template <class T>
std::vector<T> read_array(const std::filesystem::path& path) {
  const auto bytes = read_file(path, kMaxFixtureFile);
  std::vector<T> values(bytes ? bytes->size() / sizeof(T) : 0);
  if (!values.empty()) std::memcpy(values.data(), bytes->data(), values.size() * sizeof(T));
  return values;
}

inline json::value read_json(const std::filesystem::path& path) {
  const auto text = read_file(path, kMaxFixtureFile);
  EXPECT_TRUE(text.has_value()) << path;
  const auto value = parse_json(text ? *text : "{}");
  EXPECT_TRUE(value.has_value()) << path;
  return value ? *value : json::value(json::object());
}

struct FixtureText {  // what every fixture of tests/numbers has
  std::vector<TokenId> tokens;
  std::vector<int> positions;  // whose logits are kept
  int vocab = 0;

  void read(const std::filesystem::path& folder, const json::value& meta) {
    vocab = meta.at("vocab").to_number<int>();
    positions = json::value_to<std::vector<int>>(meta.at("positions"));
    for (const int32_t id : read_array<int32_t>(folder / "tokens.i32")) tokens.push_back(TokenId{id});
  }
};

class PackingTest : public ::testing::Test {
 protected:
  void SetUp() override {
    folder = std::filesystem::path(::testing::TempDir()) / ("millrace_numbers_" + std::to_string(::getpid()));
    std::filesystem::remove_all(folder);
    std::filesystem::create_directories(folder);
  }
  void TearDown() override { std::filesystem::remove_all(folder); }

  // Null, and a failure, if the checkpoint does not pack.
  std::shared_ptr<const model::PackedModel> pack(const std::filesystem::path& checkpoint,
                                                 model::PackType type) const {
    const auto path = folder / (type == model::PackType::int8 ? "int8" : "float32");
    const auto packed =
        model::pack_checkpoint(checkpoint, path, {.type = type, .threads = 2, .progress = {}});
    EXPECT_TRUE(packed.has_value()) << (packed ? "" : packed.error().message);
    if (!packed) return nullptr;
    auto opened = model::PackedModel::open(path);
    EXPECT_TRUE(opened.has_value()) << (opened ? "" : opened.error().message);
    return opened ? *opened : nullptr;
  }

  std::filesystem::path folder;
};

}  // namespace millrace::engine::testing
