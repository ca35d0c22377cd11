// The pre-norm decoder as a Plan, and where its rotations go on the INT8 path.
//
// Let Q be an orthogonal matrix over the hidden width (rotation.h). The residual stream is carried as x Q:
//   embedding rows E Q; linears that read the stream W Q (after their norm's gain is multiplied into W's
//   columns, since RMSNorm without a gain commutes with Q); linears that write it Q^T W, and Q^T b for their
//   bias.
// Per head, values are carried as v H: v_proj's rows and bias by H^T, o_proj's columns by H; attention is
// linear in v. down_proj's columns are rotated by blocks over the FFN width, and the executor rotates their
// inputs at run time: there alone a plain Hadamard block is all there may be. QuaRot: Ashkboos et al. (2024).
// What each part buys is in docs/decisions/0004-int8-rotation.md. Latent attention: mla_plan.cc; experts:
// mixture_plan.cc.
//
// Sandwich norms multiply a branch's output by a gain in the stream's own basis before it is added, which no
// rotation commutes with: those models carry the stream as it is, and only heads, latents and down_proj's
// inputs are rotated.
#include <fmt/core.h>

#include <numeric>

#include "model/internal/plan_parts.h"

namespace millrace::model {
namespace {

// "a.#.b" with the number in the place of '#'.
std::string numbered(std::string_view text, int number) {
  const size_t at = text.find('#');
  if (at == std::string_view::npos) return std::string(text);
  std::string out(text.substr(0, at));
  out += std::to_string(number);
  out += text.substr(at + 1);
  return out;
}
TensorName numbered(const TensorName& name, int number) {
  return {numbered(name.hugging_face, number), numbered(name.gguf, number)};
}

// Blocks below this are mixed: what one INT8 scale covers should be spread over more values than that.
constexpr int kEnoughHadamardBlock = 256;
// Mixing rows takes whole columns of a matrix in one job of packing: 2,048 rows of 8,192 are 64 MiB a thread.
constexpr int kMaxMixedWidth = 2048;

}  // namespace

int PlannedLinear::rows() const {
  return std::accumulate(parts.begin(), parts.end(), 0,
                         [](int sum, const PlannedPart& p) { return sum + p.rows; });
}

std::string PlannedLinear::section_of(int expert) const { return numbered(section, expert); }

PlannedLinear PlannedLinear::of_expert(int expert) const {
  PlannedLinear out = *this;
  out.section = section_of(expert);
  for (PlannedPart& part : out.parts) {
    for (TensorView& view : part.weight) {
      view.tensor = numbered(view.tensor, expert);
      if (view.slabs > 0) view.first += expert * (view.rows / view.slabs);
    }
  }
  return out;
}

int hadamard_block_of(int n, int limit) {
  int block = 1;
  while (block * 2 <= limit && n % (block * 2) == 0) block *= 2;
  return block;
}

Rotation hadamard_rotation(int width) { return {.block = hadamard_block_of(width, kMaxHadamardBlock)}; }

Rotation stream_rotation(const ModelConfig& config) {
  if (config.sandwich_norm) return {};
  const int width = config.hidden_size, block = hadamard_block_of(width, kMaxHadamardBlock);
  // MTP undoes the rotation at run time, where blocks are all there may be.
  if (block >= kEnoughHadamardBlock || width > kMaxMixedWidth || config.mtp_layers > 0)
    return {.block = block};
  return {.block = block, .mix = width / block};
}

TensorName in_layer(int layer, std::string_view hugging_face, std::string_view gguf, std::string_view kind) {
  return {fmt::format("model.layers.{}.{}.{}", layer, hugging_face, kind),
          fmt::format("blk.{}.{}.{}", layer, gguf, kind)};
}

PlannedPart part_of(int layer, std::string_view hugging_face, std::string_view gguf, int rows) {
  return {.weight = {{.tensor = in_layer(layer, hugging_face, gguf, "weight")}},
          .bias = in_layer(layer, hugging_face, gguf, "bias"),
          .rows = rows};
}

PlannedGain layer_norm(const ModelConfig& config, int layer, std::string_view section,
                       std::string_view hugging_face, std::string_view gguf) {
  return {.section = fmt::format("layers.{}.{}", layer, section),
          .tensor = in_layer(layer, hugging_face, gguf, "weight"),
          .width = config.hidden_size,
          .folded = true};
}

std::optional<PlannedGain> post_norm_of(const ModelConfig& config, int layer, std::string_view section,
                                        std::string_view hugging_face) {
  if (!config.sandwich_norm) return std::nullopt;
  PlannedGain norm = layer_norm(config, layer, section, hugging_face, "post_norm");
  norm.folded = false;
  return norm;
}

namespace {

PlannedAttention attention_of(const ModelConfig& config, const DecoderOptions& options, int layer) {
  const Rotation stream = stream_rotation(config);
  const Rotation head = hadamard_rotation(config.head_dim);
  PlannedPart q = part_of(layer, "self_attn.q_proj", "attn_q", config.q_heads * config.head_dim);
  PlannedPart k = part_of(layer, "self_attn.k_proj", "attn_k", config.kv_heads * config.head_dim);
  PlannedPart v = part_of(layer, "self_attn.v_proj", "attn_v", config.kv_heads * config.head_dim);
  PlannedPart o = part_of(layer, "self_attn.o_proj", "attn_output", config.hidden_size);
  if (options.gguf_permuted_q_and_k) {
    q.pairs = k.pairs = {.group = config.head_dim, .count = config.head_dim, .gguf_only = true};
  }
  v.rotate_rows = head;
  o.rotate_rows = stream;
  PlannedAttention module{
      .layer = layer,
      .norm = layer_norm(config, layer, "attention.norm", "input_layernorm", "attn_norm"),
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
      .post_norm = post_norm_of(config, layer, "attention.post_norm", options.attention_post_norm),
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

PlannedFfn ffn_of(const ModelConfig& config, const DecoderOptions& options, int layer) {
  const Rotation stream = stream_rotation(config);
  PlannedPart down = part_of(layer, "mlp.down_proj", "ffn_down", config.hidden_size);
  down.rotate_rows = stream;
  PlannedFfn module{
      .layer = layer,
      .norm = layer_norm(config, layer, "ffn.norm", options.ffn_norm, "ffn_norm"),
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
               .rotate_columns = hadamard_rotation(config.ffn_size)},
      .post_norm = post_norm_of(config, layer, "ffn.post_norm", options.ffn_post_norm),
  };
  module.gate_up.folded_gain = module.norm.tensor;
  return module;
}

void add_layer(const ModelConfig& config, const DecoderOptions& options, int layer, bool mixture,
               std::vector<PlannedModule>& out) {
  if (config.mla.used()) {
    out.push_back(mla_of(config, options, layer));
  } else {
    out.push_back(attention_of(config, options, layer));
  }
  if (!mixture) {
    out.push_back(ffn_of(config, options, layer));
    return;
  }
  PlannedRouter router = router_of(config, options, layer);
  const PlannedGain norm = router.norm;
  out.push_back(std::move(router));
  out.push_back(experts_of(config, layer, norm));
  if (config.moe.shared_ffn_size > 0) out.push_back(shared_expert_of(config, options, layer, norm));
}

// The layer that guesses ahead: its decoder layer is of the kind of the model's last.
PlannedMtp mtp_of(const ModelConfig& config, const DecoderOptions& options, const TensorName& model_norm,
                  int index) {
  const int layer = config.layers + index;
  const auto norm = [&](std::string_view section, std::string_view hugging_face, std::string_view gguf,
                        bool folded) {
    return PlannedGain{.section = fmt::format("layers.{}.mtp.{}", layer, section),
                       .tensor = in_layer(layer, hugging_face, gguf, "weight"),
                       .width = config.hidden_size,
                       .folded = folded};
  };
  PlannedMtp m{.layer = layer,
               .model_norm = norm("model_norm", "", "", false),
               .embed_norm = norm("embed_norm", "enorm", "nextn.enorm", true),
               .hidden_norm = norm("hidden_norm", "hnorm", "nextn.hnorm", true),
               .head_norm = norm("head_norm", "shared_head.norm", "nextn.shared_head_norm", false)};
  m.model_norm.tensor = model_norm;
  PlannedPart eh = part_of(layer, "eh_proj", "nextn.eh_proj", config.hidden_size);
  eh.rotate_rows = stream_rotation(config);
  m.eh = {.section = fmt::format("layers.{}.mtp.eh", layer),
          .parts = {eh},
          .k = 2 * config.hidden_size,
          .folded_gain = m.embed_norm.tensor,
          .second_gain = m.hidden_norm.tensor,
          .rotate_columns = stream_rotation(config)};
  add_layer(config, options, layer, config.moe.used() && config.moe.layers.back() != 0, m.modules);
  return m;
}

}  // namespace

Plan decoder_plan(const ModelConfig& config, const DecoderOptions& options) {
  const Rotation stream = stream_rotation(config);
  const TensorName embedding{"model.embed_tokens.weight", "token_embd.weight"};
  Plan plan;
  plan.modules.push_back(PlannedEmbed{.section = "embed",
                                      .tensor = embedding,
                                      .vocab = config.vocab_size,
                                      .width = config.hidden_size,
                                      .rotate_columns = stream});
  for (int layer = 0; layer < config.layers; ++layer)
    add_layer(config, options, layer, config.moe.used() && config.moe.layers[static_cast<size_t>(layer)] != 0,
              plan.modules);
  PlannedHead head{
      .norm = {.section = "head.norm",
               .tensor = {"model.norm.weight", "output_norm.weight"},
               .width = config.hidden_size,
               .folded = true},
      .head = {.section = "head",
               .parts = {{.weight = {{.tensor = config.tied_embeddings
                                                    ? embedding
                                                    : TensorName{"lm_head.weight", "output.weight"}}},
                          .rows = config.vocab_size}},
               .k = config.hidden_size,
               .rotate_columns = stream},
      .shares_matrix = config.tied_embeddings,
  };
  head.head.folded_gain = head.norm.tensor;
  for (int i = 0; i < config.mtp_layers; ++i)
    plan.mtp.push_back(mtp_of(config, options, head.norm.tensor, i));
  plan.modules.push_back(std::move(head));
  return plan;
}

}  // namespace millrace::model
