// Flags that several verbs share, with vLLM's names where vLLM has one.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/status.h"
#include "engine/engine.h"
#include "model/packed_model.h"

namespace CLI {
class App;
}

namespace millrace::apps {

struct ModelFlags {
  std::string model = "smollm2";
  std::string dtype = "auto";  // auto = int8
  bool calibrated = true;      // the form that `pack --calibrate` made, where there is one
};
void add_model_flags(CLI::App& app, ModelFlags& flags);
void add_calibrated_flag(CLI::App& app, ModelFlags& flags);  // for verbs that take a packed file
Expected<model::PackType> pack_type_of(const std::string& dtype);

struct EngineFlags {
  int64_t max_model_len = 0;
  int max_num_seqs = 64;
  int max_num_batched_tokens = 512;
  double kv_cache_gib = 0;  // per group; 0: automatic
  bool enable_prefix_caching = true;
  int num_speculative_tokens = engine::kMaxDrafts;
  bool always_speculate = false;
  bool speculate_from_text = true;
  std::string weights = "auto";
  int threads = 0;  // 0: every granted core
};
void add_engine_flags(CLI::App& app, EngineFlags& flags);

// The packed form of MODEL: found in the cache, or made now with a progress bar. MODEL is resolved by hub; what is not
// on disk is an error that says how to fetch it.
Expected<std::string> ensure_packed(const ModelFlags& flags);
// ensure_packed, opened.
Expected<std::shared_ptr<const model::PackedModel>> open_model(const ModelFlags& flags);
engine::EngineOptions engine_options(const EngineFlags& flags);

// Prints "millrace: ..." with the hint of the status, and gives the exit status: 2 for wrong input, 1 otherwise.
int report(const Status& status);

}  // namespace millrace::apps
