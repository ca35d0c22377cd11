// What a checkpoint says its model is: sizes, RoPE, norms, and the family's switches. Plain data, validated on load.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "base/strong_id.h"

namespace millrace::model {

class GgufFile;

// The families of architectures.inc. Packed files name them by their model_type: the numbers are this build's own.
enum class Architecture : uint32_t {
#define MILLRACE_ARCHITECTURE(name, page) name,
#include "model/architectures.inc"
#undef MILLRACE_ARCHITECTURE
};
std::string_view architecture_name(Architecture architecture);           // transformers' model_type

struct RopeConfig {
  double theta = 10000;
  enum class Kind : uint32_t { plain = 0, llama3 = 1, linear = 2, yarn = 3 } kind = Kind::plain;
  double factor = 1;
  double low_freq_factor = 1, high_freq_factor = 4;  // llama3
  double beta_fast = 32, beta_slow = 1;              // yarn
  double attention_factor = 1;                       // multiplies cos and sin; other than 1 with yarn only
  int64_t original_max_position = 0;                 // llama3, yarn
  std::vector<float> frequency_divisors;             // GGUF's rope_freqs.weight; used in place of llama3's formula
  // Radians per position of pair i = 0..head_dim/2-1. Formulas: YaRN, Peng et al. (2023), as transformers computes it;
  // llama3 as in Meta's reference code. cos and sin are then multiplied by attention_factor.
  std::vector<double> inverse_frequencies(int head_dim) const;
};

// Multi-head latent attention (DeepSeek-V2, section 2.1): the cache holds one vector a token for all heads, the normed
// latent of kv_lora_rank values and one rotary key of rope_head_dim.
struct MlaConfig {
  int kv_lora_rank = 0;  // 0: the model has ordinary attention
  int q_lora_rank = 0;   // 0: queries straight from the stream
  int nope_head_dim = 0, rope_head_dim = 0, value_head_dim = 0;
  bool rope_interleaved = true;   // the checkpoint rotates (x0,x1),(x2,x3)...; packing reorders rows so that halves turn
  float latent_norm_eps = 1e-6f;  // of the norms over q's and kv's latents, which may differ from rms_norm_eps
  bool used() const { return kv_lora_rank > 0; }
};

// Mixture of experts: a router picks experts_per_token of `experts` FFNs for each token, and their outputs are summed by
// weight in the order of picking.
struct MoeConfig {
  int experts = 0;  // routed, a layer; 0: a dense model
  int experts_per_token = 0;
  int ffn_size = 0;            // of one routed expert
  int shared_ffn_size = 0;     // of the expert that every token takes; 0: none
  bool shared_gate = false;    // its output is multiplied by sigmoid(gate . x): Qwen2-MoE
  std::vector<uint8_t> layers;  // [layers]: 1 where the FFN is a mixture, 0 where it is dense
  enum class Score : uint32_t { softmax = 0, sigmoid = 1 } score = Score::softmax;
  bool selection_bias = false;  // added to the scores for choosing, not to the weights
  // Groups of experts / groups neighbours: only the best groups_kept groups are chosen from.
  int groups = 1, groups_kept = 1;
  enum class GroupScore : uint32_t { max = 0, top2_sum = 1 } group_score = GroupScore::max;
  bool one_per_group = false;   // Pangu Pro: the best expert of each group; experts_per_token == groups
  bool normalise = false;       // weights divided by (their sum + weight_epsilon)
  float weight_epsilon = 1e-20f;
  float weight_scale = 1;       // routed_scaling_factor
  bool expert_scale = false;    // Pangu Pro: a learned factor an expert multiplies its weight
  bool used() const { return experts > 0; }
};

// generation_config.json, or the family's defaults; used when a request leaves the field out.
struct GenerationDefaults {
  double temperature = 1.0, top_p = 1.0, min_p = 0.0, repetition_penalty = 1.0;
  int top_k = 0;  // 0: off
};

struct ModelConfig {
  Architecture architecture = Architecture::llama;
  std::string name;  // for people: "SmolLM2 135M Instruct"; UTF-8
  int vocab_size = 0;
  int hidden_size = 0;
  int layers = 0;
  int q_heads = 0, kv_heads = 0, head_dim = 0;
  int ffn_size = 0;
  float rms_norm_eps = 1e-5f;
  RopeConfig rope;
  bool tied_embeddings = false;
  bool qkv_bias = false;   // Qwen2
  bool o_bias = false;     // attention_bias in Llama's config puts a bias on q, k, v and o
  bool mlp_bias = false;
  bool qk_norm = false;    // Qwen3
  bool sandwich_norm = false;  // Pangu Ultra: a branch's output is normed before it is added
  float attention_scale = 0;   // multiplies q . k; 0: head_dim^-1/2 (YaRN's mscale^2 is in here where a family has it)
  MlaConfig mla;               // where used: head_dim is nope + rope, kv_heads is 1
  MoeConfig moe;               // where used: ffn_size is that of the dense layers
  int mtp_layers = 0;          // multi-token prediction layers in the checkpoint
  int64_t max_position = 0;  // context length in tokens
  TokenId bos = -1;
  std::vector<TokenId> eos;  // every token that ends a turn
  GenerationDefaults generation;

  Expected<void> validate() const;  // sizes in range and consistent; names the field, its value and the limit
};

// Lays generation_config.json over what a checkpoint says by itself: sampling defaults, tokens that end a turn.
Expected<void> apply_generation_config(std::string_view generation_config_json, ModelConfig& config);

// From a Hugging Face config.json (transformers 4 and 5 spellings) and, if there, generation_config.json ("" if not).
// `name` is left empty. What this house does not compute (partial RoPE, sliding windows, quantised weights, another
// activation function) is refused by its key, never ignored.
Expected<ModelConfig> config_from_hugging_face(std::string_view config_json, std::string_view generation_config_json);

// From GGUF metadata and, where the metadata is silent (biases, a tied head), the tensor directory.
Expected<ModelConfig> config_from_gguf(const GgufFile& file);

}  // namespace millrace::model
