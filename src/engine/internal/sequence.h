// One request inside the engine: its tokens, how many of them have keys and values, and the pages that hold
// those.
#pragma once
#include <cstdint>
#include <vector>

#include "base/units.h"
#include "engine/internal/drafting.h"
#include "engine/internal/output_text.h"
#include "engine/internal/text_lookup.h"
#include "engine/request.h"
#include "kernels/attention.h"

namespace millrace::engine {

struct Sequence {
  enum class State { waiting, running };

  GenerateRequest request;      // the prompt and resumed tokens are moved into `tokens`
  std::vector<TokenId> tokens;  // prompt, then reply
  int64_t prompt_size = 0;
  int64_t room = 0;      // tokens the reply may have: max_tokens cut to the context
  uint64_t arrival = 0;  // order among equals in priority

  State state = State::waiting;
  int64_t computed = 0;  // tokens [0, computed) have keys and values in pages
  std::vector<int32_t> pages;
  int64_t published = 0;  // pages [0, published) are in the prefix tree

  // Guessing ahead. The MTP layer has keys and values of [draft_from, draft_done), draft_from at a page's
  // start; -1: of none. A step without guesses for it leaves a gap, after which they start anew at a page's
  // start.
  std::vector<DraftGuess> drafts;  // of the tokens after the last one, to be run
  int64_t draft_from = -1, draft_done = 0;
  bool drafting = false;   // guesses after this step
  double draft_reach = 1;  // the chance that its guesses so far are all right
  int draft_passes = 0;    // of the MTP layer, for the guesses that run next; 0: nothing to learn from them
  int undrafted = 0;       // steps since it was found not to pay
  DraftGain draft_gain;
  TextLookup lookup;  // of `tokens`

  OutputText text;
  bool ended = false;            // the last token has been drawn
  bool announced = false;        // the event with has_prompt is out
  bool admitted_before = false;  // left the queue once (a preempted request waits again, but is not new)
  int64_t cached_tokens = 0;     // at first admission
  int64_t first_step_ns = 0;     // when the first step began that computed some of it; 0: none yet
  std::vector<TokenOut> prompt_logprobs;  // by position; kept until announced

  std::span<const TokenId> prompt() const { return {tokens.data(), static_cast<size_t>(prompt_size)}; }
  std::span<const TokenId> generated() const {
    return std::span(tokens).subspan(static_cast<size_t>(prompt_size));
  }
  int64_t size() const { return static_cast<int64_t>(tokens.size()); }
  int64_t pending() const { return size() - computed; }
  // Logits of prompt rows are still wanted: the whole prompt is computed, cached or not.
  bool wants_prompt_logprobs() const { return request.prompt_logprobs >= 0 && !announced; }
  static int64_t pages_for(int64_t tokens) { return ceil_div(tokens, kernels::kPageTokens); }
};

// Who is served first: lower priority number, then earlier arrival.
inline bool before(const Sequence& a, const Sequence& b) {
  return a.request.priority != b.request.priority ? a.request.priority < b.request.priority
                                                  : a.arrival < b.arrival;
}

}  // namespace millrace::engine
