// A mixture of experts as a Plan. Router, experts and shared expert all read the same normed stream, so on
// the INT8 path each folds the norm's gain into its columns and turns them with the stream; the router stays
// in float32, since a rounded score would pick other experts.
//
// Experts lie in a checkpoint one by one (safetensors), or all in one tensor [experts][rows][columns] (GGUF,
// and transformers 5's own form), gate and up apart or one above the other.
#include <fmt/core.h>

#include "model/internal/plan_parts.h"

namespace millrace::model {
namespace {

// A part of an expert, from the first of three that the checkpoint has: the expert's own tensor, a stack of
// all experts', a stack of matrices of which the part is `rows` rows below `above` others.
struct Fused {
  std::string_view hugging_face, gguf;
  int above = 0, rows = 0;
};
PlannedPart expert_part(const ModelConfig& config, int layer, std::string_view name, int rows,
                        const Fused& in) {
  const int64_t experts = config.moe.experts;
  const std::string prefix = fmt::format("model.layers.{}.mlp.experts.", layer);
  const TensorView own{.tensor = {fmt::format("{}#.{}_proj.weight", prefix, name), ""}};
  const TensorView stack{.tensor = {"", fmt::format("blk.{}.ffn_{}_exps.weight", layer, name)},
                         .rows = experts * rows,
                         .slabs = experts};
  TensorView fused{.tensor = {prefix + std::string(in.hugging_face), ""},
                   .rows = experts * in.rows,
                   .slabs = experts,
                   .first = in.above};
  if (!in.gguf.empty()) fused.tensor.gguf = fmt::format("blk.{}.{}.weight", layer, in.gguf);
  return {.weight = {own, stack, fused}, .rows = rows};
}

}  // namespace

PlannedRouter router_of(const ModelConfig& config, const DecoderOptions& options, int layer) {
  const MoeConfig& moe = config.moe;
  const auto vector = [&](std::string_view section, const TensorName& tensor) {
    return PlannedGain{.section = fmt::format("layers.{}.router.{}", layer, section),
                       .tensor = tensor,
                       .width = moe.experts};
  };
  PlannedRouter m{.layer = layer,
                  .norm = layer_norm(config, layer, "router.norm", options.ffn_norm, "ffn_norm"),
                  .weight = {.section = fmt::format("layers.{}.router", layer),
                             .parts = {part_of(layer, "mlp.gate", "ffn_gate_inp", moe.experts)},
                             .k = config.hidden_size,
                             .always_float = true,
                             .rotate_columns = stream_rotation(config)}};
  m.weight.folded_gain = m.norm.tensor;
  if (moe.selection_bias)
    m.selection_bias =
        vector("selection_bias", {fmt::format("model.layers.{}.mlp.gate.e_score_correction_bias", layer),
                                  fmt::format("blk.{}.exp_probs_b.bias", layer)});
  if (moe.expert_scale)
    m.expert_scale = vector("expert_scale", {fmt::format("model.layers.{}.mlp.router_scale", layer),
                                             fmt::format("blk.{}.router_scale", layer)});
  m.post_norm = post_norm_of(config, layer, "router.post_norm", options.ffn_post_norm);
  return m;
}

PlannedExperts experts_of(const ModelConfig& config, int layer, const PlannedGain& norm) {
  const int ffn = config.moe.ffn_size, hidden = config.hidden_size;
  const Rotation stream = stream_rotation(config);
  PlannedPart down = expert_part(config, layer, "down", hidden, {"down_proj", "", 0, hidden});
  down.rotate_rows = stream;
  return {.layer = layer,
          .experts = config.moe.experts,
          .gate_up = {.section = fmt::format("layers.{}.experts.#.gate_up", layer),
                      .parts = {expert_part(config, layer, "gate", ffn,
                                            {"gate_up_proj", "ffn_gate_up_exps", 0, 2 * ffn}),
                                expert_part(config, layer, "up", ffn,
                                            {"gate_up_proj", "ffn_gate_up_exps", ffn, 2 * ffn})},
                      .k = hidden,
                      .folded_gain = norm.tensor,
                      .rotate_columns = stream,
                      .of_one_expert = true,
                      .also_read_by = fmt::format("layers.{}.router", layer)},
          .down = {.section = fmt::format("layers.{}.experts.#.down", layer),
                   .parts = {down},
                   .k = ffn,
                   .rotate_columns = hadamard_rotation(ffn),
                   .of_one_expert = true}};
}

PlannedSharedExpert shared_expert_of(const ModelConfig& config, const DecoderOptions& options, int layer,
                                     const PlannedGain& norm) {
  const int ffn = config.moe.shared_ffn_size;
  const Rotation stream = stream_rotation(config);
  const auto part = [&](std::string_view name, int rows) {
    return part_of(layer, fmt::format("{}.{}_proj", options.shared_expert, name),
                   fmt::format("ffn_{}_shexp", name), rows);
  };
  PlannedPart down = part("down", config.hidden_size);
  down.rotate_rows = stream;
  PlannedSharedExpert m{.layer = layer,
                        .gate_up = {.section = fmt::format("layers.{}.shared_expert.gate_up", layer),
                                    .parts = {part("gate", ffn), part("up", ffn)},
                                    .k = config.hidden_size,
                                    .folded_gain = norm.tensor,
                                    .rotate_columns = stream},
                        .down = {.section = fmt::format("layers.{}.shared_expert.down", layer),
                                 .parts = {down},
                                 .k = ffn,
                                 .rotate_columns = hadamard_rotation(ffn)}};
  if (config.moe.shared_gate)
    m.gate = PlannedLinear{
        .section = fmt::format("layers.{}.shared_expert.gate", layer),
        .parts = {part_of(layer, fmt::format("{}_gate", options.shared_expert), "ffn_gate_inp_shexp", 1)},
        .k = config.hidden_size,
        .always_float = true,
        .folded_gain = norm.tensor,
        .rotate_columns = stream};
  return m;
}

}  // namespace millrace::model
