// A checkpoint's two formats give the same packed file, byte for byte, in every family of latent attention or
// experts that GGUF knows; both are written from the same drawn weights (fixtures/family_checkpoint.h) by
// conventions that are not this room's pages.
#include <fmt/core.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <boost/json.hpp>
#include <cstring>
#include <filesystem>
#include <string>
#include <vector>

#include "base/file.h"
#include "base/json.h"
#include "model/fixtures/family_checkpoint.h"
#include "model/internal/packed_layout.h"
#include "model/packed_model.h"

namespace millrace::model {
namespace {

using fixtures::FamilyCheckpoint;

// A GGUF of Qwen2-MoE has a mixture in every layer: those of the case that are one, as a model of their own.
FamilyCheckpoint mixtures_only(const FamilyCheckpoint& from, const std::vector<int>& layers) {
  FamilyCheckpoint out = from;
  out.tensors.clear();
  for (const auto& [name, tensor] : from.tensors)
    if (!name.starts_with("model.layers.")) out.tensors.emplace(name, tensor);
  for (size_t i = 0; i < layers.size(); ++i) {
    const std::string prefix = fmt::format("model.layers.{}.", layers[i]);
    for (const auto& [name, tensor] : from.tensors)
      if (name.starts_with(prefix))
        out.tensors.emplace(fmt::format("model.layers.{}.{}", i, name.substr(prefix.size())), tensor);
  }
  json::object config = parse_json(from.config_json)->as_object();
  config["num_hidden_layers"] = layers.size();
  config["decoder_sparse_step"] = 1;
  config["mlp_only_layers"] = json::array();
  config.erase("layer_types");
  out.config_json = json::serialize(config);
  return out;
}

// As converters leave files of these architectures.
FamilyCheckpoint without_mtp(FamilyCheckpoint checkpoint) {
  json::object config = parse_json(checkpoint.config_json)->as_object();
  config.erase("num_nextn_predict_layers");
  const std::string extra = fmt::format("model.layers.{}.", config.at("num_hidden_layers").to_number<int>());
  std::erase_if(checkpoint.tensors, [&](const auto& tensor) { return tensor.first.starts_with(extra); });
  checkpoint.config_json = json::serialize(config);
  return checkpoint;
}

// The directory of a packed file, an entry a line.
std::vector<std::string> directory_of(const std::string& packed) {
  PackedHeader header;
  std::memcpy(&header, packed.data(), sizeof header);
  std::vector<std::string> lines(1);
  for (const char c : std::string_view(packed).substr(header.directory_offset, header.directory_bytes)) {
    lines.back() += c;
    if (c == ',' || c == '}') lines.emplace_back();
  }
  return lines;
}

struct FormatCase {
  std::string name;
  bool legacy_kv_b = false;
  bool mtp = false;
};

// Every case that GGUF knows, and deepseek2 as older files have it and with its MTP layer.
std::vector<FormatCase> format_cases() {
  std::vector<FormatCase> cases = {{"deepseek_v3", true}, {"deepseek_v3", false, true}};
  for (const std::string& name : fixtures::family_cases()) {
    const auto checkpoint = fixtures::read_family_checkpoint(fixtures::family_folder(name));
    if (checkpoint && !checkpoint->gguf_architecture.empty()) cases.push_back({name});
  }
  return cases;
}

class Formats : public testing::Test {
 protected:
  void SetUp() override {
    folder = std::filesystem::path(testing::TempDir()) / fmt::format("millrace_formats_{}", ::getpid());
    std::filesystem::create_directories(folder);
  }
  void TearDown() override { std::filesystem::remove_all(folder); }

  std::string packed_bytes(const std::filesystem::path& checkpoint, PackType type) const {
    const auto path = folder / "packed";
    const auto packed = pack_checkpoint(checkpoint, path, {.type = type, .threads = 2, .progress = {}});
    EXPECT_TRUE(packed.has_value()) << checkpoint << ": " << (packed ? "" : packed.error().message);
    const auto bytes = read_file(path, size_t{64} << 20);
    EXPECT_TRUE(bytes.has_value());
    std::filesystem::remove(path);
    return bytes ? *bytes : "";
  }

  std::string refusal(const std::filesystem::path& checkpoint) const {
    const auto packed = pack_checkpoint(checkpoint, folder / "packed", {});
    return packed ? "" : packed.error().message;
  }

  std::filesystem::path folder;
};
class FamilyFormats : public Formats, public testing::WithParamInterface<FormatCase> {};

TEST_P(FamilyFormats, GiveTheSamePackedFile) {
  const std::string name = GetParam().name;
  auto read = fixtures::read_family_checkpoint(fixtures::family_folder(name));
  ASSERT_TRUE(read.has_value()) << read.error().message;
  const FamilyCheckpoint checkpoint = name == "qwen2_moe" ? mixtures_only(*read, {1, 5})
                                      : GetParam().mtp    ? *read
                                                          : without_mtp(*read);
  // One name for both: a model is called after its file or folder.
  const auto hugging_face = folder / "tiny", gguf = folder / "tiny.gguf";
  ASSERT_TRUE(fixtures::write_family_hugging_face(checkpoint, hugging_face).has_value());
  ASSERT_TRUE(fixtures::write_family_gguf(checkpoint, gguf,
                                          {.legacy_kv_b = GetParam().legacy_kv_b, .mtp = GetParam().mtp})
                  .has_value());
  for (const PackType type : {PackType::int8, PackType::float32}) {
    const std::string one = packed_bytes(hugging_face, type), other = packed_bytes(gguf, type);
    EXPECT_EQ(one.find(".mtp.") != std::string::npos, GetParam().mtp);
    const auto a = directory_of(one), b = directory_of(other);  // say more than the bytes would
    EXPECT_EQ(a.size(), b.size());
    for (size_t i = 0, told = 0; i < std::min(a.size(), b.size()) && told < 5; ++i) {
      EXPECT_EQ(a[i], b[i]) << "entry " << i;
      told += a[i] != b[i];
    }
    EXPECT_TRUE(one == other) << name << ", " << (type == PackType::int8 ? "int8" : "float32");
  }
}

INSTANTIATE_TEST_SUITE_P(All, FamilyFormats, testing::ValuesIn(format_cases()), [](const auto& parameter) {
  return parameter.param.name + (parameter.param.legacy_kv_b ? "_legacy" : "") +
         (parameter.param.mtp ? "_mtp" : "");
});

// What is refused of one format is refused of the other.
TEST_F(Formats, RefuseNormalisedWeightsOfDeepSeekV2) {
  auto read = fixtures::read_family_checkpoint(fixtures::family_folder("deepseek_v2_lite"));
  ASSERT_TRUE(read.has_value()) << read.error().message;
  json::object config = parse_json(read->config_json)->as_object();
  config["norm_topk_prob"] = true;
  read->config_json = json::serialize(config);
  ASSERT_TRUE(fixtures::write_family_hugging_face(*read, folder / "tiny").has_value());
  ASSERT_TRUE(fixtures::write_family_gguf(*read, folder / "tiny.gguf", {}).has_value());
  EXPECT_THAT(refusal(folder / "tiny"), testing::HasSubstr("norm_topk_prob is true"));
  EXPECT_THAT(refusal(folder / "tiny.gguf"), testing::HasSubstr("deepseek2.expert_weights_norm is true"));
}

// The values drawn here are those that the fixtures' numbers were computed from.
TEST(FamilyCheckpoints, DrawTheFixturesValues) {
  const auto cases = fixtures::family_cases();
  for (const std::string& name : cases) {
    const auto checkpoint = fixtures::read_family_checkpoint(fixtures::family_folder(name));
    EXPECT_TRUE(checkpoint.has_value()) << (checkpoint ? "" : checkpoint.error().message);
  }
  EXPECT_GE(cases.size(), 9u);
  EXPECT_GE(format_cases().size(), 8u);
}

}  // namespace
}  // namespace millrace::model
