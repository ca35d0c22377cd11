// A checkpoint with missing, extra, wrongly shaped or non-finite tensors, an unknown architecture, or a
// config that disagrees with its tensors is refused by name, with what was expected and found, within a
// second (fixtures/refusals.h has the table).
#include <fcntl.h>
#include <fmt/core.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <boost/json.hpp>
#include <ctime>
#include <filesystem>

#include "base/file.h"
#include "base/json.h"
#include "model/fixtures/family_checkpoint.h"
#include "model/fixtures/published_configs.h"
#include "model/fixtures/refusals.h"
#include "model/packed_model.h"

namespace millrace::model {
namespace {

using testing::HasSubstr;

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr double kSecond = 20;
#else
constexpr double kSecond = 1;
#endif

struct Outcome {
  std::string error;   // "" if it packed
  double seconds = 0;  // of the processor, so that a busy machine does not count; nothing here waits
};
double processor_seconds() {
  timespec now{};
  ::clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}
Outcome pack(const std::filesystem::path& checkpoint, const std::filesystem::path& packed, PackType type) {
  const double start = processor_seconds();
  const auto result = pack_checkpoint(checkpoint, packed, {.type = type, .threads = 1, .progress = {}});
  return {result ? "" : result.error().message, processor_seconds() - start};
}

class Refusals : public testing::TestWithParam<fixtures::Refusal> {
 protected:
  void SetUp() override {
    folder = std::filesystem::path(testing::TempDir()) /
             fmt::format("millrace_refusals_{}_{}", GetParam().name, ::getpid());
    std::filesystem::remove_all(folder);
    std::filesystem::create_directories(folder);
  }
  void TearDown() override { std::filesystem::remove_all(folder); }

  std::filesystem::path folder;
};

TEST_P(Refusals, ByName) {
  const auto checkpoint = GetParam().write(folder);
  ASSERT_TRUE(checkpoint.has_value()) << checkpoint.error().message;
  for (const PackType type : {PackType::int8, PackType::float32}) {
    const Outcome outcome = pack(*checkpoint, folder / "packed", type);
    EXPECT_LT(outcome.seconds, kSecond);
    EXPECT_EQ(std::filesystem::exists(folder / "packed"), GetParam().words.empty());
    if (GetParam().words.empty()) {
      EXPECT_EQ(outcome.error, "");
      std::filesystem::remove(folder / "packed");
    }
    for (const std::string& word : GetParam().words) EXPECT_THAT(outcome.error, HasSubstr(word));
  }
}

INSTANTIATE_TEST_SUITE_P(All, Refusals, testing::ValuesIn(fixtures::refusals()),
                         [](const auto& parameter) { return parameter.param.name; });

// Experts in one tensor are those of one tensor each, in both formats: the packed files are equal.
TEST(FusedExperts, PackAsThoseApart) {
  const auto folder =
      std::filesystem::path(testing::TempDir()) / fmt::format("millrace_fused_{}", ::getpid());
  std::filesystem::create_directories(folder / "apart");
  const auto apart = fixtures::read_family_checkpoint("tests/numbers/fixtures/families/qwen3_moe");
  ASSERT_TRUE(apart.has_value());
  ASSERT_TRUE(fixtures::write_family_hugging_face(*apart, folder / "apart" / "tiny").has_value());
  for (const PackType type : {PackType::int8, PackType::float32}) {
    ASSERT_EQ(pack(folder / "apart" / "tiny", folder / "packed", type).error, "");
    const auto expected = read_file(folder / "packed", size_t{1} << 28);
    ASSERT_TRUE(expected.has_value());
    int found = 0;
    for (const fixtures::Refusal& one : fixtures::refusals()) {
      if (one.name != "fused" && one.name != "gguf_fused") continue;
      std::filesystem::create_directories(folder / one.name);
      const auto checkpoint = one.write(folder / one.name);
      ASSERT_TRUE(checkpoint.has_value());
      ASSERT_EQ(pack(*checkpoint, folder / "packed", type).error, "");
      EXPECT_TRUE(*read_file(folder / "packed", size_t{1} << 28) == *expected) << one.name;
      ++found;
    }
    EXPECT_EQ(found, 2);
  }
  std::filesystem::remove_all(folder);
}

// A checkpoint of DeepSeek-V3's sizes, of which one tensor of the last layer is missing or misshapen, as a
// file of holes: 91,000 tensors, FP8 with their factors, 685 GB.
class RealSize : public testing::Test {
 protected:
  static constexpr int kLayers = 61, kExperts = 256;

  void add(const std::string& name, std::vector<int64_t> shape, bool fp8) {
    const auto put = [&](const std::string& tensor, const char* dtype, const std::vector<int64_t>& size,
                         int64_t bytes) {
      for (const int64_t n : size) bytes *= n;
      header[tensor] = {{"dtype", dtype},
                        {"shape", boost::json::array(size.begin(), size.end())},
                        {"data_offsets", {end, end + bytes}}};
      end += bytes;
    };
    put(name + ".weight", fp8 ? "F8_E4M3" : "BF16", shape, fp8 ? 1 : 2);
    if (fp8) put(name + ".weight_scale_inv", "F32", {(shape[0] + 127) / 128, (shape[1] + 127) / 128}, 4);
  }
  void add_ffn(const std::string& prefix, int64_t width) {
    add(prefix + "gate_proj", {width, 7168}, true);
    add(prefix + "up_proj", {width, 7168}, true);
    add(prefix + "down_proj", {7168, width}, true);
  }
  void add_layer(int layer) {
    const std::string prefix = fmt::format("model.layers.{}.", layer), attention = prefix + "self_attn.";
    add(prefix + "input_layernorm", {7168}, false);
    add(prefix + "post_attention_layernorm", {7168}, false);
    add(attention + "q_a_layernorm", {1536}, false);
    add(attention + "kv_a_layernorm", {512}, false);
    add(attention + "q_a_proj", {1536, 7168}, true);
    add(attention + "q_b_proj", {24576, 1536}, true);
    add(attention + "kv_a_proj_with_mqa", {576, 7168}, true);
    add(attention + "kv_b_proj", {32768, 512}, true);
    add(attention + "o_proj", {7168, 16384}, true);
    if (layer < 3) return add_ffn(prefix + "mlp.", 18432);
    add(prefix + "mlp.gate", {256, 7168}, false);
    header[prefix + "mlp.gate.e_score_correction_bias"] = {
        {"dtype", "F32"}, {"shape", {256}}, {"data_offsets", {end, end + 1024}}};
    end += 1024;
    for (int e = 0; e < kExperts; ++e) add_ffn(fmt::format("{}mlp.experts.{}.", prefix, e), 2048);
    add_ffn(prefix + "mlp.shared_experts.", 2048);
  }
  void SetUp() override {
    folder = std::filesystem::path(testing::TempDir()) / fmt::format("millrace_real_size_{}", ::getpid());
    std::filesystem::create_directories(folder);
    add("model.embed_tokens", {129280, 7168}, false);
    add("lm_head", {129280, 7168}, false);
    add("model.norm", {7168}, false);
    for (int layer = 0; layer <= kLayers; ++layer) add_layer(layer);
    const std::string mtp = fmt::format("model.layers.{}.", kLayers);
    add(mtp + "eh_proj", {7168, 14336}, false);
    for (const char* norm : {"enorm", "hnorm", "shared_head.norm"}) add(mtp + norm, {7168}, false);
    const auto tokenizer = read_file("tests/numbers/fixtures/families/tokenizer.json", 1 << 20);
    ASSERT_TRUE(tokenizer.has_value());
    ASSERT_TRUE(write_file_atomic(folder / "tokenizer.json", *tokenizer).has_value());
    ASSERT_TRUE(write_file_atomic(folder / "config.json", fixtures::kDeepSeekV3Config).has_value());
  }
  void TearDown() override { std::filesystem::remove_all(folder); }

  // Skips if there are no files of holes so large here.
  bool write() const {
    const std::string text = boost::json::serialize(header);
    const uint64_t size = text.size();
    const auto path = folder / "model.safetensors";
    const int file = ::open(path.c_str(), O_CREAT | O_RDWR | O_TRUNC, 0600);
    const bool written = ::pwrite(file, &size, sizeof size, 0) == static_cast<ssize_t>(sizeof size) &&
                         ::pwrite(file, text.data(), size, sizeof size) == static_cast<ssize_t>(size) &&
                         ::ftruncate(file, static_cast<off_t>(sizeof size + size) + end) == 0;
    ::close(file);
    return written;
  }

  std::filesystem::path folder;
  boost::json::object header;
  int64_t end = 0;
};

TEST_F(RealSize, IsRefusedWithinASecond) {
  EXPECT_GT(header.size(), 90'000u);
  EXPECT_GT(end, 680'000'000'000);
  const std::string last = "model.layers.61.mlp.experts.255.down_proj.weight";
  const auto expect = [&](std::string_view words) {
    if (!write()) return false;
    const Outcome outcome = pack(folder, folder / "packed", PackType::int8);
    EXPECT_THAT(outcome.error, HasSubstr(words));
    EXPECT_LT(outcome.seconds, kSecond) << words;
    fmt::print("{} tensors, refused after {:.0f} ms: {}\n", header.size(), outcome.seconds * 1e3,
               outcome.error);
    return true;
  };
  header[last].as_object()["shape"] = {2048, 7168};
  header[last + "_scale_inv"].as_object()["shape"] = {16, 56};
  if (!expect("\"" + last + "\" has shape [2048, 7168]"))
    GTEST_SKIP() << "this file system has no sparse files of " << end << " bytes";
  header.erase(last);
  EXPECT_TRUE(expect("has no tensor \"" + last + "\" (expected shape [7168, 2048])"));
  header[last] = {{"dtype", "BF16"}, {"shape", {7168, 2048}}, {"data_offsets", {end, end + 2 * 7168 * 2048}}};
  end += 2 * 7168 * 2048;
  header["model.layers.61.surprise"] = {
      {"dtype", "BF16"}, {"shape", {7168}}, {"data_offsets", {end, end + 2 * 7168}}};
  end += 2 * 7168;
  header.erase(last + "_scale_inv");
  EXPECT_TRUE(expect("\"model.layers.61.surprise\" of shape [7168] has no place"));
}

}  // namespace
}  // namespace millrace::model
