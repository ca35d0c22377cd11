// A ModelConfig from GGUF metadata: keys "<architecture>.*", and the tensor directory where the metadata is
// silent.
#include <fmt/core.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "base/utf8.h"
#include "model/gguf.h"
#include "model/internal/architecture.h"
#include "model/internal/float_formats.h"
#include "model/internal/gguf_keys.h"

namespace millrace::model {
namespace {

// GGUF names one end-of-sequence token; a chat also ends at the turn's own token, whatever the file calls
// eos.
constexpr std::array<std::string_view, 6> kEndTokens = {"<|im_end|>", "<|endoftext|>",   "<|eot_id|>",
                                                        "<|eom_id|>", "<|end_of_text|>", "</s>"};

Expected<const ArchitecturePage*> page_of(const GgufFile& file) {
  const auto architecture = file.text("general.architecture");
  if (!architecture) return invalid("GGUF: general.architecture is missing");
  std::vector<std::string_view> known;
  for (const ArchitecturePage* page : architecture_pages()) {
    if (page->gguf_architecture.empty()) continue;
    if (page->gguf_architecture == *architecture) return page;
    known.push_back(page->gguf_architecture);
  }
  return fail(Code::unimplemented, fmt::format("GGUF: architecture \"{}\" is not supported; supported are {}",
                                               architecture->substr(0, 80), fmt::join(known, ", ")));
}

Expected<void> read_heads(const GgufKeys& keys, ModelConfig& out) {
  out.kv_heads = MR_TRY(keys.size("attention.head_count_kv", out.q_heads));
  out.head_dim =
      MR_TRY(keys.size("attention.key_length", out.q_heads > 0 ? out.hidden_size / out.q_heads : 0));
  if (const int64_t value_length = MR_TRY(keys.integer("attention.value_length", out.head_dim));
      value_length != out.head_dim)
    return fail(Code::unimplemented,
                fmt::format("GGUF: {} is {} and the key length {}; they must be equal",
                            keys.name("attention.value_length"), value_length, out.head_dim));
  return {};
}

// Current files have the sizes of a head under *_mla, since to llama.cpp a key is [latent | rotary key];
// older ones, with kv_b_proj in one piece, under the plain keys.
Expected<void> read_latent_attention(const GgufKeys& keys, ModelConfig& out) {
  MlaConfig& mla = out.mla;
  mla.kv_lora_rank = MR_TRY(keys.size("attention.kv_lora_rank"));
  mla.q_lora_rank = MR_TRY(keys.size("attention.q_lora_rank", 0));
  mla.rope_head_dim = MR_TRY(keys.size("rope.dimension_count"));
  const int64_t plain_key = MR_TRY(keys.integer("attention.key_length", 0)),
                plain_value = MR_TRY(keys.integer("attention.value_length", 0));
  out.head_dim = MR_TRY(keys.size("attention.key_length_mla", plain_key));
  mla.value_head_dim = MR_TRY(keys.size("attention.value_length_mla", plain_value));
  mla.nope_head_dim = out.head_dim - mla.rope_head_dim;
  out.kv_heads = 1;
  if (!mla.used()) return invalid(fmt::format("GGUF: {} is 0", keys.name("attention.kv_lora_rank")));
  return {};
}

Expected<void> read_rope(const GgufFile& file, const GgufKeys& keys, ModelConfig& out) {
  RopeConfig& rope = out.rope;
  rope.theta = MR_TRY(keys.number("rope.freq_base", 10000));
  const int width = out.mla.used() ? out.mla.rope_head_dim : out.head_dim;
  const int64_t dimensions = MR_TRY(keys.integer("rope.dimension_count", width));
  if (dimensions != width)
    return fail(Code::unimplemented,
                fmt::format("GGUF: {} is {} and the head dimension {}; only full RoPE is supported",
                            keys.name("rope.dimension_count"), dimensions, width));
  if (const auto type = file.text(keys.name("rope.scaling.type")); type && *type != "none") {
    rope.factor = MR_TRY(keys.number("rope.scaling.factor"));
    if (*type == "linear") {
      rope.kind = RopeConfig::Kind::linear;
    } else if (*type == "yarn") {
      rope.kind = RopeConfig::Kind::yarn;
      rope.original_max_position =
          MR_TRY(keys.integer("rope.scaling.original_context_length", out.max_position));
      rope.beta_fast = MR_TRY(keys.number("rope.scaling.yarn_beta_fast", 32));
      rope.beta_slow = MR_TRY(keys.number("rope.scaling.yarn_beta_slow", 1));
      rope.attention_factor = MR_TRY(keys.number("rope.scaling.attn_factor", 1)) *
                              (rope.factor <= 1 ? 1.0 : 0.1 * std::log(rope.factor) + 1.0);
    } else {
      return fail(Code::unimplemented,
                  fmt::format("GGUF: RoPE scaling \"{}\" is not supported; none, linear and yarn are",
                              type->substr(0, 80)));
    }
  }
  if (const GgufTensor* divisors = file.tensor("rope_freqs.weight")) {
    if (divisors->type != GgmlType::f32 || divisors->shape.size() != 1 || divisors->shape[0] != width / 2)
      return invalid(fmt::format("GGUF: rope_freqs.weight must be F32 of {} values", width / 2));
    rope.frequency_divisors.resize(static_cast<size_t>(width / 2));
    gguf_dequantize(GgmlType::f32, divisors->data.data(), 0, width / 2, rope.frequency_divisors.data());
    // Divisors of 1 say nothing; without them the config equals the one of the same model's config.json.
    if (std::ranges::all_of(rope.frequency_divisors, [](float d) { return d == 1.0f; }))
      rope.frequency_divisors.clear();
  }
  return {};
}

void read_end_tokens(const GgufFile& file, ModelConfig& out) {
  const auto add = [&](int64_t id) {
    if (id >= 0 && id < out.vocab_size &&
        std::ranges::find(out.eos, static_cast<TokenId>(id)) == out.eos.end())
      out.eos.push_back(static_cast<TokenId>(id));
  };
  for (const std::string_view key :
       {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"})
    add(file.integer(key).value_or(-1));
  const auto tokens = file.texts("tokenizer.ggml.tokens");
  const auto types = file.integers("tokenizer.ggml.token_type");
  if (!tokens || !types || tokens->size() != types->size()) return;
  constexpr int64_t kControl = 3;
  for (size_t i = 0; i < tokens->size(); ++i)
    if ((*types)[i] == kControl && std::ranges::find(kEndTokens, (*tokens)[i]) != kEndTokens.end())
      add(static_cast<int64_t>(i));
}

}  // namespace

Expected<ModelConfig> config_from_gguf(const GgufFile& file) {
  const ArchitecturePage* page = MR_TRY(page_of(file));
  const GgufKeys keys(file, page->gguf_architecture);
  ModelConfig out;
  out.architecture = architecture_of(*page);
  out.name = utf8_repair(file.text("general.name").value_or("").substr(0, 200));
  out.hidden_size = MR_TRY(keys.size("embedding_length"));
  out.layers = MR_TRY(keys.size("block_count"));
  out.q_heads = MR_TRY(keys.size("attention.head_count"));
  if (page->latent_attention) {
    MR_TRY(read_latent_attention(keys, out));
  } else {
    MR_TRY(read_heads(keys, out));
  }
  out.ffn_size = MR_TRY(keys.size("feed_forward_length"));
  out.rms_norm_eps = static_cast<float>(MR_TRY(keys.number("attention.layer_norm_rms_epsilon")));
  out.max_position = MR_TRY(keys.integer("context_length"));
  const GgufTensor* embedding = file.tensor("token_embd.weight");
  if (embedding == nullptr || embedding->shape.size() != 2 || embedding->shape[1] > INT32_MAX)
    return invalid("GGUF: token_embd.weight is missing or not a matrix");
  out.vocab_size = static_cast<int>(embedding->shape[1]);
  out.tied_embeddings = file.tensor("output.weight") == nullptr;
  if (!page->mixture && MR_TRY(keys.integer("expert_count", 0)) > 0)
    return fail(Code::unimplemented,
                "GGUF: the model has experts, which this architecture's page does not compute");
  MR_TRY(read_rope(file, keys, out));
  const int64_t bos = file.integer("tokenizer.ggml.bos_token_id").value_or(-1);
  out.bos = bos >= 0 && bos < out.vocab_size ? static_cast<TokenId>(bos) : -1;
  read_end_tokens(file, out);
  MR_TRY(page->from_gguf(file, out));
  MR_TRY(out.validate());
  return out;
}

}  // namespace millrace::model
