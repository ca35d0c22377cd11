// A model family as one page: what it is called, how its checkpoint's config maps to ours, and its graph in
// terms of the checkpoint's tensors. One page per arch_*.cc; registered in architectures.inc. Private to the
// room.
//
// The graph is first a Plan (plan.h): packing reads it to know what to write, opening reads the same Plan to
// know what must be there: the two cannot disagree. A Plan is a pure function of the config.
#pragma once
#include <boost/json/fwd.hpp>
#include <span>
#include <string_view>

#include "base/status.h"
#include "model/config.h"
#include "model/internal/plan.h"

namespace millrace::model {

struct ArchitecturePage {
  std::string_view model_type;       // transformers' model_type, and our name for it
  std::string_view causal_lm_class;  // transformers' class in config.json's "architectures"
  // Other spellings of the same family: Kimi K2 is DeepSeek-V3's graph.
  std::span<const std::string_view> also_model_types = {}, also_classes = {};
  std::string_view
      gguf_architecture;  // GGUF's general.architecture; of two pages with one name, the first reads it
  bool latent_attention = false;  // MLA: head sizes come from the keys of that, not from head_dim
  bool mixture = false;           // may have experts
  // Sets what the family alone decides (biases, q/k norm, defaults of absent keys, experts); the sizes are
  // already read.
  Expected<void> (*from_hugging_face)(const boost::json::object& config_json, ModelConfig& config) = nullptr;
  Expected<void> (*from_gguf)(const GgufFile& file, ModelConfig& config) = nullptr;
  Plan (*plan)(const ModelConfig& config) = nullptr;
};

std::span<const ArchitecturePage* const> architecture_pages();
const ArchitecturePage& architecture_page(Architecture architecture);
Architecture architecture_of(const ArchitecturePage& page);  // one of the pages above

#define MILLRACE_ARCHITECTURE(name, page) extern const ArchitecturePage page;
#include "model/architectures.inc"
#undef MILLRACE_ARCHITECTURE

// What the decoder families share: embed, then per layer attention (ordinary, or latent where config.mla says
// so) and FFN (dense, or a mixture where config.moe says so), then RMSNorm and head; biases, q/k norm and
// sandwich norms as the config says.
struct DecoderOptions {
  bool gguf_permuted_q_and_k = false;  // the family's GGUF files store q and k rows pair by pair
  // The norms of a layer with sandwich norms, in transformers' names.
  std::string_view attention_post_norm = "post_attention_layernorm", ffn_norm = "post_attention_layernorm",
                   ffn_post_norm = "post_mlp_layernorm";
  std::string_view shared_expert = "mlp.shared_experts";  // Qwen2-MoE: mlp.shared_expert
};
Plan decoder_plan(const ModelConfig& config, const DecoderOptions& options);

}  // namespace millrace::model
