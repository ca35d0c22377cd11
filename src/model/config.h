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

enum class Architecture : uint32_t { llama = 1, qwen2 = 2, qwen3 = 3 };  // numbers are stored in packed files
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

// generation_config.json, or the family's defaults; used when a request leaves the field out.
struct GenerationDefaults {
  double temperature = 1.0, top_p = 1.0, min_p = 0.0, repetition_penalty = 1.0;
  int top_k = 0;  // 0: off
};

struct ModelConfig {
  Architecture architecture = Architecture::llama;
  std::string name;  // for people: "SmolLM2 135M Instruct"
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
  int64_t max_position = 0;  // context length in tokens
  TokenId bos = -1;
  std::vector<TokenId> eos;  // every token that ends a turn
  GenerationDefaults generation;

  Expected<void> validate() const;  // sizes in range and consistent; names the field, its value and the limit
};

// `name` is left empty. What this house does not compute (partial RoPE, sliding windows, quantised weights, another
// activation function) is refused by its key, never ignored.
// Lays generation_config.json over what a checkpoint says by itself: sampling defaults, tokens that end a turn.
Expected<void> apply_generation_config(std::string_view generation_config_json, ModelConfig& config);
// From a Hugging Face config.json (transformers 4 and 5 spellings) and, if there, generation_config.json ("" if not).
Expected<ModelConfig> config_from_hugging_face(std::string_view config_json, std::string_view generation_config_json);

// From GGUF metadata and, where the metadata is silent (biases, a tied head), the tensor directory.
Expected<ModelConfig> config_from_gguf(const GgufFile& file);

}  // namespace millrace::model
