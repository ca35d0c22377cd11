// Llama 2 and 3, SmolLM2, and what shares their graph. Biases are off unless the config asks for them
// (attention_bias: on q, k, v and o). GGUF files of this family store q and k rows pair by pair.
#include "model/gguf.h"
#include "model/internal/architecture.h"
#include "model/internal/json_fields.h"

namespace millrace::model {
namespace {

Expected<void> from_hugging_face(const boost::json::object& file, ModelConfig& config) {
  config.qkv_bias = config.o_bias = MR_TRY(read_bool(file, "attention_bias", false));
  config.mlp_bias = MR_TRY(read_bool(file, "mlp_bias", false));
  return {};
}

Expected<void> from_gguf(const GgufFile& file, ModelConfig& config) {
  config.qkv_bias = file.tensor("blk.0.attn_q.bias") != nullptr;
  config.o_bias = file.tensor("blk.0.attn_output.bias") != nullptr;
  config.mlp_bias = file.tensor("blk.0.ffn_gate.bias") != nullptr;
  return {};
}

Plan plan(const ModelConfig& config) { return decoder_plan(config, {.gguf_permuted_q_and_k = true}); }

}  // namespace

const ArchitecturePage kLlamaPage{
    .model_type = "llama",
    .causal_lm_class = "LlamaForCausalLM",
    .gguf_architecture = "llama",
    .from_hugging_face = from_hugging_face,
    .from_gguf = from_gguf,
    .plan = plan,
};

}  // namespace millrace::model
