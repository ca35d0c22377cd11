// Qwen2 and Qwen2.5: the Llama graph with a bias on q, k and v, always and only there.
#include "model/internal/architecture.h"

namespace millrace::model {
namespace {

Expected<void> from_hugging_face(const boost::json::object&, ModelConfig& config) {
  config.qkv_bias = true;
  return {};
}

Expected<void> from_gguf(const GgufFile&, ModelConfig& config) {
  config.qkv_bias = true;
  return {};
}

Plan plan(const ModelConfig& config) { return decoder_plan(config, {}); }

}  // namespace

const ArchitecturePage kQwen2Page{
    .model_type = "qwen2",
    .causal_lm_class = "Qwen2ForCausalLM",
    .gguf_architecture = "qwen2",
    .from_hugging_face = from_hugging_face,
    .from_gguf = from_gguf,
    .plan = plan,
};

}  // namespace millrace::model
