// Latent attention as a Plan, in its absorbed form (graph.h, MlaModule), and where its rotations go.
//
// Per head the checkpoint's kv_b_proj has rows [K_h | V_h]: k_nope = K_h c and v = V_h c with c =
// norm(latent). Here the query is lifted instead, K_h^T q, so k_up holds K_h transposed, and V_h becomes
// v_up.
//
// On the INT8 path four orthogonal matrices, each plain Hadamard blocks, turn what lies between the linears;
// G_l and G_q are the diagonal gains of the latents' norms (RMSNorm without its gain commutes with a
// rotation):
//   latent   c R_l: kv_a's rows R_l^T;   k_up's rows R_l^T G_l K_h^T;   v_up's columns V_h G_l R_l
//   q latent    R_q: q_a's rows R_q^T;   q_up's columns G_q R_q
//   nope q      R_n, per head: q_up's nope rows R_n^T;   k_up's columns R_n
//   values      R_v, per head: v_up's rows R_v^T;        o's columns R_v
// Rotary rows are never rotated (RoPE turns pairs, which a rotation would mix); where the checkpoint pairs
// neighbours they are reordered on both paths so that halves turn. q and key alike, so every score stays as
// it was.
#include <fmt/core.h>

#include "model/internal/plan_parts.h"

namespace millrace::model {
namespace {

PairedRows rotary_rows(const MlaConfig& mla, int group, int first) {
  if (!mla.rope_interleaved) return {};
  return {.group = group, .first = first, .count = mla.rope_head_dim};
}

std::string section_of(int layer, std::string_view name) {
  return fmt::format("layers.{}.attention.{}", layer, name);
}

PlannedGain latent_norm(int layer, std::string_view section, std::string_view hugging_face,
                        std::string_view gguf, int width) {
  return {.section = section_of(layer, section),
          .tensor = in_layer(layer, hugging_face, gguf, "weight"),
          .width = width,
          .folded = true};
}

// The rows that make queries: of q_b_proj, or of q_proj where there is no q latent.
PlannedPart query_rows(const ModelConfig& config, int layer, std::string_view hugging_face,
                       std::string_view gguf) {
  const MlaConfig& mla = config.mla;
  PlannedPart part = part_of(layer, hugging_face, gguf, config.q_heads * config.head_dim);
  part.pairs = rotary_rows(mla, config.head_dim, mla.nope_head_dim);
  part.rotate_rows = hadamard_rotation(mla.nope_head_dim);
  part.rotate_group = config.head_dim;
  part.rotate_count = mla.nope_head_dim;
  return part;
}

// Each head's k or v rows of kv_b_proj, `count` from `first` on; in GGUF files a tensor of its own, or, in
// old ones, kv_b too.
TensorView kv_b_rows(const ModelConfig& config, int layer, int first, int count,
                     std::string_view hugging_face, std::string_view gguf) {
  const MlaConfig& mla = config.mla;
  const int stride = mla.nope_head_dim + mla.value_head_dim;
  TensorView view{.rows = int64_t{config.q_heads} * stride,
                  .columns = mla.kv_lora_rank,
                  .first = first,
                  .take = count,
                  .stride = stride};
  if (!hugging_face.empty())
    view.tensor.hugging_face = in_layer(layer, hugging_face, "", "weight").hugging_face;
  view.tensor.gguf = in_layer(layer, "", gguf, "weight").gguf;
  return view;
}

}  // namespace

PlannedMla mla_of(const ModelConfig& config, const DecoderOptions& options, int layer) {
  const MlaConfig& mla = config.mla;
  const Rotation stream = stream_rotation(config), latent = hadamard_rotation(mla.kv_lora_rank),
                 nope = hadamard_rotation(mla.nope_head_dim), value = hadamard_rotation(mla.value_head_dim);
  PlannedMla m{.layer = layer,
               .norm = layer_norm(config, layer, "attention.norm", "input_layernorm", "attn_norm")};
  m.latent_norm =
      latent_norm(layer, "latent_norm", "self_attn.kv_a_layernorm", "attn_kv_a_norm", mla.kv_lora_rank);

  // One tensor, two parts: its first rows make the latent, the others the rotary key.
  PlannedPart kv = part_of(layer, "self_attn.kv_a_proj_with_mqa", "attn_kv_a_mqa", mla.kv_lora_rank);
  kv.weight[0].rows = mla.kv_lora_rank + mla.rope_head_dim;
  PlannedPart key = kv;
  kv.rotate_rows = latent;
  key.rows = mla.rope_head_dim;
  key.weight[0].first = mla.kv_lora_rank;
  key.pairs = rotary_rows(mla, mla.rope_head_dim, 0);
  PlannedPart query = query_rows(config, layer, "self_attn.q_proj", "attn_q");
  if (mla.q_lora_rank > 0) {
    const Rotation q_latent = hadamard_rotation(mla.q_lora_rank);
    query = part_of(layer, "self_attn.q_a_proj", "attn_q_a", mla.q_lora_rank);
    query.rotate_rows = q_latent;
    m.q_norm = latent_norm(layer, "q_norm", "self_attn.q_a_layernorm", "attn_q_a_norm", mla.q_lora_rank);
    m.q_up = PlannedLinear{.section = section_of(layer, "q_up"),
                           .parts = {query_rows(config, layer, "self_attn.q_b_proj", "attn_q_b")},
                           .k = mla.q_lora_rank,
                           .folded_gain = m.q_norm->tensor,
                           .rotate_columns = q_latent};
  }
  m.in = {.section = section_of(layer, "in"),
          .parts = {query, kv, key},
          .k = config.hidden_size,
          .folded_gain = m.norm.tensor,
          .rotate_columns = stream};

  TensorView k_b = kv_b_rows(config, layer, 0, mla.nope_head_dim, "self_attn.kv_b_proj", "attn_kv_b");
  k_b.transposed = true;
  const TensorView gguf_k_b{.tensor = {"", in_layer(layer, "", "attn_k_b", "weight").gguf},
                            .slabs = config.q_heads};
  m.k_up = {.section = section_of(layer, "k_up"),
            .parts = {{.weight = {gguf_k_b, k_b},
                       .rows = config.q_heads * mla.kv_lora_rank,
                       .row_gain = m.latent_norm.tensor,
                       .row_gain_width = mla.kv_lora_rank,
                       .rotate_rows = latent}},
            .k = mla.nope_head_dim,
            .rotate_columns = nope,
            .rows_per_input = mla.kv_lora_rank};
  const TensorView gguf_v_b{.tensor = {"", in_layer(layer, "", "attn_v_b", "weight").gguf},
                            .slabs = config.q_heads};
  m.v_up = {.section = section_of(layer, "v_up"),
            .parts = {{.weight = {gguf_v_b, kv_b_rows(config, layer, mla.nope_head_dim, mla.value_head_dim,
                                                      "self_attn.kv_b_proj", "attn_kv_b")},
                       .rows = config.q_heads * mla.value_head_dim,
                       .rotate_rows = value}},
            .k = mla.kv_lora_rank,
            .folded_gain = m.latent_norm.tensor,
            .rotate_columns = latent,
            .rows_per_input = mla.value_head_dim};
  PlannedPart o = part_of(layer, "self_attn.o_proj", "attn_output", config.hidden_size);
  o.rotate_rows = stream;
  m.o = {.section = section_of(layer, "o"),
         .parts = {o},
         .k = config.q_heads * mla.value_head_dim,
         .rotate_columns = value};
  m.post_norm = post_norm_of(config, layer, "attention.post_norm", options.attention_post_norm);
  return m;
}

}  // namespace millrace::model
