// DeepSeek V2, V2-Lite (deepseek_v2), V3, R1, V3.1 and Kimi K2 (deepseek_v3): latent attention, and from some
// layer on a mixture of experts with a shared one. The two generations differ in how experts are picked:
//   V2: softmax scores; the best, or the best of the groups whose best expert is best; weights as they are
//   V3: sigmoid scores; a bias joins for the choice alone; groups by the sum of their two best; weights
//   normalised
// Both multiply the weights by routed_scaling_factor. GGUF calls both deepseek2 and tells them apart by the
// gating function.
//
// YaRN in this family scales the attention logits by mscale^2, with mscale = 0.1 mscale_all_dim ln(factor) +
// 1, at every length (DeepSeek's own code does so only beyond the original context; the models were tuned
// with it always on).
#include <array>
#include <cmath>

#include "model/gguf.h"
#include "model/internal/architecture.h"
#include "model/internal/mixture_config.h"

namespace millrace::model {
namespace {

// mscale_all_dim 0: plain scaling.
void scale_attention(double mscale_all_dim, ModelConfig& config) {
  if (config.rope.kind != RopeConfig::Kind::yarn || mscale_all_dim == 0 || config.rope.factor <= 1) return;
  const double mscale = 0.1 * mscale_all_dim * std::log(config.rope.factor) + 1;
  config.attention_scale =
      static_cast<float>(mscale * mscale / std::sqrt(static_cast<double>(config.head_dim)));
}

Expected<void> read_attention(const boost::json::object& file, ModelConfig& config) {
  if (MR_TRY(read_bool(file, "attention_bias", false)))
    return fail(Code::unimplemented, "attention_bias is true; latent attention has none here");
  MlaConfig& mla = config.mla;
  mla.kv_lora_rank = MR_TRY(read_size(file, "kv_lora_rank"));
  mla.q_lora_rank = MR_TRY(read_size(file, "q_lora_rank", 0));
  mla.nope_head_dim = MR_TRY(read_size(file, "qk_nope_head_dim"));
  mla.rope_head_dim = MR_TRY(read_size(file, "qk_rope_head_dim"));
  mla.value_head_dim = MR_TRY(read_size(file, "v_head_dim"));
  mla.rope_interleaved = MR_TRY(read_bool(file, "rope_interleave", true));
  if (!mla.used()) return invalid("\"kv_lora_rank\" is 0", "kv_lora_rank");
  const int64_t head_dim = int64_t{mla.nope_head_dim} + mla.rope_head_dim;
  if (head_dim > INT32_MAX) return invalid("\"qk_nope_head_dim\" is out of range", "qk_nope_head_dim");
  config.head_dim = static_cast<int>(head_dim);
  config.kv_heads = 1;
  for (const char* key : {"rope_parameters", "rope_scaling"}) {
    const boost::json::value* scaling = field_of(file, key);
    if (scaling == nullptr || !scaling->is_object()) continue;
    scale_attention(MR_TRY(read_number(scaling->get_object(), "mscale_all_dim", 0)), config);
    break;
  }
  return {};
}

// No released V2 asks for normalised weights, and those who compute the family disagree on what they are: its
// publisher's code normalises and then leaves routed_scaling_factor out, vLLM and llama.cpp normalise and
// scale, transformers keeps the key and ignores it. So it is refused in both formats, by each one's key.
Expected<void> refuse_normalised_v2(const ModelConfig& config, std::string_view key) {
  if (!config.moe.normalise || config.architecture != Architecture::deepseek_v2) return {};
  return fail(Code::unimplemented, fmt::format("{} is true, which for deepseek_v2 has no one meaning", key));
}

// How V2 or V3 picks, unless the file says otherwise.
struct Defaults {
  std::string_view method, scores;
  bool normalise;
};

Expected<void> read_mixture(const boost::json::object& file, const Defaults& defaults, ModelConfig& config) {
  MoeConfig& moe = config.moe;
  moe.experts = MR_TRY(read_expert_count(file));
  if (moe.experts == 0) return {};
  moe.experts_per_token = MR_TRY(read_size(file, "num_experts_per_tok"));
  moe.ffn_size = MR_TRY(read_size(file, "moe_intermediate_size"));
  moe.shared_ffn_size =
      MR_TRY(shared_width(MR_TRY(read_size(file, "n_shared_experts", 0)), moe.ffn_size, "n_shared_experts"));
  const int first = MR_TRY(read_size(file, "first_k_dense_replace", 0)),
            step = MR_TRY(read_size(file, "moe_layer_freq", 1));
  if (step < 1) return invalid("\"moe_layer_freq\" is 0", "moe_layer_freq");
  moe.layers = mixture_from(first, step, config.layers);

  const std::string method = MR_TRY(read_text(file, "topk_method", defaults.method));
  const std::string scores = MR_TRY(read_text(file, "scoring_func", defaults.scores));
  if (scores != "softmax" && scores != "sigmoid")
    return fail(Code::unimplemented,
                fmt::format("scoring_func \"{}\" is not supported", scores.substr(0, 80)));
  moe.score = scores == "softmax" ? MoeConfig::Score::softmax : MoeConfig::Score::sigmoid;
  if (method != "greedy") {
    moe.groups = MR_TRY(read_size(file, "n_group", 1));
    moe.groups_kept = MR_TRY(read_size(file, "topk_group", 1));
  }
  if (method == "noaux_tc") {
    moe.selection_bias = true;
    moe.group_score = MoeConfig::GroupScore::top2_sum;
  } else if (method != "greedy" && method != "group_limited_greedy") {
    return fail(Code::unimplemented,
                fmt::format("topk_method \"{}\" is not supported", method.substr(0, 80)));
  }
  moe.normalise = MR_TRY(read_bool(file, "norm_topk_prob", defaults.normalise));
  moe.weight_scale = static_cast<float>(MR_TRY(read_number(file, "routed_scaling_factor", 1)));
  return refuse_normalised_v2(config, "norm_topk_prob");
}

Expected<void> v2_from_hugging_face(const boost::json::object& file, ModelConfig& config) {
  MR_TRY(read_attention(file, config));
  return read_mixture(file, {.method = "greedy", .scores = "softmax", .normalise = false}, config);
}

Expected<void> v3_from_hugging_face(const boost::json::object& file, ModelConfig& config) {
  MR_TRY(read_attention(file, config));
  config.mtp_layers = MR_TRY(read_size(file, "num_nextn_predict_layers", 0));
  return read_mixture(file, {.method = "noaux_tc", .scores = "sigmoid", .normalise = true}, config);
}

Expected<void> from_gguf(const GgufFile& file, ModelConfig& config) {
  const GgufKeys keys(file, "deepseek2");
  config.mla.rope_interleaved = true;
  config.rope.attention_factor =
      1;  // cos and sin: m(mscale) / m(mscale_all_dim), which are equal in this family
  // 0.1 mscale_all_dim, as a float; rounded so that 0.0707f means 0.707, as in config.json.
  const double log_multiplier = MR_TRY(keys.number("rope.scaling.yarn_log_multiplier", 0));
  scale_attention(std::round(log_multiplier * 1e7) / 1e6, config);
  config.mtp_layers = MR_TRY(keys.size("nextn_predict_layers", 0));
  config.layers -= config.mtp_layers;  // block_count has them
  MoeConfig& moe = config.moe;
  moe.experts = MR_TRY(keys.size("expert_count", 0));
  if (moe.experts == 0) return {};
  moe.experts_per_token = MR_TRY(keys.size("expert_used_count"));
  moe.ffn_size = MR_TRY(keys.size("expert_feed_forward_length"));
  moe.shared_ffn_size =
      MR_TRY(shared_width(MR_TRY(keys.size("expert_shared_count", 0)), moe.ffn_size, "expert_shared_count"));
  moe.layers = mixture_from(MR_TRY(keys.size("leading_dense_block_count", 0)), 1, config.layers);
  constexpr int kSoftmax = 1, kSigmoid = 2;
  const int gating = MR_TRY(keys.size("expert_gating_func", kSoftmax));  // absent in old files of V2
  if (gating != kSoftmax && gating != kSigmoid)
    return fail(Code::unimplemented, fmt::format("GGUF: {} is {}; 1 (softmax) and 2 (sigmoid) are supported",
                                                 keys.name("expert_gating_func"), gating));
  const bool v3 = gating == kSigmoid;
  config.architecture = v3 ? Architecture::deepseek_v3 : Architecture::deepseek_v2;
  moe.score = v3 ? MoeConfig::Score::sigmoid : MoeConfig::Score::softmax;
  moe.selection_bias = v3;
  moe.group_score = v3 ? MoeConfig::GroupScore::top2_sum : MoeConfig::GroupScore::max;
  moe.groups = std::max(1, MR_TRY(keys.size("expert_group_count", 1)));
  moe.groups_kept = std::max(1, MR_TRY(keys.size("expert_group_used_count", moe.groups)));
  moe.normalise = keys.boolean("expert_weights_norm", false);
  const double scale = MR_TRY(keys.number("expert_weights_scale", 1));
  moe.weight_scale = scale == 0 ? 1.0f : static_cast<float>(scale);
  return refuse_normalised_v2(config, keys.name("expert_weights_norm"));
}

Plan plan(const ModelConfig& config) { return decoder_plan(config, {}); }

constexpr std::array<std::string_view, 1> kKimiTypes = {"kimi_k2"}, kKimiClasses = {"KimiK2ForCausalLM"};

}  // namespace

const ArchitecturePage kDeepSeekV2Page{
    .model_type = "deepseek_v2",
    .causal_lm_class = "DeepseekV2ForCausalLM",
    .gguf_architecture = "deepseek2",
    .latent_attention = true,
    .mixture = true,
    .from_hugging_face = v2_from_hugging_face,
    .from_gguf = from_gguf,
    .plan = plan,
};

const ArchitecturePage kDeepSeekV3Page{
    .model_type = "deepseek_v3",
    .causal_lm_class = "DeepseekV3ForCausalLM",
    .also_model_types = kKimiTypes,
    .also_classes = kKimiClasses,
    .gguf_architecture = "deepseek2",
    .latent_attention = true,
    .mixture = true,
    .from_hugging_face = v3_from_hugging_face,
    .from_gguf = from_gguf,
    .plan = plan,
};

}  // namespace millrace::model
