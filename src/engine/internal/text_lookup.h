// Where in a sequence the last few tokens stood before, and so what may follow them: text repeats itself
// where it quotes, edits code, fills tables, or loops. What llama.cpp calls lookup and vLLM n-gram
// speculation; after Saxena, "Prompt Lookup Decoding" (2023). Here it carries guesses on that the MTP layer
// began.
//
// Not thread-safe. Memory: 6 to 12 bytes a token (1 KiB at least), kSlotsMax slots of 4 bytes at most: where
// tokens outnumber them, the later places remain.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "base/strong_id.h"

namespace millrace::engine {

class TextLookup {
 public:
  static constexpr int kTokens = 4;       // that must be equal
  static constexpr int kMatchedMax = 16;  // equal tokens are counted up to here
  static constexpr size_t kSlotsMax = size_t{1} << 16;

  // Where the last kTokens of (tokens, guesses) ended before, the latest place in `tokens` that has a token
  // after it; and how many tokens up to there are equal. `tokens` begins as at the calls before.
  struct Place {
    int64_t last = -1;  // -1: nowhere
    int matched = 0;    // kTokens..kMatchedMax
  };
  Place find(std::span<const TokenId> tokens, std::span<const TokenId> guesses);

  // The token after a place, which may itself be a guess: text that repeats with a short period.
  static TokenId at(std::span<const TokenId> tokens, std::span<const TokenId> guesses, int64_t place) {
    const auto size = static_cast<int64_t>(tokens.size());
    return place < size ? tokens[static_cast<size_t>(place)] : guesses[static_cast<size_t>(place - size)];
  }

 private:
  void extend(std::span<const TokenId> tokens);
  size_t slot(std::span<const TokenId> tokens, std::span<const TokenId> guesses, int64_t last) const;

  std::vector<int32_t> last_;  // [hash of kTokens tokens]: the place of the latest such, -1 for none
  int64_t noted_ = 0;          // places before it are in last_
};

}  // namespace millrace::engine
