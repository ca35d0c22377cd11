// Engine options with their defaults filled in and checked against the model and the machine.
#pragma once
#include "engine/engine.h"
#include "kernels/attention.h"
#include "model/config.h"

namespace millrace::engine {

struct ResolvedOptions {
  EngineOptions options;
  int64_t pages = 0;  // of the KV pool
};
Expected<ResolvedOptions> resolve_options(const EngineOptions& options, const model::ModelConfig& config,
                                          const kernels::KvShape& shape);

}  // namespace millrace::engine
