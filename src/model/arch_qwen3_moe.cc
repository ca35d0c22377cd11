// Qwen3-MoE: Qwen3's attention (RMSNorm over each head of q and k, a head dimension of its own) and a softmax
// router over all experts; no shared one.
#include "model/internal/architecture.h"
#include "model/internal/mixture_config.h"

namespace millrace::model {
namespace {

Expected<void> from_hugging_face(const boost::json::object& file, ModelConfig& config) {
  config.qk_norm = true;
  config.qkv_bias = config.o_bias = MR_TRY(read_bool(file, "attention_bias", false));
  return read_qwen_mixture(file, config);
}

Expected<void> from_gguf(const GgufFile& file, ModelConfig& config) {
  config.qk_norm = true;
  config.qkv_bias = file.tensor("blk.0.attn_q.bias") != nullptr;
  config.o_bias = file.tensor("blk.0.attn_output.bias") != nullptr;
  return read_qwen_mixture(file, "qwen3moe", true, config);
}

Plan plan(const ModelConfig& config) { return decoder_plan(config, {}); }

}  // namespace

const ArchitecturePage kQwen3MoePage{
    .model_type = "qwen3_moe",
    .causal_lm_class = "Qwen3MoeForCausalLM",
    .gguf_architecture = "qwen3moe",
    .mixture = true,
    .from_hugging_face = from_hugging_face,
    .from_gguf = from_gguf,
    .plan = plan,
};

}  // namespace millrace::model
