// Bounds on what a vocabulary may hold, and the one rule of decoding that decode() and Detokenizer share.
#pragma once
#include <cstddef>
#include <string>

#include "model/tokenizer.h"

namespace millrace::model::internal {

inline constexpr size_t kMaxVocabulary = size_t{1} << 21;  // eight times the largest published vocabulary
inline constexpr size_t kMaxVocabularyBytes = size_t{256} << 20;
inline constexpr size_t kMaxAddedTokenBytes = 1024;  // bounds the matcher: text size times this, at worst
inline constexpr size_t kMaxAddedBytes = size_t{8} << 20;  // the matcher counts its nodes, one a byte, in 24 bits
inline constexpr size_t kMaxNormalizerSteps = 64;  // each walks the whole text; real files have up to 3

// Appends what the token says. at_start: nothing was said yet (the leading space may be dropped).
void append_token(const Tokenizer& tokenizer, TokenId id, bool skip_special, bool& at_start,
                  std::string& out);

}  // namespace millrace::model::internal
