// Qwen3 (dense): RMSNorm over each head of q and k before RoPE, no biases unless attention_bias asks for
// them, and a head dimension of its own (heads * head_dim may differ from the hidden size).
#include "model/gguf.h"
#include "model/internal/architecture.h"
#include "model/internal/json_fields.h"

namespace millrace::model {
namespace {

Expected<void> from_hugging_face(const boost::json::object& file, ModelConfig& config) {
  config.qk_norm = true;
  config.head_dim = MR_TRY(read_size(file, "head_dim", 128));  // the class's default, not hidden / heads
  config.qkv_bias = config.o_bias = MR_TRY(read_bool(file, "attention_bias", false));
  return {};
}

Expected<void> from_gguf(const GgufFile& file, ModelConfig& config) {
  config.qk_norm = true;
  config.qkv_bias = file.tensor("blk.0.attn_q.bias") != nullptr;
  config.o_bias = file.tensor("blk.0.attn_output.bias") != nullptr;
  return {};
}

Plan plan(const ModelConfig& config) { return decoder_plan(config, {}); }

}  // namespace

const ArchitecturePage kQwen3Page{
    .model_type = "qwen3",
    .causal_lm_class = "Qwen3ForCausalLM",
    .gguf_architecture = "qwen3",
    .from_hugging_face = from_hugging_face,
    .from_gguf = from_gguf,
    .plan = plan,
};

}  // namespace millrace::model
