// Packed files that were damaged on their way: never misread.
#include "model/packed_model.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <chrono>
#include <cstring>
#include <filesystem>

#include "base/file.h"
#include "base/hash.h"
#include "base/memory.h"
#include "model/fixtures/published_configs.h"
#include "model/fixtures/tiny_checkpoint.h"
#include "model/internal/packed_layout.h"

namespace millrace::model {
namespace {

using testing::HasSubstr;

class PackedFile : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    const auto folder =
        std::filesystem::path(testing::TempDir()) / fmt::format("millrace_packed_{}", ::getpid());
    const auto checkpoint = fixtures::tiny_checkpoint(fixtures::tiny_config(Architecture::qwen2), 4);
    ASSERT_TRUE(fixtures::write_hugging_face(checkpoint, folder).has_value());
    const auto packed = pack_checkpoint(folder, folder / "packed", {});
    ASSERT_TRUE(packed.has_value()) << packed.error().message;
    whole = *read_file(folder / "packed", 1 << 28);
    std::filesystem::remove_all(folder);
  }
  void SetUp() override {
    buffer = *Buffer::allocate(whole.size());
    std::memcpy(buffer.data(), whole.data(), whole.size());
  }
  PackedHeader& header() { return *buffer.as<PackedHeader>(); }
  // Makes the header's own checksum right again, so that what lies behind it is reached.
  void seal() {
    header().header_xxh3 = hash64(std::span(buffer.data(), offsetof(PackedHeader, header_xxh3)));
  }
  // Replaces the directory by an edited one and seals all checksums above the sections.
  void set_directory(std::string text) {
    const size_t offset = header().directory_offset;
    Buffer bigger = *Buffer::allocate(offset + text.size());
    std::memcpy(bigger.data(), buffer.data(), offset);
    std::memcpy(bigger.data() + offset, text.data(), text.size());
    buffer = std::move(bigger);
    header().directory_bytes = text.size();
    header().file_bytes = offset + text.size();
    header().directory_xxh3 = hash64(text);
    size = offset + text.size();
    seal();
  }
  static std::string directory() {
    PackedHeader original;
    std::memcpy(&original, whole.data(), sizeof original);
    return whole.substr(original.directory_offset, original.directory_bytes);
  }
  static std::string edited(std::string_view from, std::string_view to) {
    std::string text = directory();
    const size_t at = text.find(from);
    EXPECT_NE(at, std::string::npos) << from;
    return text.replace(at, from.size(), to);
  }
  std::string error(bool verify = false) {
    const auto model = PackedModel::parse({buffer.data(), size}, {.verify_checksums = verify});
    return model ? "" : model.error().message;
  }

  static std::string whole;
  Buffer buffer;
  size_t size = whole.size();
};
std::string PackedFile::whole;

TEST_F(PackedFile, OpensWhole) {
  EXPECT_EQ(error(), "");
  EXPECT_EQ(error(true), "");
}

TEST_F(PackedFile, EveryBitOfHeaderAndDirectoryCounts) {
  const size_t begin = header().directory_offset;
  for (size_t at = 0; at < whole.size(); ++at) {
    if (at == sizeof(PackedHeader)) at = begin;  // the header's zeros and the sections
    for (int bit = 0; bit < 8; bit += at < begin ? 1 : 7) {
      buffer.data()[at] ^= std::byte(1 << bit);
      ASSERT_NE(error(), "") << "byte " << at << " bit " << bit;
      buffer.data()[at] ^= std::byte(1 << bit);
    }
  }
}

TEST_F(PackedFile, EverySectionIsVerifiedOnDemand) {
  const auto parsed = directory_from_json(directory());
  ASSERT_TRUE(parsed.has_value());
  for (const Section& section : parsed->sections) {
    if (section.size == 0) continue;
    std::byte& victim = buffer.data()[section.offset + section.size / 2];
    victim ^= std::byte{16};
    EXPECT_THAT(error(true), HasSubstr("\"" + section.name + "\"")) << section.name;
    const bool read_at_open = section.name == "tokenizer" || section.name == "chat_template";
    EXPECT_EQ(error(false) != "", read_at_open) << section.name;
    victim ^= std::byte{16};
  }
}

TEST_F(PackedFile, EveryTruncationIsAnError) {
  for (size_t cut = 1; cut < whole.size(); cut += cut < 5000 ? 1 : 997) {
    size = whole.size() - cut;
    ASSERT_NE(error(), "") << cut;
  }
  for (size = 0; size < 64; ++size) ASSERT_NE(error(), "") << size;
}

TEST_F(PackedFile, RefusesOtherVersionsAndFiles) {
  header().version = kPackedVersion + 1;
  seal();
  EXPECT_THAT(error(), HasSubstr("pack again"));
  header().magic = 1;
  EXPECT_THAT(error(), HasSubstr("not a packed model"));
}

TEST_F(PackedFile, RefusesADirectoryThatLies) {
  // All checksums hold here: the writer itself is the adversary.
  set_directory(edited("\"hidden_size\":96", "\"hidden_size\":97"));
  EXPECT_THAT(error(), HasSubstr("the config asks for"));
  set_directory(edited("\"hidden_size\":96", "\"hidden_size\":960000"));
  EXPECT_THAT(error(), HasSubstr("hidden_size"));
  set_directory(edited("\"name\":\"layers.0.attention.qkv\"", "\"name\":\"layers.0.attention.xyz\""));
  EXPECT_THAT(error(), HasSubstr("\"layers.0.attention.qkv\" is missing"));
  set_directory(edited("\"offset\":4096", "\"offset\":4097"));
  EXPECT_THAT(error(), HasSubstr("does not fit"));
  set_directory(edited("\"offset\":4096", "\"offset\":9223372036854771712"));
  EXPECT_THAT(error(), HasSubstr("does not fit"));
  set_directory(edited("\"offset\":4096", "\"offset\":0"));
  EXPECT_THAT(error(), HasSubstr("does not fit"));
  set_directory(edited("\"offset\":4096", "\"offset\":-4096"));
  EXPECT_THAT(error(), HasSubstr("negative"));
  set_directory(edited("\"name\":\"chat_template\"", "\"name\":\"tokenizer\""));
  EXPECT_THAT(error(), HasSubstr("occurs twice"));
  set_directory(edited("\"xxh3\":", "\"xxh4\":"));
  EXPECT_THAT(error(), HasSubstr("\"xxh3\" is missing"));
  set_directory("{}");
  EXPECT_THAT(error(), HasSubstr("\"type\""));
  header().directory_offset = ~uint64_t{0};
  seal();
  EXPECT_THAT(error(), HasSubstr("does not fit"));
}

// 8.4 million experts, all asked for in a few KB and none there. Their names alone would be a gigabyte, so
// they are counted first.
TEST_F(PackedFile, AskingForMillionsOfSectionsCostsNothing) {
  ModelConfig config = fixtures::tiny_config(Architecture::qwen3_moe);
  config.layers = 1024;
  config.moe = {.experts = 4096, .experts_per_token = 8, .ffn_size = 32};
  config.moe.layers.assign(1024, 1);
  set_directory(directory_to_json(PackType::int8, config, directory_from_json(directory())->sections));
  // In a layer qkv, o, router and two an expert; then embed, head, tokenizer, chat_template.
  EXPECT_THAT(error(), HasSubstr(fmt::format("where the config asks for {}", 1024 * (3 + 2 * 4096) + 4)));
}

// DeepSeek-V3's sizes: 671 GB of INT8 weights in 30,000 sections, all holes. Opening reads the directory
// alone.
TEST_F(PackedFile, OpensAModelOfDeepSeekV3sSize) {
  const auto parsed = config_from_hugging_face(fixtures::kDeepSeekV3Config, "");
  ASSERT_TRUE(parsed.has_value()) << parsed.error().message;
  const ModelConfig& config = *parsed;

  const auto small = directory_from_json(directory());
  ASSERT_TRUE(small.has_value());
  std::string tokenizer;
  for (const Section& section : small->sections)
    if (section.name == "tokenizer") tokenizer = whole.substr(section.offset, section.size);
  std::vector<Section> sections = {{.name = "tokenizer", .offset = 4096, .size = tokenizer.size()}};
  sections[0].checksum = section_checksum(std::as_bytes(std::span(tokenizer)));
  uint64_t end = 4096 + (tokenizer.size() + 4095) / 4096 * 4096;
  sections.push_back({.name = "chat_template", .offset = end, .size = 0, .checksum = section_checksum({})});
  for (const PlannedSection& planned :
       planned_sections(architecture_page(config.architecture).plan(config), PackType::int8)) {
    sections.push_back({.name = planned.name, .offset = end, .size = planned.size, .checksum = ~uint64_t{0}});
    end = (end + planned.size + 4095) / 4096 * 4096;
  }
  const std::string text = directory_to_json(PackType::int8, config, sections);
  ASSERT_LE(text.size(), kMaxDirectoryBytes);
  PackedHeader big{.file_bytes = end + text.size(),
                   .directory_offset = end,
                   .directory_bytes = text.size(),
                   .directory_xxh3 = hash64(std::string_view(text))};
  big.header_xxh3 = hash64(std::as_bytes(std::span(&big, 1)).first(offsetof(PackedHeader, header_xxh3)));
  EXPECT_GT(end, uint64_t{600} << 30);

  const auto path = std::filesystem::path(testing::TempDir()) / fmt::format("millrace_big_{}", ::getpid());
  const int file = ::open(path.c_str(), O_CREAT | O_RDWR | O_TRUNC, 0600);
  ASSERT_GE(file, 0);
  const bool written =
      ::pwrite(file, &big, sizeof big, 0) == static_cast<ssize_t>(sizeof big) &&
      ::pwrite(file, tokenizer.data(), tokenizer.size(), 4096) == static_cast<ssize_t>(tokenizer.size()) &&
      ::pwrite(file, text.data(), text.size(), static_cast<off_t>(end)) == static_cast<ssize_t>(text.size());
  ::close(file);
  if (!written) {
    std::filesystem::remove(path);
    GTEST_SKIP() << "this file system has no sparse files of " << end << " bytes";
  }
  const auto start = std::chrono::steady_clock::now();
  const auto model = PackedModel::open(path);
  const auto took = std::chrono::steady_clock::now() - start;
  std::filesystem::remove(path);
  ASSERT_TRUE(model.has_value()) << model.error().message;
  const auto ms = std::chrono::duration_cast<std::chrono::milliseconds>(took).count();
  RecordProperty("open_ms", static_cast<int>(ms));
  fmt::print("opened {} sections, a directory of {} bytes, in {} ms\n", sections.size(), text.size(), ms);
  // embed, 61 of MLA, 3 dense, 58 of router, 256 experts and shared expert, head
  EXPECT_EQ((*model)->graph().modules.size(), 1u + 61 + 3 + 58 * 258 + 1);
}

// Odd values, so that a field left out or a digit lost shows.
ModelConfig peculiar_config() {
  ModelConfig config = fixtures::tiny_config(Architecture::llama);
  config.rope = {.theta = 1.0 / 3 + 500000,
                 .kind = RopeConfig::Kind::yarn,
                 .factor = 4.1,
                 .low_freq_factor = 1.1,
                 .high_freq_factor = 3.9,
                 .beta_fast = 31.7,
                 .beta_slow = 0.9,
                 .attention_factor = 1.1386294361119891,
                 .original_max_position = 32768,
                 .frequency_divisors = std::vector<float>(16, 1.1f)};
  config.rms_norm_eps = 1.2345678e-6f;
  config.attention_scale = 0.1352338f;
  config.sandwich_norm = true;
  config.mtp_layers = 3;
  config.kv_heads = 1;
  config.mla = {.kv_lora_rank = 48,
                .q_lora_rank = 40,
                .nope_head_dim = 12,
                .rope_head_dim = 20,
                .value_head_dim = 24,
                .rope_interleaved = false,
                .latent_norm_eps = 1.1e-5f};
  config.rope.frequency_divisors.resize(10);
  config.moe = {.experts = 12,
                .experts_per_token = 3,
                .ffn_size = 40,
                .shared_ffn_size = 56,
                .shared_gate = true,
                .layers = {0, 1},
                .score = MoeConfig::Score::sigmoid,
                .selection_bias = true,
                .groups = 4,
                .groups_kept = 2,
                .group_score = MoeConfig::GroupScore::top2_sum,
                .normalise = true,
                .weight_epsilon = 1.5e-20f,
                .weight_scale = 2.827f,
                .expert_scale = true};
  config.generation = {
      .temperature = 0.7, .top_p = 0.8, .min_p = 0.05, .repetition_penalty = 1.05, .top_k = 20};
  config.name = "a \"name\" with\n\xC3\xA9";
  return config;
}

TEST_F(PackedFile, ConfigTravelsExactly) {
  const ModelConfig config = peculiar_config();
  const auto back =
      directory_from_json(directory_to_json(PackType::float32, config, {{"x", 4096, 7, ~uint64_t{0}}}));
  ASSERT_TRUE(back.has_value()) << back.error().message;
  EXPECT_EQ(back->type, PackType::float32);
  EXPECT_EQ(back->sections[0].checksum, ~uint64_t{0});
  const ModelConfig& c = back->config;
  EXPECT_EQ(c.name, config.name);
  EXPECT_EQ(c.rms_norm_eps, config.rms_norm_eps);
  EXPECT_EQ(c.rope.theta, config.rope.theta);
  EXPECT_EQ(c.rope.attention_factor, config.rope.attention_factor);
  EXPECT_EQ(c.rope.frequency_divisors, config.rope.frequency_divisors);
  EXPECT_EQ(c.rope.inverse_frequencies(20), config.rope.inverse_frequencies(20));
  EXPECT_EQ(c.attention_scale, config.attention_scale);
  EXPECT_TRUE(c.sandwich_norm);
  EXPECT_EQ(c.mtp_layers, 3);
  EXPECT_EQ(c.mla.kv_lora_rank, 48);
  EXPECT_EQ(c.mla.q_lora_rank, 40);
  EXPECT_EQ(c.mla.nope_head_dim, 12);
  EXPECT_EQ(c.mla.rope_head_dim, 20);
  EXPECT_EQ(c.mla.value_head_dim, 24);
  EXPECT_FALSE(c.mla.rope_interleaved);
  EXPECT_EQ(c.mla.latent_norm_eps, config.mla.latent_norm_eps);
  EXPECT_EQ(c.moe.experts, 12);
  EXPECT_EQ(c.moe.experts_per_token, 3);
  EXPECT_EQ(c.moe.ffn_size, 40);
  EXPECT_EQ(c.moe.shared_ffn_size, 56);
  EXPECT_TRUE(c.moe.shared_gate && c.moe.selection_bias && c.moe.normalise && c.moe.expert_scale);
  EXPECT_FALSE(c.moe.one_per_group);
  EXPECT_EQ(c.moe.layers, config.moe.layers);
  EXPECT_EQ(c.moe.score, config.moe.score);
  EXPECT_EQ(c.moe.group_score, config.moe.group_score);
  EXPECT_EQ(c.moe.groups, 4);
  EXPECT_EQ(c.moe.groups_kept, 2);
  EXPECT_EQ(c.moe.weight_epsilon, config.moe.weight_epsilon);
  EXPECT_EQ(c.moe.weight_scale, config.moe.weight_scale);
  EXPECT_EQ(c.generation.repetition_penalty, config.generation.repetition_penalty);
  EXPECT_EQ(c.eos, config.eos);
}

}  // namespace
}  // namespace millrace::model
