// What a DP group is asked for and what it answers: plain data, the same in process and on the wire
// (cluster/group.proto mirrors it field by field).
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "base/status.h"
#include "base/strong_id.h"
#include "engine/reasoning.h"

namespace millrace::engine {

struct TextSegment {
  std::string text;
  bool parse_special = false;  // special tokens written in the text become tokens
};

// Either ready token ids, or text for the group's tokenizer threads.
struct Prompt {
  std::vector<TokenId> tokens;  // used if text is empty
  std::vector<TextSegment> text;
  bool add_special = true;  // with text: bos/eos as the tokenizer says
};

struct SamplingParams {
  double temperature = 1.0;  // 0: greedy
  double top_p = 1.0;
  int top_k = 0;  // 0: off
  double min_p = 0.0;
  double presence_penalty = 0.0, frequency_penalty = 0.0;  // OpenAI: over generated tokens
  double repetition_penalty = 1.0;                         // over prompt and generated tokens
  std::vector<std::pair<TokenId, float>> logit_bias;       // at most kMaxLogitBias
  uint64_t seed = 0;  // always set: the gateway draws one if the client gave none
};

struct StopParams {
  // Generated tokens at most; 0: as many as the context leaves room for. With a number, prompt + max_tokens
  // above the context is refused (context_length_exceeded), not cut.
  int64_t max_tokens = 0;
  int64_t min_tokens = 0;            // stop tokens and strings are not taken before
  std::vector<std::string> strings;  // at most kMaxStopStrings
  std::vector<TokenId> token_ids;    // end the reply; not part of its text
  bool ignore_eos = false;
  bool include_stop_in_text = false;
};

struct GenerateRequest {
  RequestId id;
  Prompt prompt;
  // Tokens this request has already produced elsewhere (a group died): they are part of the context and of
  // the stop and penalty state, and events go on after them. The text they make is not emitted again.
  std::vector<TokenId> resumed;
  SamplingParams sampling;
  StopParams stop;
  int top_logprobs = -1;     // -1: none; 0: the chosen token's only; up to kMaxTopLogprobs
  int prompt_logprobs = -1;  // -1: none; as above, for each prompt token (echo); computes the whole prompt
  bool skip_special_tokens = true;
  // How the model marks its thought; unused: the reply is all answer. The text keeps the markers, also where
  // they are special tokens and those are skipped; stop strings are not looked for within the thought.
  ReasoningFormat reasoning;
  int priority = 0;          // lower runs first
  std::string cache_salt;    // requests with different salts never share cached pages
  int64_t submitted_ns = 0;  // monotonic; set by Engine::submit and, alone of all fields, not on the wire
};

// What can be said against a request before its text is tokenized: limits, ranges, ids (of prompts and
// biases), UTF-8 of stop strings. `param` names the OpenAI field at fault. Engine::submit calls it; a gateway
// may, to refuse early.
Expected<void> validate_request(const GenerateRequest& request, int vocab_size);

inline constexpr int kMaxTopLogprobs = 20;  // OpenAI's limit
inline constexpr int kMaxStopStrings = 16;
inline constexpr size_t kMaxStopStringBytes = 512;
inline constexpr int kMaxLogitBias = 1024;
inline constexpr size_t kMaxCacheSaltBytes = 256;
inline constexpr int kMaxStopTokens = 256;

struct TokenLogprob {
  TokenId token = 0;
  float logprob = 0;
};
struct TokenOut {
  TokenId token = 0;
  float logprob = 0;  // of the model's distribution (before temperature and truncation); 0 if not asked
  std::vector<TokenLogprob> top;  // descending
};

enum class FinishReason : int { none = 0, stop = 1, length = 2, cancelled = 3, error = 4 };
std::string_view finish_reason_name(FinishReason reason);

// One step's news of one request. Events of a request come in order.
struct GenerateEvent {
  RequestId id;
  // In the first event of a request (and again after a resume):
  bool has_prompt = false;
  int64_t prompt_tokens = 0, cached_tokens = 0;
  double queue_s = 0;                     // from submit() to the first step that computed some of it
  std::vector<TokenId> prompt_ids;        // only with prompt_logprobs
  std::vector<TokenOut> prompt_logprobs;  // entry 0 has no logprob

  std::vector<TokenOut> tokens;  // new tokens, the stop token included
  std::string text;  // new text; held back while it may become a stop string or is half a character
  FinishReason finish = FinishReason::none;
  std::string stop_match;   // the stop string, or ""
  TokenId stop_token = -1;  // the stop token id, or -1
  Status error;             // with FinishReason::error
};

// How evenly the rows of one mixture of experts have fallen on its experts since start. Renewed every 64
// steps, and when nothing is left to compute.
struct ExpertBalance {
  int layer = 0;
  // Computed by all its experts together (a row counts once for each it picked), and by the one that has
  // computed most. In a model's last layer only rows that go on to the head, or to the MTP layer, count.
  uint64_t rows = 0, busiest_rows = 0;
  float imbalance =
      0;  // rows of the busiest expert over the mean; 1: even, the number of experts: all on one
};

// Guesses of the model's MTP layer at one place after the last token (0: the next one), since start.
inline constexpr int kMaxDrafts = 8;
struct DraftCount {
  uint64_t proposed = 0, accepted = 0;  // accepted: computed in one step with the token before
};

// What a group publishes with each step (decision 4: routers choose from published load).
struct GroupLoad {
  uint64_t steps = 0;            // finished since start: the health signal
  int64_t last_step_age_ms = 0;  // since the last finished step
  int running = 0, waiting = 0;
  int64_t kv_pages_total = 0, kv_pages_free = 0;  // free includes cached pages nobody uses
  uint64_t prompt_tokens = 0, cached_tokens = 0, generated_tokens = 0, preemptions = 0;  // totals since start
  std::vector<DraftCount> drafts;      // by place; empty until something was guessed
  std::vector<ExpertBalance> experts;  // one a mixture, of a model that has some
};

}  // namespace millrace::engine
