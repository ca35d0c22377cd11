// Packed files that were damaged on their way: never misread.
#include "model/packed_model.h"

#include <fmt/core.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>

#include "base/file.h"
#include "base/hash.h"
#include "base/memory.h"
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

TEST_F(PackedFile, ConfigTravelsExactly) {
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
  config.generation = {
      .temperature = 0.7, .top_p = 0.8, .min_p = 0.05, .repetition_penalty = 1.05, .top_k = 20};
  config.name = "a \"name\" with\n\xC3\xA9";
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
  EXPECT_EQ(c.rope.inverse_frequencies(32), config.rope.inverse_frequencies(32));
  EXPECT_EQ(c.generation.repetition_penalty, config.generation.repetition_penalty);
  EXPECT_EQ(c.eos, config.eos);
}

}  // namespace
}  // namespace millrace::model
