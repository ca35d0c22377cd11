// openPangu Ultra MoE: DeepSeek-V3's graph with keys of its own, no YaRN, no groups, a selection bias only
// where the config asks for it, and sandwich norms: each branch's output is normed before it is added. Rotary
// pairs are neighbours, as in DeepSeek's. There are no GGUF files.
//
// The latents' norms have the config's rms_norm_eps (1e-5), as in vLLM, with which the model is served; the
// publisher's transformers code leaves them at its class's default, 1e-6. For a latent of mean square 1 that
// moves a value by 4.5 parts in a million, 400 times less than a BF16 rounding: either reading is within what
// the model was trained with.
#include "model/internal/architecture.h"
#include "model/internal/mixture_config.h"

namespace millrace::model {
namespace {

Expected<void> from_hugging_face(const boost::json::object& file, ModelConfig& config) {
  MlaConfig& mla = config.mla;
  mla.kv_lora_rank = MR_TRY(read_size(file, "attention_kv_lora_dim"));
  mla.q_lora_rank = MR_TRY(read_size(file, "attention_q_lora_dim", 0));
  mla.nope_head_dim = MR_TRY(read_size(file, "attention_qk_dim"));
  mla.rope_head_dim = MR_TRY(read_size(file, "attention_qk_rope_dim"));
  mla.value_head_dim = MR_TRY(read_size(file, "attention_v_dim"));
  mla.latent_norm_eps = config.rms_norm_eps;
  if (!mla.used()) return invalid("\"attention_kv_lora_dim\" is 0", "attention_kv_lora_dim");
  const int64_t head_dim = int64_t{mla.nope_head_dim} + mla.rope_head_dim;
  if (head_dim > INT32_MAX) return invalid("\"attention_qk_dim\" is out of range", "attention_qk_dim");
  config.head_dim = static_cast<int>(head_dim);
  config.kv_heads = 1;
  config.sandwich_norm = MR_TRY(read_bool(file, "sandwich_norm", false));
  config.mtp_layers = MR_TRY(read_size(file, "num_mtp_layers", 0));

  MoeConfig& moe = config.moe;
  moe.experts = MR_TRY(read_expert_count(file));
  if (moe.experts == 0) return invalid("\"num_routed_experts\" is missing or 0", "num_routed_experts");
  moe.experts_per_token = MR_TRY(read_size(file, "num_experts_per_tok"));
  moe.ffn_size = MR_TRY(read_size(file, "moe_intermediate_size"));
  moe.shared_ffn_size = MR_TRY(
      shared_width(MR_TRY(read_size(file, "num_shared_experts", 0)), moe.ffn_size, "num_shared_experts"));
  moe.layers = mixture_from(MR_TRY(read_size(file, "num_dense_layers", 0)), 1, config.layers);
  moe.score = MoeConfig::Score::sigmoid;
  moe.selection_bias = MR_TRY(read_bool(file, "router_enable_expert_bias", false));
  moe.normalise = MR_TRY(read_bool(file, "norm_topk_prob", true));
  moe.weight_scale = static_cast<float>(MR_TRY(read_number(file, "routed_scaling_factor", 1)));
  return {};
}

Plan plan(const ModelConfig& config) {
  if (!config.sandwich_norm) return decoder_plan(config, {});
  return decoder_plan(config, {.ffn_norm = "pre_mlp_layernorm"});
}

}  // namespace

const ArchitecturePage kPanguUltraPage{
    .model_type = "pangu_ultra_moe",
    .causal_lm_class = "PanguUltraMoEForCausalLM",
    .latent_attention = true,
    .mixture = true,
    .from_hugging_face = from_hugging_face,
    .plan = plan,
};

}  // namespace millrace::model
