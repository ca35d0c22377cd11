// Speed of the engine's steps on this machine, as shares of what the machine can do in the same minute.
//
// One JSON object a line:
//   {"name":"machine","cpu":...,"isa":...,"threads":...,"int8_tops":...,"read_gb_s":...}
//   {"name":"prefill","tokens":512,"tok_s":...,"pct_peak_int8":...}
//   {"name":"decode","batch":8,"tok_s":...,"pct_read_bw":...,"pct_peak_int8":...}
// and per line "runs" with "tok_s_min" and "tok_s_max" of the repetitions; tok_s is their median.
//   pct_peak_int8 = 100 * 2 * (weights used by a token; of prefill without the head) * tok_s / int8_tops
//   pct_read_bw   = 100 * (bytes of weights read by a step) * steps/s / read_gb_s
// A mixture's token uses experts_per_token experts; a step of B sequences is taken to read the expected number of
// different experts, E (1 - (1 - k / E)^B).
// Prefill is one prompt of that many tokens to its first token, nothing cached. Decode makes `decode` greedy
// tokens in each of `batch` sequences after prompts of 16 tokens; scheduling and sampling are in both, HTTP
// and text are not.
// With speculation_text and a model that has an MTP layer, decoding is measured again, with guesses and without, in
// turns, after prompts of 32 tokens cut from that text (random ones would be guessed at random):
//   {"name":"speculation","batch":1,"tok_s":...,"tok_s_without":...,"ratio":...,"ratio_min":...,"ratio_max":...,
//    "accepted":[...],"tokens_per_step":...}
// accepted: of the guesses at each place, the share that was right; empty where guessing did not pay.
#pragma once
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "engine/request.h"
#include "model/packed_model.h"

namespace millrace::engine {

struct BenchOptions {
  std::vector<int> cpus = {-1};            // one thread each
  std::vector<int> prefill = {512, 2048};  // prompt lengths, tokens
  int decode = 128;                        // tokens in each sequence
  std::vector<int> batch = {1, 8, 32};     // sequences
  int runs = 3;                            // of each line, after one that is not counted
  double peak_seconds = 1.0;               // for each of the machine's figures
  int max_num_batched_tokens = 512;
  int num_speculative_tokens = kMaxDrafts;
  bool always_speculate = false;
  bool speculate_from_text = true;
  size_t own_weights_at_most = 0;  // bytes of weights that are copied into the process's own memory
  std::string speculation_text;  // UTF-8; empty: speculation is not measured
};

// sink gets one line (no newline) at a time, as soon as it is measured.
Expected<void> run_bench(std::shared_ptr<const model::PackedModel> model, const BenchOptions& options,
                         const std::function<void(std::string_view json_line)>& sink);

}  // namespace millrace::engine
