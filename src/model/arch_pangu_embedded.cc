// openPangu Embedded 1B and 7B: the Llama graph with a bias on q, k, v and o, and q and k rows as they are in
// GGUF files too.
#include "model/gguf.h"
#include "model/internal/architecture.h"
#include "model/internal/json_fields.h"

namespace millrace::model {
namespace {

Expected<void> from_hugging_face(const boost::json::object& file, ModelConfig& config) {
  config.qkv_bias = config.o_bias = MR_TRY(read_bool(file, "bias", true));
  return {};
}

Expected<void> from_gguf(const GgufFile& file, ModelConfig& config) {
  config.qkv_bias = file.tensor("blk.0.attn_q.bias") != nullptr;
  config.o_bias = file.tensor("blk.0.attn_output.bias") != nullptr;
  return {};
}

Plan plan(const ModelConfig& config) { return decoder_plan(config, {}); }

}  // namespace

const ArchitecturePage kPanguEmbeddedPage{
    .model_type = "PanguEmbedded",
    .causal_lm_class = "PanguEmbeddedForCausalLM",
    .gguf_architecture = "pangu-embedded",
    .from_hugging_face = from_hugging_face,
    .from_gguf = from_gguf,
    .plan = plan,
};

}  // namespace millrace::model
