// Gathering what enters a model's products: every matrix, each row once, whatever the threads; and texts that
// say too little or nothing.
#include "engine/calibrate.h"

#include <fmt/core.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sched.h>

#include <string>

#include "engine/internal/numbers_testing.h"
#include "model/fixtures/family_checkpoint.h"
#include "model/fixtures/tiny_checkpoint.h"

namespace millrace::engine {
namespace {

using ::testing::HasSubstr;
namespace fixtures = model::fixtures;

std::string text_of(size_t bytes) {  // words, with characters of two and three bytes among them
  std::string text;
  for (size_t i = 0; text.size() < bytes; ++i)
    text += fmt::format("{} {} {}. ", i * i % 97, i % 3 == 0 ? "Mühle" : "mill", i % 5 == 0 ? "流" : "race");
  return text;
}

TEST(CalibrationText, WindowsAreSpreadOverTheText) {
  const std::string text = text_of(200'000);
  const auto windows = calibration_windows(text, 16);
  ASSERT_EQ(windows.size(), 16u);
  for (size_t i = 0; i < windows.size(); ++i) {
    const auto at = static_cast<size_t>(windows[i].data() - text.data());
    EXPECT_NEAR(static_cast<double>(at), static_cast<double>(text.size() * i) / 16, 3);
    EXPECT_TRUE(check_calibration_text(windows[i]).has_value()) << "cut within a character";
    EXPECT_GT(windows[i].size(), 12'000u);
  }
  const auto huge = calibration_windows(std::string_view(text).substr(0, 199'999), 2);
  ASSERT_EQ(huge.size(), 2u);
  EXPECT_LE(huge[0].size(), 32'768u) << "no more than 512 tokens could be";
}

TEST(CalibrationText, ShortTextsAreReadWhole) {
  for (const size_t bytes : {1, 2047, 4096, 9000}) {
    const std::string text = text_of(bytes);
    const auto windows = calibration_windows(text, 64);
    EXPECT_EQ(windows.size(), std::max<size_t>(1, text.size() / 2048));
    std::string joined;
    for (const auto window : windows) joined += window;
    EXPECT_EQ(joined, text);
  }
  EXPECT_EQ(calibration_windows("", 16), std::vector<std::string_view>{""});
}

TEST(CalibrationText, WhatIsNoTextIsRefusedWithItsPlace) {
  EXPECT_THAT(check_calibration_text("").error().message, HasSubstr("0 bytes"));
  const auto bad = check_calibration_text("gr\xc3\xbc\xc3\x9f \xff!");
  ASSERT_FALSE(bad.has_value());
  EXPECT_EQ(bad.error().code, Code::invalid_argument);
  EXPECT_THAT(bad.error().message, HasSubstr("byte 0xff at offset 7 of 9"));
  EXPECT_TRUE(check_calibration_text("gr\xc3\xbc\xc3\x9f").has_value());
}

TEST(CalibrationText, TheDigestIsThatOfTheText) {
  EXPECT_EQ(calibration_digest("a text"), calibration_digest("a text"));
  EXPECT_NE(calibration_digest("a text"), calibration_digest("a text "));
}

class GatherInputs : public testing::PackingTest {
 protected:
  std::shared_ptr<const model::PackedModel> llama(model::PackType type = model::PackType::int8) const {
    const auto written = fixtures::write_hugging_face(
        fixtures::tiny_checkpoint(fixtures::tiny_config(model::Architecture::llama), 1), folder / "tiny");
    EXPECT_TRUE(written.has_value());
    return pack(folder / "tiny", type);
  }
  Expected<std::unique_ptr<model::CalibrationInputs>> gather(std::shared_ptr<const model::PackedModel> model,
                                                             std::string_view text, int threads = 1) const {
    return gather_inputs(std::move(model), text, folder,
                         {.cpus = std::vector<int>(static_cast<size_t>(threads), -1), .progress = {}});
  }
};

std::vector<float> values_of(const model::CalibrationInputs& inputs, const std::string& section,
                             int first_channel) {
  const auto rows = inputs.find(section, first_channel).value();
  std::vector<float> out(static_cast<size_t>(rows.count() * rows.width));
  EXPECT_TRUE(inputs.read(rows, 0, static_cast<int>(rows.count()), 0, rows.width, out.data()).has_value());
  return out;
}

TEST_F(GatherInputs, EveryMatrixOfADenseModelSeesEveryToken) {
  const auto model = llama();
  ASSERT_TRUE(model);
  const std::string text = text_of(3000);  // a byte a token: two windows of at most 512
  int64_t reported = 0;
  const auto inputs = gather_inputs(model, text, folder,
                                    {.cpus = {-1},
                                     .progress =
                                         [&](int64_t done, int64_t total) {
                                           EXPECT_GT(done, reported);
                                           EXPECT_LE(done, total);
                                           reported = done;
                                         }})
                          .value();
  const int64_t tokens = 512;  // 3,000 bytes are one window
  EXPECT_EQ(reported, tokens);
  for (const std::string section : {"layers.0.attention.qkv", "layers.0.attention.o", "layers.0.ffn.gate_up",
                                    "layers.0.ffn.down", "layers.1.attention.qkv", "layers.1.attention.o",
                                    "layers.1.ffn.gate_up", "layers.1.ffn.down", "head"}) {
    EXPECT_EQ(inputs->rows(section, 0), tokens) << section;
  }
  EXPECT_EQ(inputs->find("layers.0.ffn.down", 0).value().width, 160);
}

// Packing goes on afterwards with all cores.
TEST_F(GatherInputs, TheCallerKeepsItsCores) {
  const auto model = llama();
  ASSERT_TRUE(model);
  cpu_set_t before, after;
  ASSERT_EQ(sched_getaffinity(0, sizeof before, &before), 0);
  int first = 0;
  while (!CPU_ISSET(first, &before)) ++first;
  ASSERT_TRUE(gather_inputs(model, text_of(3000), folder, {.cpus = {first}, .progress = {}}).has_value());
  ASSERT_EQ(sched_getaffinity(0, sizeof after, &after), 0);
  EXPECT_TRUE(CPU_EQUAL(&before, &after));
}

TEST_F(GatherInputs, ThreadsChangeNothing) {
  for (const std::string name : {"deepseek_v3", "qwen3_moe"}) {
    SCOPED_TRACE(name);
    const auto checkpoint = fixtures::read_family_checkpoint(fixtures::family_folder(name));
    ASSERT_TRUE(checkpoint.has_value()) << checkpoint.error().message;
    ASSERT_TRUE(fixtures::write_family_hugging_face(*checkpoint, folder / name).has_value());
    const auto model = pack(folder / name, model::PackType::int8);
    ASSERT_TRUE(model);
    const auto one = gather(model, text_of(20'000), 1), three = gather(model, text_of(20'000), 3);
    ASSERT_TRUE(one.has_value()) << one.error().message;
    ASSERT_TRUE(three.has_value()) << three.error().message;
    EXPECT_EQ((*one)->digest(), (*three)->digest());
    const model::ModelConfig& config = model->config();
    const int layer = config.layers - 1;
    std::vector<std::pair<std::string, int>> matrices = {{fmt::format("layers.{}.attention.o", layer), 0},
                                                         {fmt::format("layers.{}.router", layer), 0},
                                                         {"head", 0}};
    if (config.mla.used())
      for (int head = 0; head < config.q_heads; ++head) {
        matrices.emplace_back(fmt::format("layers.{}.attention.k_up", layer), head * config.mla.kv_lora_rank);
        matrices.emplace_back(fmt::format("layers.{}.attention.v_up", layer),
                              head * config.mla.value_head_dim);
      }
    const int64_t tokens = (*one)->rows("head", 0);
    EXPECT_GE(tokens, 512);
    int64_t to_experts = 0;
    for (int expert = 0; expert < config.moe.experts; ++expert) {
      for (const char* part : {"gate_up", "down"})
        matrices.emplace_back(fmt::format("layers.{}.experts.{}.{}", layer, expert, part), 0);
      to_experts += (*one)->rows(matrices.back().first, 0);
      EXPECT_EQ((*one)->rows(matrices.back().first, 0), (*one)->rows(matrices[matrices.size() - 2].first, 0));
    }
    EXPECT_EQ(to_experts, tokens * config.moe.experts_per_token);
    for (const auto& [section, channel] : matrices) {
      if (!section.contains("experts")) {
        EXPECT_EQ((*one)->rows(section, channel), tokens) << section << " " << channel;
      }
      EXPECT_EQ((*one)->rows(section, channel), (*three)->rows(section, channel)) << section;
      EXPECT_TRUE(values_of(**one, section, channel) == values_of(**three, section, channel)) << section;
    }
    // A row is kept once for a matrix, whoever computes which of its columns.
    for (const auto& inputs : {&one, &three})
      for (const std::string& section : {std::string("head"), fmt::format("layers.{}.experts.0.down", layer)})
        for (int channel = 16; channel < config.vocab_size; channel += 16)
          ASSERT_EQ((**inputs)->rows(section, channel), 0) << section << " " << channel;
    if (config.mtp_layers > 0) {
      EXPECT_GT((*one)->rows(fmt::format("layers.{}.mtp.eh", config.layers), 0), tokens / 2);
    }
  }
}

// A text of more windows than kCalibrationWindows: experts see it all, what all tokens go through a share.
TEST_F(GatherInputs, ExpertsSeeMoreOfALongText) {
  const auto checkpoint = fixtures::read_family_checkpoint(fixtures::family_folder("qwen3_moe"));
  ASSERT_TRUE(checkpoint.has_value()) << checkpoint.error().message;
  ASSERT_TRUE(fixtures::write_family_hugging_face(*checkpoint, folder / "moe").has_value());
  const auto model = pack(folder / "moe", model::PackType::int8);
  ASSERT_TRUE(model);
  int64_t tokens = 0;
  const auto inputs = gather_inputs(model, text_of(20 * 2048), folder,
                                    {.cpus = {-1}, .progress = [&](int64_t done, int64_t) { tokens = done; }})
                          .value();
  const auto expect_share = [&](const std::string& section, double share) {
    EXPECT_NEAR(static_cast<double>(inputs->rows(section, 0)) / static_cast<double>(tokens), share, 0.06)
        << section;
  };
  for (const char* section : {"head", "layers.0.attention.o", "layers.0.router"})
    expect_share(section, 16 / 20.0);
  int64_t to_experts = 0;
  for (int expert = 0; expert < model->config().moe.experts; ++expert)
    to_experts += inputs->rows(fmt::format("layers.0.experts.{}.gate_up", expert), 0);
  EXPECT_EQ(to_experts, tokens * model->config().moe.experts_per_token);
}

TEST_F(GatherInputs, TooShortATextIsRefusedWithTheLimit) {
  const auto short_text = gather(llama(), std::string(511, 'a'));
  ASSERT_FALSE(short_text.has_value());
  EXPECT_EQ(short_text.error().code, Code::invalid_argument);
  EXPECT_THAT(short_text.error().message, HasSubstr("has 511 tokens; at least 512"));
  EXPECT_TRUE(gather(llama(), std::string(512, 'a')).has_value());
}

// A short context cuts windows short: what the text has is not what is read of it.
TEST_F(GatherInputs, AShortContextNeedsALongerText) {
  model::ModelConfig config = fixtures::tiny_config(model::Architecture::llama);
  config.max_position = 300;
  const auto written = fixtures::write_hugging_face(fixtures::tiny_checkpoint(config, 1), folder / "short");
  ASSERT_TRUE(written.has_value());
  const auto facts = model::checkpoint_facts(folder / "short");
  ASSERT_TRUE(facts.has_value()) << facts.error().message;
  const auto checked = [&](size_t bytes) {
    return check_calibration_tokens(std::string(bytes, 'a'), facts->tokenizer, facts->config);
  };
  const auto one_window = checked(1000), two = checked(4096);
  ASSERT_FALSE(one_window.has_value());
  EXPECT_EQ(one_window.error().code, Code::invalid_argument);
  EXPECT_THAT(one_window.error().message,
              HasSubstr("has 1000 tokens, of which a model of 300 positions would read 300; at "
                        "least 512 are needed"));
  EXPECT_TRUE(two.has_value()) << two.error().message;
  const auto model = pack(folder / "short", model::PackType::int8);
  ASSERT_TRUE(model);
  EXPECT_EQ(gather(model, std::string(1000, 'a')).error().message, one_window.error().message);
  EXPECT_TRUE(gather(model, std::string(4096, 'a')).has_value());
}

TEST_F(GatherInputs, OnlyInt8ModelsHaveSomethingToGather) {
  EXPECT_FALSE(gather(llama(model::PackType::float32), text_of(3000)).has_value());
}

}  // namespace
}  // namespace millrace::engine
