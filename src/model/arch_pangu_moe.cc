// openPangu Pro MoE: attention with a bias on q, k, v and o; experts in as many groups as a token takes, the
// best of each group by softmax over all, its score times a learned factor an expert, not normalised; a
// shared expert without a gate. So any split of the experts by groups is loaded evenly. There are no GGUF
// files.
#include "model/internal/architecture.h"
#include "model/internal/mixture_config.h"

namespace millrace::model {
namespace {

Expected<void> from_hugging_face(const boost::json::object& file, ModelConfig& config) {
  config.qkv_bias = config.o_bias = true;
  MoeConfig& moe = config.moe;
  moe.experts = MR_TRY(read_expert_count(file));
  if (moe.experts == 0) return invalid("\"num_experts\" is missing or 0", "num_experts");
  moe.experts_per_token = moe.groups = moe.groups_kept = MR_TRY(read_size(file, "num_experts_per_tok"));
  moe.one_per_group = true;
  moe.expert_scale = true;
  moe.ffn_size = MR_TRY(read_size(file, "moe_intermediate_size"));
  moe.shared_ffn_size = MR_TRY(read_size(file, "shared_expert_intermediate_size", 0));
  moe.layers = mixture_from(0, 1, config.layers);
  return {};
}

Plan plan(const ModelConfig& config) { return decoder_plan(config, {.shared_expert = "mlp.shared_expert"}); }

}  // namespace

const ArchitecturePage kPanguMoePage{
    .model_type = "PanguProMoE",
    .causal_lm_class = "PanguProMoEForCausalLM",
    .mixture = true,
    .from_hugging_face = from_hugging_face,
    .plan = plan,
};

}  // namespace millrace::model
