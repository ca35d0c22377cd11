// The dense pre-norm decoder as a Plan, and where its rotations go on the INT8 path.
//
// Let Q be an orthogonal matrix over the hidden width (rotation.h). The residual stream is carried as x Q:
//   embedding rows E Q; linears that read the stream W Q (after their norm's gain is multiplied into W's
//   columns, since RMSNorm without a gain commutes with Q); linears that write it Q^T W, and Q^T b for their
//   bias.
// Per head, values are carried as v H: v_proj's rows and bias by H^T, o_proj's columns by H; attention is
// linear in v. down_proj's columns are rotated by blocks over the FFN width, and the executor rotates their
// inputs at run time: there alone a plain Hadamard block is all there may be. QuaRot: Ashkboos et al. (2024).
// What each part buys is in docs/decisions/0004-int8-rotation.md.
#include <fmt/core.h>

#include <numeric>

#include "model/internal/architecture.h"

namespace millrace::model {

int PlannedLinear::rows() const {
  return std::accumulate(parts.begin(), parts.end(), 0,
                         [](int sum, const PlannedPart& p) { return sum + p.rows; });
}

int hadamard_block_of(int n, int limit) {
  int block = 1;
  while (block * 2 <= limit && n % (block * 2) == 0) block *= 2;
  return block;
}

namespace {

// Blocks below this are mixed: what one INT8 scale covers should be spread over more values than that.
constexpr int kEnoughHadamardBlock = 256;
// Mixing rows takes whole columns of a matrix in one job of packing: 2,048 rows of 8,192 are 64 MiB a thread.
constexpr int kMaxMixedWidth = 2048;

Rotation stream_rotation(const ModelConfig& config) {
  const int width = config.hidden_size, block = hadamard_block_of(width, kMaxHadamardBlock);
  if (block >= kEnoughHadamardBlock || width > kMaxMixedWidth) return {.block = block};
  return {.block = block, .mix = width / block};
}
Rotation head_rotation(const ModelConfig& config) {
  return {.block = hadamard_block_of(config.head_dim, kMaxHadamardBlock)};
}
Rotation ffn_rotation(const ModelConfig& config) {
  return {.block = hadamard_block_of(config.ffn_size, kMaxHadamardBlock)};
}

TensorName in_layer(int layer, std::string_view hugging_face, std::string_view gguf, std::string_view kind) {
  return {fmt::format("model.layers.{}.{}.{}", layer, hugging_face, kind),
          fmt::format("blk.{}.{}.{}", layer, gguf, kind)};
}

PlannedPart part_of(int layer, std::string_view hugging_face, std::string_view gguf, int rows) {
  return {.weight = in_layer(layer, hugging_face, gguf, "weight"),
          .bias = in_layer(layer, hugging_face, gguf, "bias"),
          .rows = rows};
}

PlannedAttention attention_of(const ModelConfig& config, const DecoderOptions& options, int layer) {
  const Rotation stream = stream_rotation(config);
  const Rotation head = head_rotation(config);
  PlannedPart q = part_of(layer, "self_attn.q_proj", "attn_q", config.q_heads * config.head_dim);
  PlannedPart k = part_of(layer, "self_attn.k_proj", "attn_k", config.kv_heads * config.head_dim);
  PlannedPart v = part_of(layer, "self_attn.v_proj", "attn_v", config.kv_heads * config.head_dim);
  PlannedPart o = part_of(layer, "self_attn.o_proj", "attn_output", config.hidden_size);
  if (options.gguf_permuted_q_and_k) {
    q.gguf_permuted_heads = config.q_heads;
    k.gguf_permuted_heads = config.kv_heads;
  }
  v.rotate_rows = head;
  o.rotate_rows = stream;
  PlannedAttention module{
      .layer = layer,
      .norm = {.section = fmt::format("layers.{}.attention.norm", layer),
               .tensor = in_layer(layer, "input_layernorm", "attn_norm", "weight"),
               .width = config.hidden_size,
               .folded = true},
      .qkv = {.section = fmt::format("layers.{}.attention.qkv", layer),
              .parts = {q, k, v},
              .k = config.hidden_size,
              .bias = config.qkv_bias,
              .rotate_columns = stream},
      .o = {.section = fmt::format("layers.{}.attention.o", layer),
            .parts = {o},
            .k = config.q_heads * config.head_dim,
            .bias = config.o_bias,
            .rotate_columns = head},
  };
  module.qkv.folded_gain = module.norm.tensor;
  if (config.qk_norm) {
    const auto head_norm = [&](std::string_view hugging_face, std::string_view gguf,
                               std::string_view section) {
      return PlannedGain{.section = fmt::format("layers.{}.attention.{}", layer, section),
                         .tensor = in_layer(layer, hugging_face, gguf, "weight"),
                         .width = config.head_dim};
    };
    module.q_norm = head_norm("self_attn.q_norm", "attn_q_norm", "q_norm");
    module.k_norm = head_norm("self_attn.k_norm", "attn_k_norm", "k_norm");
  }
  return module;
}

PlannedFfn ffn_of(const ModelConfig& config, int layer) {
  const Rotation stream = stream_rotation(config);
  PlannedPart down = part_of(layer, "mlp.down_proj", "ffn_down", config.hidden_size);
  down.rotate_rows = stream;
  PlannedFfn module{
      .layer = layer,
      .norm = {.section = fmt::format("layers.{}.ffn.norm", layer),
               .tensor = in_layer(layer, "post_attention_layernorm", "ffn_norm", "weight"),
               .width = config.hidden_size,
               .folded = true},
      .gate_up = {.section = fmt::format("layers.{}.ffn.gate_up", layer),
                  .parts = {part_of(layer, "mlp.gate_proj", "ffn_gate", config.ffn_size),
                            part_of(layer, "mlp.up_proj", "ffn_up", config.ffn_size)},
                  .k = config.hidden_size,
                  .bias = config.mlp_bias,
                  .rotate_columns = stream},
      .down = {.section = fmt::format("layers.{}.ffn.down", layer),
               .parts = {down},
               .k = config.ffn_size,
               .bias = config.mlp_bias,
               .rotate_columns = ffn_rotation(config)},
  };
  module.gate_up.folded_gain = module.norm.tensor;
  return module;
}

}  // namespace

Plan dense_decoder_plan(const ModelConfig& config, const DecoderOptions& options) {
  const Rotation stream = stream_rotation(config);
  const TensorName embedding{"model.embed_tokens.weight", "token_embd.weight"};
  Plan plan;
  plan.modules.push_back(PlannedEmbed{.section = "embed",
                                      .tensor = embedding,
                                      .vocab = config.vocab_size,
                                      .width = config.hidden_size,
                                      .rotate_columns = stream});
  for (int layer = 0; layer < config.layers; ++layer) {
    plan.modules.push_back(attention_of(config, options, layer));
    plan.modules.push_back(ffn_of(config, layer));
  }
  PlannedHead head{
      .norm = {.section = "head.norm",
               .tensor = {"model.norm.weight", "output_norm.weight"},
               .width = config.hidden_size,
               .folded = true},
      .head = {.section = "head",
               .parts = {{.weight = config.tied_embeddings ? embedding
                                                           : TensorName{"lm_head.weight", "output.weight"},
                          .rows = config.vocab_size}},
               .k = config.hidden_size,
               .rotate_columns = stream},
      .shares_embedding = config.tied_embeddings,
  };
  head.head.folded_gain = head.norm.tensor;
  plan.modules.push_back(std::move(head));
  return plan;
}

}  // namespace millrace::model
