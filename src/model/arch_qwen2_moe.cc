// Qwen1.5-MoE and Qwen2-MoE: Qwen2's attention, softmax over all experts, and a shared expert whose output a
// gate of its own multiplies by sigmoid(gate . x).
#include "model/internal/architecture.h"
#include "model/internal/mixture_config.h"

namespace millrace::model {
namespace {

Expected<void> from_hugging_face(const boost::json::object& file, ModelConfig& config) {
  config.qkv_bias = MR_TRY(read_bool(file, "qkv_bias", true));
  MR_TRY(read_qwen_mixture(file, config));
  config.moe.shared_ffn_size = MR_TRY(read_size(file, "shared_expert_intermediate_size"));
  config.moe.shared_gate = config.moe.shared_ffn_size > 0;
  return {};
}

Expected<void> from_gguf(const GgufFile& file, ModelConfig& config) {
  config.qkv_bias = true;
  MR_TRY(read_qwen_mixture(file, "qwen2moe", false, config));
  config.moe.shared_ffn_size =
      MR_TRY(GgufKeys(file, "qwen2moe").size("expert_shared_feed_forward_length", config.ffn_size));
  config.moe.shared_gate = config.moe.shared_ffn_size > 0;
  return {};
}

Plan plan(const ModelConfig& config) { return decoder_plan(config, {.shared_expert = "mlp.shared_expert"}); }

}  // namespace

const ArchitecturePage kQwen2MoePage{
    .model_type = "qwen2_moe",
    .causal_lm_class = "Qwen2MoeForCausalLM",
    .gguf_architecture = "qwen2moe",
    .mixture = true,
    .from_hugging_face = from_hugging_face,
    .from_gguf = from_gguf,
    .plan = plan,
};

}  // namespace millrace::model
