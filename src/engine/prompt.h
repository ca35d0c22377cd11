// From a Prompt to token ids: what the engine's tokenizer threads do, and what /tokenize must agree with.
#pragma once
#include <cstddef>
#include <vector>

#include "engine/request.h"
#include "model/tokenizer.h"

namespace millrace::engine {

// The ids of prompt.text as if its segments were one string (so that merges go across their borders, as
// everywhere else), except that special tokens count as such only where a segment says so. Where a user's
// words contain or complete the text of a special token, segments are encoded one by one instead, and those
// words stay text. More than max_tokens (0: no limit) is an error. Ready ids (prompt.tokens) are returned as
// they are.
Expected<std::vector<TokenId>> encode_prompt(const model::Tokenizer& tokenizer, const Prompt& prompt,
                                             size_t max_tokens);

}  // namespace millrace::engine
