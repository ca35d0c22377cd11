#include "engine/internal/resolve.h"

#include <fmt/core.h>

#include <algorithm>
#include <string>

#include "base/granted_memory.h"
#include "base/units.h"

namespace millrace::engine {
namespace {

constexpr int kMaxSequences = 4096, kMaxRows = 1 << 16, kMaxTokenizerThreads = 64, kMaxWaiting = 1 << 20,
              kMaxGroups = 1024;
constexpr size_t kDefaultCacheAtMost = 4 * kGiB;

Expected<void> in_range(int64_t value, int64_t low, int64_t high, const char* name) {
  if (value >= low && value <= high) return {};
  return invalid(fmt::format("{} is {}, it must be between {} and {}", name, value, low, high), name);
}

}  // namespace

Expected<ResolvedOptions> resolve_options(const EngineOptions& given, const model::ModelConfig& config,
                                          const kernels::KvShape& shape) {
  ResolvedOptions resolved{.options = given};
  EngineOptions& options = resolved.options;
  if (options.cpus.empty()) return invalid("at least one compute thread is needed", "cpus");
  MR_TRY(in_range(options.max_num_seqs, 1, kMaxSequences, "max_num_seqs"));
  MR_TRY(in_range(options.max_num_batched_tokens, 1, kMaxRows, "max_num_batched_tokens"));
  MR_TRY(in_range(options.tokenizer_threads, 1, kMaxTokenizerThreads, "tokenizer_threads"));
  MR_TRY(in_range(options.max_waiting, 1, kMaxWaiting, "max_waiting"));
  MR_TRY(in_range(options.num_speculative_tokens, 0, kMaxDrafts, "num_speculative_tokens"));
  MR_TRY(in_range(options.groups_on_host, 1, kMaxGroups, "groups_on_host"));
  options.max_num_batched_tokens = std::max(options.max_num_batched_tokens, options.max_num_seqs);

  const size_t page_bytes = shape.page_bytes();
  const int64_t model_len = config.max_position;
  const int64_t wanted_len = options.max_model_len > 0 ? options.max_model_len : model_len;
  if (wanted_len > model_len)
    return invalid(
        fmt::format("max_model_len is {}, but the model was made for {} tokens", wanted_len, model_len),
        "max_model_len");
  if (wanted_len < 2) return invalid("max_model_len must be 2 or more", "max_model_len");
  const size_t granted = granted_memory().total_bytes, groups = static_cast<size_t>(options.groups_on_host);
  // The pool fills with use, and its memory is taken beforehand: what cannot be there would end in the kernel
  // killing somebody, hours later or at rest.
  if (options.kv_cache_bytes > granted / groups)
    return invalid(
        fmt::format(
            "a KV cache of {} bytes for each of {} groups is more than the {} bytes of memory that this "
            "machine, or a cgroup on it, grants",
            options.kv_cache_bytes, groups, granted),
        "kv_cache_bytes");
  if (options.kv_cache_bytes == 0) {
    options.kv_cache_bytes = std::min(granted / 4, kDefaultCacheAtMost) / groups;
    // No more than every seat can use.
    const auto useful = static_cast<size_t>(ceil_div(wanted_len, kernels::kPageTokens) + 1) * page_bytes *
                        static_cast<size_t>(options.max_num_seqs);
    options.kv_cache_bytes = std::max(std::min(options.kv_cache_bytes, useful), page_bytes);
  }
  resolved.pages = static_cast<int64_t>(options.kv_cache_bytes / page_bytes);
  const int64_t pool_len = resolved.pages * kernels::kPageTokens;
  if (pool_len < 2 || (options.max_model_len > 0 && wanted_len > pool_len))
    return fail(
        Code::resource_exhausted,
        fmt::format(
            "a KV cache of {} bytes holds {} tokens ({} bytes each), fewer than max_model_len {}: raise "
            "the KV cache or lower max_model_len",
            options.kv_cache_bytes, pool_len, page_bytes / kernels::kPageTokens, wanted_len));
  options.max_model_len = std::min(wanted_len, pool_len);
  return resolved;
}

}  // namespace millrace::engine
