#include "model/config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <numbers>
#include <string>

namespace millrace::model {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

constexpr std::string_view kLlama = R"({"architectures": ["LlamaForCausalLM"], "model_type": "llama",
  "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 576, "intermediate_size": 1536,
  "max_position_embeddings": 8192, "num_attention_heads": 9, "num_hidden_layers": 30, "num_key_value_heads": 3,
  "rms_norm_eps": 1e-05, "rope_interleaved": false, "rope_scaling": null, "rope_theta": 100000,
  "tie_word_embeddings": true, "vocab_size": 49152})";

// kLlama with one field replaced or added.
std::string with(std::string_view field) {
  std::string text(kLlama);
  const std::string key(field.substr(0, field.find(':')));
  if (const size_t at = text.find(key + ":"); at != std::string::npos) {
    size_t end = at;
    for (int depth = 0; depth > 0 || (text[end] != ',' && text[end] != '}'); ++end) {
      if (text[end] == '[' || text[end] == '{') ++depth;
      if (text[end] == ']' || text[end] == '}') --depth;
    }
    return text.replace(at, end - at, field);
  }
  return text.insert(1, std::string(field) + ", ");
}

std::string error_of(std::string_view config, std::string_view generation = "") {
  const auto parsed = config_from_hugging_face(config, generation);
  return parsed ? "" : parsed.error().message;
}

TEST(Config, ReadsLlamaInTheSpellingOfTransformers4) {
  const auto config = config_from_hugging_face(kLlama, "");
  ASSERT_TRUE(config.has_value()) << config.error().message;
  EXPECT_EQ(config->architecture, Architecture::llama);
  EXPECT_EQ(config->vocab_size, 49152);
  EXPECT_EQ(config->hidden_size, 576);
  EXPECT_EQ(config->layers, 30);
  EXPECT_EQ(config->q_heads, 9);
  EXPECT_EQ(config->kv_heads, 3);
  EXPECT_EQ(config->head_dim, 64);
  EXPECT_EQ(config->ffn_size, 1536);
  EXPECT_EQ(config->rms_norm_eps, 1e-5f);
  EXPECT_EQ(config->rope.theta, 100000);
  EXPECT_EQ(config->rope.kind, RopeConfig::Kind::plain);
  EXPECT_TRUE(config->tied_embeddings);
  EXPECT_FALSE(config->qkv_bias || config->o_bias || config->mlp_bias || config->qk_norm);
  EXPECT_EQ(config->max_position, 8192);
  EXPECT_EQ(config->bos, 1);
  EXPECT_THAT(config->eos, ElementsAre(2));
}

TEST(Config, BothSpellingsOfRopeAgree) {
  const auto four = config_from_hugging_face(
      with(
          R"("rope_scaling": {"rope_type": "llama3", "factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
              "original_max_position_embeddings": 8192})"),
      "");
  ASSERT_TRUE(four.has_value()) << four.error().message;
  std::string text = with(
      R"("rope_parameters": {"rope_type": "llama3", "rope_theta": 100000.0, "factor": 32.0, "high_freq_factor": 4.0,
         "low_freq_factor": 1.0, "original_max_position_embeddings": 8192})");
  text.replace(text.find("\"rope_theta\": 100000,"), 21, "");
  const auto five = config_from_hugging_face(text, "");
  ASSERT_TRUE(five.has_value()) << five.error().message;
  EXPECT_EQ(four->rope.kind, RopeConfig::Kind::llama3);
  EXPECT_EQ(five->rope.kind, RopeConfig::Kind::llama3);
  EXPECT_EQ(four->rope.inverse_frequencies(64), five->rope.inverse_frequencies(64));
}

TEST(Config, FamiliesSetTheirSwitches) {
  std::string qwen2 = with(R"("model_type": "qwen2")");
  qwen2.replace(qwen2.find("LlamaForCausalLM"), 16, "Qwen2ForCausalLM");
  const auto two = config_from_hugging_face(qwen2, "");
  ASSERT_TRUE(two.has_value()) << two.error().message;
  EXPECT_TRUE(two->qkv_bias);
  EXPECT_FALSE(two->o_bias || two->qk_norm);
  std::string qwen3 = with(R"("model_type": "qwen3")");
  qwen3.replace(qwen3.find("LlamaForCausalLM"), 16, "Qwen3ForCausalLM");
  const auto three = config_from_hugging_face(qwen3, "");
  ASSERT_TRUE(three.has_value()) << three.error().message;
  EXPECT_TRUE(three->qk_norm);
  EXPECT_FALSE(three->qkv_bias);
  EXPECT_EQ(three->head_dim, 128);  // the class's default, not 576 / 9
  const auto biased = config_from_hugging_face(with(R"("attention_bias": true)"), "");
  ASSERT_TRUE(biased.has_value());
  EXPECT_TRUE(biased->qkv_bias && biased->o_bias);
}

TEST(Config, GenerationConfigWinsOnEndTokens) {
  const auto config = config_from_hugging_face(
      kLlama,
      R"({"eos_token_id": [151, 143, 151], "temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.05})");
  ASSERT_TRUE(config.has_value()) << config.error().message;
  EXPECT_THAT(config->eos, ElementsAre(151, 143));
  EXPECT_EQ(config->generation.temperature, 0.7);
  EXPECT_EQ(config->generation.top_p, 0.8);
  EXPECT_EQ(config->generation.top_k, 20);
  EXPECT_EQ(config->generation.repetition_penalty, 1.05);
}

TEST(Config, ATopKBelowOneIsOff) {
  for (const char* generation : {R"({"top_k": -1})", R"({"top_k": 0})", "{}"}) {
    const auto config = config_from_hugging_face(kLlama, generation);
    ASSERT_TRUE(config.has_value()) << config.error().message;
    EXPECT_EQ(config->generation.top_k, 0) << generation;
  }
  EXPECT_THAT(error_of(kLlama, R"({"top_k": 4294967297})"), HasSubstr("\"top_k\" is 4294967297"));
}

TEST(Config, RefusesWhatIsNotComputed) {
  EXPECT_THAT(error_of(with(R"("model_type": "mamba")")), HasSubstr("supported are llama, qwen2, qwen3"));
  EXPECT_THAT(error_of(with(R"("architectures": ["LlamaForSequenceClassification"])")),
              HasSubstr("LlamaForCausalLM is expected"));
  EXPECT_THAT(error_of(with(R"("hidden_act": "gelu")")), HasSubstr("gelu"));
  EXPECT_THAT(error_of(with(R"("quantization_config": {"bits": 4})")), HasSubstr("quantised"));
  EXPECT_THAT(error_of(with(R"("use_sliding_window": true)")), HasSubstr("sliding"));
  EXPECT_THAT(error_of(with(R"("partial_rotary_factor": 0.5)")), HasSubstr("partial_rotary_factor"));
  EXPECT_THAT(error_of(with(R"("rope_interleaved": true)")), HasSubstr("rope_interleaved"));
  EXPECT_THAT(error_of(with(R"("rope_scaling": {"type": "dynamic", "factor": 2.0})")), HasSubstr("dynamic"));
  const std::string yarn = R"("rope_scaling": {"type": "yarn", "factor": 4, "truncate": )";
  EXPECT_EQ(error_of(with(yarn + "true}")), "");
  EXPECT_THAT(error_of(with(yarn + "false}")), HasSubstr("truncate"));
  EXPECT_THAT(error_of(with(R"("layer_types": ["full_attention", "sliding_attention"])")),
              HasSubstr("layer_types"));
}

TEST(Config, RefusesImpossibleSizes) {
  EXPECT_THAT(error_of(with(R"("hidden_size": -1)")), HasSubstr("hidden_size"));
  EXPECT_THAT(error_of(with(R"("hidden_size": 1.5)")), HasSubstr("not an integer"));
  EXPECT_THAT(error_of(with(R"("hidden_size": 99999999999)")), HasSubstr("out of range"));
  EXPECT_THAT(error_of(with(R"("num_hidden_layers": 0)")), HasSubstr("num_hidden_layers is 0"));
  EXPECT_THAT(error_of(with(R"("num_attention_heads": 0)")), HasSubstr("num_attention_heads is 0"));
  EXPECT_THAT(error_of(with(R"("num_key_value_heads": 2)")), HasSubstr("not a multiple"));
  EXPECT_THAT(error_of(with(R"("head_dim": 33)")), HasSubstr("odd"));
  EXPECT_THAT(error_of(with(R"("vocab_size": 1073741824)")), HasSubstr("vocab_size"));
  EXPECT_THAT(error_of(with(R"("eos_token_id": 49152)")), HasSubstr("eos_token_id is 49152"));
  EXPECT_THAT(error_of(with(R"("rms_norm_eps": 0)")), HasSubstr("rms_norm_eps"));
  EXPECT_THAT(error_of(with(R"("rope_theta": -5)")), HasSubstr("theta"));
  // Numbers above zero that made an infinite rotation, or logits.
  EXPECT_THAT(error_of(with(R"("rope_theta": 5e-324)")), HasSubstr("theta"));
  EXPECT_THAT(error_of(with(R"("rope_scaling": {"type": "linear", "factor": 1e-320})")),
              HasSubstr("rope factor"));
  EXPECT_THAT(error_of(kLlama, R"({"repetition_penalty": 1e-320})"), HasSubstr("repetition_penalty"));
  EXPECT_THAT(error_of("{}"), HasSubstr("\"model_type\" is missing"));
  EXPECT_THAT(error_of("[1]"), HasSubstr("not a JSON object"));
  EXPECT_THAT(error_of(kLlama, "{"), HasSubstr("generation_config.json"));
  EXPECT_THAT(error_of(kLlama, R"({"temperature": "hot"})"), HasSubstr("not a number"));
}

// Anchors: the YaRN frequencies of DeepSeek V3 (theta 1e4, factor 40, 64 rotary dims) worked out from the
// formula.
TEST(Config, YarnFrequencies) {
  RopeConfig rope{.theta = 1e4, .kind = RopeConfig::Kind::yarn, .factor = 40, .original_max_position = 4096};
  const auto w = rope.inverse_frequencies(64);
  ASSERT_EQ(w.size(), 32u);
  EXPECT_NEAR(w[8], 0.1, 1e-12);
  EXPECT_NEAR(w[11], 0.0390069, 1e-7);
  EXPECT_NEAR(w[22], 1.77828e-4, 1e-9);
  EXPECT_NEAR(w[31], 3.3338e-6, 1e-10);
}

TEST(Config, YarnAmplitude) {
  const auto config = config_from_hugging_face(
      with(R"("rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768})"),
      "");
  ASSERT_TRUE(config.has_value()) << config.error().message;
  EXPECT_NEAR(config->rope.attention_factor, 1.1386294, 1e-6);
  const auto equal = config_from_hugging_face(
      with(R"("rope_scaling": {"type": "yarn", "factor": 40, "mscale": 0.707, "mscale_all_dim": 0.707,
              "original_max_position_embeddings": 4096})"),
      "");
  ASSERT_TRUE(equal.has_value());
  EXPECT_EQ(equal->rope.attention_factor, 1.0);
}

TEST(Config, Llama3FrequenciesKeepShortWavesAndStretchLongOnes) {
  const RopeConfig rope{.theta = 500000,
                        .kind = RopeConfig::Kind::llama3,
                        .factor = 8,
                        .low_freq_factor = 1,
                        .high_freq_factor = 4,
                        .original_max_position = 8192};
  const auto w = rope.inverse_frequencies(128);
  const RopeConfig plain_rope{.theta = 500000};
  const auto plain = plain_rope.inverse_frequencies(128);
  for (size_t i = 0; i < w.size(); ++i) {
    const double wavelength = 2 * std::numbers::pi / plain[i];
    if (wavelength < 8192.0 / 4) {
      EXPECT_EQ(w[i], plain[i]);
    } else if (wavelength > 8192.0) {
      EXPECT_NEAR(w[i], plain[i] / 8, 1e-15);
    } else {
      EXPECT_LT(w[i], plain[i]);
      EXPECT_GT(w[i], plain[i] / 8);
    }
  }
  // One pair in between, by hand: i = 30, wavelength 2 pi 500000^(60/128).
  const double s = (8192.0 / (2 * std::numbers::pi / plain[30]) - 1) / 3;
  EXPECT_NEAR(w[30], (1 - s) * plain[30] / 8 + s * plain[30], 1e-15);
}

}  // namespace
}  // namespace millrace::model
