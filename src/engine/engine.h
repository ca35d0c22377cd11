// One DP group's engine: tokenizer threads, continuous batching with chunked prefill, paged KV with a radix
// prefix cache, preemption, sampling, stop handling. The bits of a reply depend on its request alone (design
// decision 1).
//
// Waiting requests run in order of (priority, arrival). The same `load` goes out with each batch of events;
// after a step without news the batch is empty.
//
// submit() and cancel() may be called from any thread. Events are delivered in batches, one call per step,
// from the engine's step thread: the sink must not block (it hands them to the wire). destroy = stop.
#pragma once
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "engine/request.h"
#include "model/packed_model.h"

namespace millrace::engine {

struct EngineOptions {
  std::vector<int> cpus = {-1};  // one compute thread each, pinned (-1: not)
  int tokenizer_threads = 1;
  int64_t max_model_len = 0;  // tokens of prompt + reply; 0: the model's own, bounded by the KV pool; more
                              // than either of those is refused
  int max_num_seqs = 64;      // sequences in one step
  int max_num_batched_tokens = 512;  // tokens in one step (prefill chunk + decodes); raised to max_num_seqs
  int max_waiting = 1024;            // queued requests; above: resource_exhausted with retry_after_s
  size_t kv_cache_bytes = 0;  // 0: a quarter of what memory is granted, at most 4 GiB, over groups_on_host;
                              // more than is granted to groups_on_host together is refused
  int groups_on_host = 1;     // engines that share this machine's memory: the automatic cache is divided
  bool prefix_caching = true;
  // Tokens guessed ahead at most, with models that have an MTP layer, where that makes more tokens a second;
  // 0: never.
  int num_speculative_tokens = kMaxDrafts;
  bool always_speculate = false;    // whether it pays or not: for trying it out
  bool speculate_from_text = true;  // guesses may go on as the text did where it had the same tokens before
  // Where weights are: copied into the process's own memory (faster where the page cache is in small pages), or in the page
  // cache, which groups_on_host share. Automatic: copied where there is one group and half of the memory left
  // beside its KV cache holds them.
  enum class Weights { automatic, page_cache, own_memory } weights = Weights::automatic;
  // Bytes of weights that are copied at most, beside a cache of kv_cache_bytes in each of groups_on_host.
  size_t own_weights_at_most() const;
};

using EventSink = std::function<void(std::span<GenerateEvent> events, const GroupLoad& load)>;

class Engine {
 public:
  static Expected<std::unique_ptr<Engine>> create(std::shared_ptr<const model::PackedModel> model,
                                                  const EngineOptions& options, EventSink sink);
  virtual ~Engine() = default;

  // Queues the request. Errors that need no tokenizing (limits, full queue) are returned; later ones (context
  // overflow: invalid_argument with reason context_length_exceeded) arrive as an event.
  virtual Expected<void> submit(GenerateRequest request) = 0;
  // The request's pages are free within one step; a final event with FinishReason::cancelled follows.
  // Unknown: ignored. Destroying the engine ends what is left with FinishReason::error and Code::unavailable
  // (it may run elsewhere).
  virtual void cancel(RequestId id) = 0;
  virtual GroupLoad load() const = 0;
  virtual const EngineOptions& options() const = 0;  // with the defaults resolved
};

}  // namespace millrace::engine
