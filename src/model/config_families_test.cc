// The configs that the families' publishers ship, as config.json spells them, and what they must come to.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <boost/json.hpp>
#include <numeric>

#include "model/config.h"
#include "model/fixtures/published_configs.h"

namespace millrace::model {
namespace {

using testing::HasSubstr;
using Json = boost::json::object;

Json parsed(std::string_view text) { return boost::json::parse(text).as_object(); }

Json changed(Json object, std::initializer_list<std::pair<std::string_view, boost::json::value>> fields) {
  for (const auto& [key, value] : fields) {
    if (value.is_string() && value.get_string() == "(absent)") {
      object.erase(key);
    } else {
      object[key] = value;
    }
  }
  return object;
}

Expected<ModelConfig> read(const Json& object) {
  return config_from_hugging_face(boost::json::serialize(object), "");
}
ModelConfig good(const Json& object) {
  auto config = read(object);
  EXPECT_TRUE(config.has_value()) << (config ? "" : config.error().message);
  return config.value_or(ModelConfig{});
}
std::string error_of(const Json& object) {
  const auto config = read(object);
  return config ? "" : config.error().message;
}
int mixtures(const ModelConfig& config) {
  return std::accumulate(config.moe.layers.begin(), config.moe.layers.end(), 0);
}

Json deepseek_v3() { return parsed(fixtures::kDeepSeekV3Config); }

Json kimi_k2() {
  return changed(deepseek_v3(),
                 {{"model_type", "kimi_k2"},
                  {"num_attention_heads", 64},
                  {"num_key_value_heads", 64},
                  {"n_routed_experts", 384},
                  {"n_group", 1},
                  {"topk_group", 1},
                  {"first_k_dense_replace", 1},
                  {"num_nextn_predict_layers", 0},
                  {"vocab_size", 163840},
                  {"rope_theta", 50000.0},
                  {"routed_scaling_factor", 2.827},
                  {"rope_scaling", parsed(R"({"beta_fast": 1.0, "beta_slow": 1.0, "factor": 32.0,
                                   "mscale": 1.0, "mscale_all_dim": 1.0, "original_max_position_embeddings": 4096,
                                   "type": "yarn"})")}});
}

Json deepseek_v2_lite() {
  return parsed(R"({"architectures": ["DeepseekV2ForCausalLM"], "model_type": "deepseek_v2",
    "attention_bias": false, "bos_token_id": 100000, "eos_token_id": 100001, "first_k_dense_replace": 1,
    "hidden_act": "silu", "hidden_size": 2048, "intermediate_size": 10944, "kv_lora_rank": 512,
    "max_position_embeddings": 163840, "moe_intermediate_size": 1408, "moe_layer_freq": 1, "n_group": 1,
    "n_routed_experts": 64, "n_shared_experts": 2, "norm_topk_prob": false, "num_attention_heads": 16,
    "num_experts_per_tok": 6, "num_hidden_layers": 27, "num_key_value_heads": 16, "q_lora_rank": null,
    "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "rms_norm_eps": 1e-06,
    "rope_scaling": {"beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 0.707, "mscale_all_dim": 0.707,
      "original_max_position_embeddings": 4096, "type": "yarn"}, "rope_theta": 10000, "routed_scaling_factor": 1.0,
    "scoring_func": "softmax", "topk_group": 1, "topk_method": "greedy", "vocab_size": 102400})");
}

Json qwen3_moe() {
  return parsed(
      R"({"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "attention_bias": false,
    "bos_token_id": 151643, "eos_token_id": 151645, "decoder_sparse_step": 1, "head_dim": 128, "hidden_act": "silu",
    "hidden_size": 2048, "intermediate_size": 6144, "max_position_embeddings": 40960, "mlp_only_layers": [],
    "moe_intermediate_size": 768, "norm_topk_prob": true, "num_attention_heads": 32, "num_experts": 128,
    "num_experts_per_tok": 8, "num_hidden_layers": 48, "num_key_value_heads": 4, "rms_norm_eps": 1e-06,
    "rope_scaling": null, "rope_theta": 1000000.0, "sliding_window": null, "use_sliding_window": false,
    "tie_word_embeddings": false, "vocab_size": 151936})");
}

Json pangu_ultra() {
  return parsed(R"({"architectures": ["PanguUltraMoEForCausalLM"], "model_type": "pangu_ultra_moe",
    "attention_kv_lora_dim": 512, "attention_q_lora_dim": 1536, "attention_qk_dim": 128, "attention_qk_rope_dim": 64,
    "attention_v_dim": 128, "hidden_size": 7680, "intermediate_size": 18432, "moe_intermediate_size": 2048,
    "num_hidden_layers": 61, "num_attention_heads": 128, "num_routed_experts": 256, "num_shared_experts": 1,
    "num_dense_layers": 3, "num_experts_per_tok": 8, "num_mtp_layers": 1, "norm_topk_prob": true,
    "routed_scaling_factor": 2.5, "sandwich_norm": true, "hidden_act": "silu", "rms_norm_eps": 1e-05,
    "rope_theta": 25600000.0, "max_position_embeddings": 131072, "vocab_size": 153600})");
}

TEST(FamilyConfigs, DeepSeekV3) {
  const ModelConfig c = good(deepseek_v3());
  EXPECT_EQ(c.architecture, Architecture::deepseek_v3);
  EXPECT_EQ(c.mla.kv_lora_rank, 512);
  EXPECT_EQ(c.mla.q_lora_rank, 1536);
  EXPECT_EQ(c.mla.nope_head_dim, 128);
  EXPECT_EQ(c.mla.rope_head_dim, 64);
  EXPECT_EQ(c.mla.value_head_dim, 128);
  EXPECT_TRUE(c.mla.rope_interleaved);
  EXPECT_EQ(c.mla.latent_norm_eps, 1e-6f);
  EXPECT_EQ(c.head_dim, 192);
  EXPECT_EQ(c.kv_heads, 1);
  EXPECT_EQ(c.mtp_layers, 1);
  EXPECT_EQ(c.moe.experts, 256);
  EXPECT_EQ(c.moe.experts_per_token, 8);
  EXPECT_EQ(c.moe.ffn_size, 2048);
  EXPECT_EQ(c.moe.shared_ffn_size, 2048);
  EXPECT_FALSE(c.moe.shared_gate);
  EXPECT_EQ(mixtures(c), 58);
  EXPECT_EQ(c.moe.layers[2], 0);
  EXPECT_EQ(c.moe.layers[3], 1);
  EXPECT_EQ(c.moe.score, MoeConfig::Score::sigmoid);
  EXPECT_EQ(c.moe.group_score, MoeConfig::GroupScore::top2_sum);
  EXPECT_TRUE(c.moe.selection_bias && c.moe.normalise);
  EXPECT_EQ(c.moe.groups, 8);
  EXPECT_EQ(c.moe.groups_kept, 4);
  EXPECT_EQ(c.moe.weight_scale, 2.5f);
  EXPECT_EQ(c.rope.attention_factor, 1);
  EXPECT_EQ(c.generation.temperature, 1.0);
}

// Published YaRN parameters, and what the formula makes of them (computed apart from this program).
TEST(FamilyConfigs, YarnScalesTheLogits) {
  struct Case {
    Json config;
    double scale, pair_8, pair_20;
  };
  const Case cases[] = {{deepseek_v3(), 0.1352338, 0.1, -1},
                        {deepseek_v2_lite(), 0.1147214, 0.1, -1},
                        {kimi_k2(), 0.1308608, 0.066874, 3.61405e-5}};
  for (const Case& expected : cases) {
    const ModelConfig c = good(expected.config);
    EXPECT_NEAR(c.attention_scale, expected.scale, 1e-6);
    const auto w = c.rope.inverse_frequencies(c.mla.rope_head_dim);
    EXPECT_NEAR(w[8], expected.pair_8, 1e-6);
    if (expected.pair_20 > 0) {
      EXPECT_NEAR(w[20], expected.pair_20, 1e-10);
    }
  }
  Json longer = kimi_k2();
  longer["rope_scaling"].as_object()["factor"] = 64.0;
  EXPECT_NEAR(good(longer).attention_scale, 0.1446796, 1e-6);
  longer["rope_scaling"] = nullptr;
  EXPECT_EQ(good(longer).attention_scale, 0);
}

TEST(FamilyConfigs, TransformersFiveSpellsItOtherwise) {
  const ModelConfig four = good(deepseek_v3());
  Json five = deepseek_v3();
  Json rope = five["rope_scaling"].as_object();
  rope["rope_type"] = "yarn";
  rope["rope_theta"] = 10000.0;
  rope.erase("type");
  five = changed(five, {{"rope_scaling", "(absent)"},
                        {"rope_theta", "(absent)"},
                        {"torch_dtype", "(absent)"},
                        {"dtype", "bfloat16"},
                        {"rope_parameters", rope},
                        {"n_routed_experts", "(absent)"},
                        {"num_local_experts", 256},
                        {"head_dim", 64},
                        {"rope_interleave", true}});
  const ModelConfig c = good(five);
  EXPECT_EQ(c.attention_scale, four.attention_scale);
  EXPECT_EQ(c.moe.experts, four.moe.experts);
  EXPECT_EQ(c.head_dim, four.head_dim);
  EXPECT_EQ(c.rope.inverse_frequencies(64), four.rope.inverse_frequencies(64));
}

TEST(FamilyConfigs, KimiK2) {
  const ModelConfig c = good(kimi_k2());
  EXPECT_EQ(c.architecture, Architecture::deepseek_v3);
  EXPECT_EQ(c.moe.experts, 384);
  EXPECT_EQ(c.moe.groups, 1);
  EXPECT_EQ(c.mtp_layers, 0);
  EXPECT_EQ(mixtures(c), 60);
  EXPECT_EQ(good(changed(kimi_k2(), {{"architectures", {"KimiK2ForCausalLM"}}})).architecture,
            Architecture::deepseek_v3);
}

TEST(FamilyConfigs, DeepSeekV2) {
  const ModelConfig lite = good(deepseek_v2_lite());
  EXPECT_EQ(lite.architecture, Architecture::deepseek_v2);
  EXPECT_EQ(lite.mla.q_lora_rank, 0);
  EXPECT_EQ(lite.moe.shared_ffn_size, 2816);
  EXPECT_EQ(lite.moe.score, MoeConfig::Score::softmax);
  EXPECT_FALSE(lite.moe.normalise || lite.moe.selection_bias);
  EXPECT_EQ(mixtures(lite), 26);
  const ModelConfig whole = good(changed(deepseek_v2_lite(), {{"topk_method", "group_limited_greedy"},
                                                              {"n_group", 8},
                                                              {"topk_group", 3},
                                                              {"n_routed_experts", 160}}));
  EXPECT_EQ(whole.moe.groups, 8);
  EXPECT_EQ(whole.moe.groups_kept, 3);
  EXPECT_EQ(whole.moe.group_score, MoeConfig::GroupScore::max);
}

TEST(FamilyConfigs, QwenMixtures) {
  const ModelConfig c = good(qwen3_moe());
  EXPECT_EQ(c.architecture, Architecture::qwen3_moe);
  EXPECT_TRUE(c.qk_norm && c.moe.normalise);
  EXPECT_FALSE(c.qkv_bias || c.moe.selection_bias || c.mla.used());
  EXPECT_EQ(mixtures(c), 48);
  EXPECT_EQ(c.moe.shared_ffn_size, 0);
  EXPECT_FALSE(good(changed(qwen3_moe(), {{"norm_topk_prob", "(absent)"}})).moe.normalise);
  const Json qwen2 = changed(qwen3_moe(), {{"architectures", {"Qwen2MoeForCausalLM"}},
                                           {"model_type", "qwen2_moe"},
                                           {"head_dim", 64},
                                           {"shared_expert_intermediate_size", 5632},
                                           {"decoder_sparse_step", 2},
                                           {"mlp_only_layers", {3, 7}}});
  const ModelConfig c2 = good(qwen2);
  EXPECT_TRUE(c2.qkv_bias && c2.moe.shared_gate);
  EXPECT_FALSE(c2.qk_norm);
  EXPECT_EQ(c2.moe.shared_ffn_size, 5632);
  EXPECT_EQ(mixtures(c2), 24 - 2);
  EXPECT_EQ(c2.moe.layers[0], 0);
  EXPECT_EQ(c2.moe.layers[1], 1);
  EXPECT_THAT(error_of(changed(qwen2, {{"mlp_only_layers", {48}}})), HasSubstr("not one of 48 layers"));
  EXPECT_THAT(error_of(changed(qwen2, {{"decoder_sparse_step", 0}})), HasSubstr("decoder_sparse_step"));
}

TEST(FamilyConfigs, Pangu) {
  const ModelConfig ultra = good(pangu_ultra());
  EXPECT_TRUE(ultra.sandwich_norm && ultra.mla.used());
  EXPECT_EQ(ultra.mla.latent_norm_eps, 1e-5f);
  EXPECT_EQ(ultra.mtp_layers, 1);
  EXPECT_EQ(mixtures(ultra), 58);
  EXPECT_FALSE(ultra.moe.selection_bias);
  EXPECT_EQ(ultra.attention_scale, 0);
  const Json pro = parsed(R"({"architectures": ["PanguProMoEForCausalLM"], "model_type": "PanguProMoE",
    "hidden_size": 5120, "num_hidden_layers": 48, "num_attention_heads": 40, "num_key_value_heads": 8,
    "hidden_act": "silu", "rms_norm_eps": 1e-05, "rope_theta": 16000000.0, "max_position_embeddings": 131072,
    "moe_intermediate_size": 1344, "shared_expert_intermediate_size": 5376, "num_experts_per_tok": 8,
    "num_experts": 64, "tie_word_embeddings": false, "vocab_size": 153376})");
  const ModelConfig c = good(pro);
  EXPECT_TRUE(c.moe.one_per_group && c.moe.expert_scale && c.qkv_bias && c.o_bias);
  EXPECT_FALSE(c.moe.normalise || c.moe.shared_gate);
  EXPECT_EQ(c.moe.groups, 8);
  EXPECT_EQ(c.moe.shared_ffn_size, 5376);
  EXPECT_EQ(mixtures(c), 48);
  const Json embedded =
      parsed(R"({"architectures": ["PanguEmbeddedForCausalLM"], "model_type": "PanguEmbedded",
    "bias": true, "hidden_size": 1536, "intermediate_size": 6144, "num_hidden_layers": 26, "num_attention_heads": 12,
    "num_key_value_heads": 6, "hidden_act": "silu", "rms_norm_eps": 1e-05, "rope_theta": 4000000.0,
    "max_position_embeddings": 32768, "tie_word_embeddings": true, "vocab_size": 153376, "eos_token_id": 45892})");
  EXPECT_TRUE(good(embedded).o_bias);
  EXPECT_THAT(error_of(changed(embedded, {{"param_sink_number", 128}})),
              HasSubstr("param_sink_number is 128"));
}

TEST(FamilyConfigs, RefusesWhatItDoesNotCompute) {
  EXPECT_THAT(error_of(changed(deepseek_v3(), {{"model_type", "deepseek_v32"}})),
              HasSubstr("sparse attention"));
  EXPECT_THAT(error_of(changed(qwen3_moe(), {{"model_type", "qwen3_next"}})), HasSubstr("Gated DeltaNet"));
  EXPECT_THAT(error_of(changed(deepseek_v3(), {{"index_topk", 2048}})), HasSubstr("index_topk is 2048"));
  EXPECT_THAT(error_of(changed(deepseek_v3(), {{"use_mhc", true}})), HasSubstr("use_mhc"));
  EXPECT_THAT(error_of(changed(qwen3_moe(), {{"layer_types", {"sliding_attention"}}})),
              HasSubstr("layer_types"));
  EXPECT_THAT(error_of(changed(deepseek_v3(), {{"attention_bias", true}})), HasSubstr("attention_bias"));
  EXPECT_THAT(error_of(changed(deepseek_v3(), {{"scoring_func", "tanh"}})), HasSubstr("scoring_func"));
  EXPECT_THAT(error_of(changed(deepseek_v3(), {{"topk_method", "random"}})), HasSubstr("topk_method"));
  Json quantised = deepseek_v3();
  quantised["quantization_config"].as_object()["weight_block_size"] = {64, 64};
  EXPECT_THAT(error_of(quantised), HasSubstr("[64,64]"));
  quantised["quantization_config"].as_object()["quant_method"] = "compressed-tensors";
  EXPECT_THAT(error_of(quantised), HasSubstr("compressed-tensors"));
}

TEST(FamilyConfigs, RefusesSizesThatCannotBe) {
  EXPECT_THAT(error_of(changed(deepseek_v3(), {{"kv_lora_rank", 0}})), HasSubstr("kv_lora_rank"));
  EXPECT_THAT(error_of(changed(deepseek_v3(), {{"kv_lora_rank", 100000}})),
              HasSubstr("kv_lora_rank is 100000"));
  EXPECT_THAT(error_of(changed(deepseek_v3(), {{"qk_rope_head_dim", 63}})), HasSubstr("63 is odd"));
  // Their sum is no int.
  EXPECT_THAT(error_of(changed(deepseek_v3(), {{"qk_nope_head_dim", INT32_MAX}, {"qk_rope_head_dim", 64}})),
              HasSubstr("qk_nope_head_dim"));
  EXPECT_THAT(error_of(changed(deepseek_v3(), {{"n_group", 7}})), HasSubstr("7 equal groups"));
  EXPECT_THAT(error_of(changed(deepseek_v3(), {{"topk_group", 9}})), HasSubstr("topk_group is 9"));
  EXPECT_THAT(error_of(changed(deepseek_v3(), {{"num_experts_per_tok", 257}})),
              HasSubstr("num_experts_per_tok is 257"));
  EXPECT_THAT(error_of(changed(deepseek_v3(), {{"n_group", 256}, {"topk_group", 8}})),
              HasSubstr("groups of one"));
  EXPECT_THAT(error_of(changed(deepseek_v3(), {{"n_shared_experts", 2000000000}})),
              HasSubstr("n_shared_experts"));
  EXPECT_THAT(error_of(changed(deepseek_v3(), {{"num_nextn_predict_layers", 99}})),
              HasSubstr("num_nextn_predict_layers"));
  EXPECT_THAT(error_of(changed(deepseek_v3(), {{"moe_intermediate_size", 0}})),
              HasSubstr("moe_intermediate_size"));
}

}  // namespace
}  // namespace millrace::model
