// What a model's KV cache looks like, and which models the kernels compute: asked by packing, before hours of
// work, and by the executor, of a packed file that is a file like any other. One answer for both.
#pragma once
#include "base/status.h"
#include "kernels/attention.h"
#include "model/config.h"
#include "model/packed_model.h"

namespace millrace::model {

// A page for the model's own layers (MTP layers are the caller's to add): BF16 with INT8 weights, F32 on the
// checking path. Latent attention caches [latent | rotary key], padded for the matrix unit, and its value is
// the key's latent. The config is a validated one.
kernels::KvShape kv_shape_of(const ModelConfig& config, PackType type);

// Refuses (unimplemented) attention that no kernel computes in this form, by the config's key; another form
// may do.
Expected<void> check_attention(const ModelConfig& config, PackType type);

}  // namespace millrace::model
