#include "model/kv_shape.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "model/fixtures/tiny_checkpoint.h"

namespace millrace::model {
namespace {

using testing::HasSubstr;

ModelConfig latent(const MlaConfig& mla) {
  ModelConfig config = fixtures::tiny_config(Architecture::llama);
  config.architecture = Architecture::deepseek_v3;
  config.mla = mla;
  config.head_dim = mla.nope_head_dim + mla.rope_head_dim;
  config.kv_heads = 1;
  return config;
}
constexpr MlaConfig kDeepSeekV3 = {.kv_lora_rank = 512,
                                   .q_lora_rank = 1536,
                                   .nope_head_dim = 128,
                                   .rope_head_dim = 64,
                                   .value_head_dim = 128};

std::string error_of(const ModelConfig& config, PackType type = PackType::int8) {
  EXPECT_TRUE(config.validate().has_value()) << "this is not what refuses it";
  const auto checked = check_attention(config, type);
  if (!checked) {
    EXPECT_EQ(checked.error().code, Code::unimplemented);
  }
  return checked ? "" : checked.error().message;
}
std::string error_of(const MlaConfig& mla, PackType type = PackType::int8) {
  return error_of(latent(mla), type);
}

TEST(KvShape, OfOrdinaryAttention) {
  const ModelConfig config = fixtures::tiny_config(Architecture::llama);
  const kernels::KvShape shape = kv_shape_of(config, PackType::float32);
  EXPECT_EQ(shape.layers, 2);
  EXPECT_EQ(shape.kv_heads, 2);
  EXPECT_EQ(shape.key_dim, 32);
  EXPECT_EQ(shape.value_dim, 32);
  EXPECT_EQ(shape.type, kernels::KvType::f32);
  EXPECT_EQ(kv_shape_of(config, PackType::int8).type, kernels::KvType::bf16);
}

// The latent once, and the rotary key: 1,152 bytes a token and layer.
TEST(KvShape, OfLatentAttention) {
  kernels::KvShape shape = kv_shape_of(latent(kDeepSeekV3), PackType::int8);
  EXPECT_EQ(shape.key_dim, 576);
  EXPECT_EQ(shape.value_dim, 512);
  EXPECT_TRUE(shape.value_is_key_prefix);
  EXPECT_EQ(shape.layer_bytes(), 1152u * kernels::kPageTokens);
  MlaConfig padded = kDeepSeekV3;
  padded.rope_head_dim = 6;
  EXPECT_EQ(kv_shape_of(latent(padded), PackType::int8).key_dim, 544);
}

// What the executor would refuse after hours of packing; the float form takes it all.
TEST(KvShape, RefusesLatentAttentionThatNoKernelComputes) {
  EXPECT_EQ(error_of(kDeepSeekV3), "");
  const auto refused = [](auto change, std::string_view why) {
    MlaConfig mla = kDeepSeekV3;
    change(mla);
    EXPECT_THAT(error_of(mla), HasSubstr(why));
    EXPECT_EQ(error_of(mla, PackType::float32), "");
  };
  // The value is a prefix of the key, in steps of 32, where a tile has 16.
  refused([](MlaConfig& mla) { mla.kv_lora_rank = 496; }, "kv_lora_rank is 496");
  refused([](MlaConfig& mla) { mla.kv_lora_rank = 1024; }, "key width is 1088");
  refused([](MlaConfig& mla) { mla.nope_head_dim = 120; }, "qk_nope_head_dim + qk_rope_head_dim is 184");
  refused([](MlaConfig& mla) { mla.value_head_dim = 72; }, "v_head_dim is 72");
}

TEST(KvShape, RefusesHeadsThatNoKernelComputes) {
  ModelConfig config = fixtures::tiny_config(Architecture::llama);
  EXPECT_EQ(error_of(config), "");
  config.head_dim = 24;
  EXPECT_THAT(error_of(config), HasSubstr("head_dim is 24"));
  EXPECT_EQ(error_of(config, PackType::float32), "");
}

}  // namespace
}  // namespace millrace::model
