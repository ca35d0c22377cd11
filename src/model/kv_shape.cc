#include "model/kv_shape.h"

#include <fmt/core.h>

#include "base/units.h"
#include "kernels/gemm_s8.h"

namespace millrace::model {
namespace {

Expected<void> want_multiple(std::string_view name, int value, int step) {
  if (value % step == 0) return {};
  return fail(Code::unimplemented,
              fmt::format("{} is {}; the INT8 path needs a multiple of {}", name, value, step));
}

Expected<void> check(const ModelConfig& config, PackType type) {
  if (config.mla.used() && type == PackType::int8) {
    // A head's share of a product is a range of its channels, and those are made of whole tiles; the latent
    // is a key's prefix too.
    MR_TRY(want_multiple("kv_lora_rank", config.mla.kv_lora_rank, kernels::kBf16KeyDimStep));
    MR_TRY(want_multiple("qk_nope_head_dim + qk_rope_head_dim", config.head_dim, kernels::kGemmNBlock));
    MR_TRY(want_multiple("v_head_dim", config.mla.value_head_dim, kernels::kGemmNBlock));
  }
  return kernels::check_attention_shape(kv_shape_of(config, type), config.q_heads);
}

}  // namespace

kernels::KvShape kv_shape_of(const ModelConfig& config, PackType type) {
  const MlaConfig& mla = config.mla;
  const int key_dim =
      mla.used() ? static_cast<int>(round_up(mla.kv_lora_rank + mla.rope_head_dim, kernels::kBf16KeyDimStep))
                 : config.head_dim;
  return {.layers = config.layers,
          .kv_heads = config.kv_heads,
          .key_dim = key_dim,
          .value_dim = mla.used() ? mla.kv_lora_rank : config.head_dim,
          .type = type == PackType::int8 ? kernels::KvType::bf16 : kernels::KvType::f32,
          .value_is_key_prefix = mla.used()};
}

Expected<void> check_attention(const ModelConfig& config, PackType type) {
  auto checked = check(config, type);
  if (!checked && type == PackType::int8)
    checked.error().message +=
        config.mla.used() ? " (the INT8 form, whose key is the latent and the rotary part; float32 takes any)"
                          : " (the INT8 form; float32 takes any even one)";
  return checked;
}

}  // namespace millrace::model
