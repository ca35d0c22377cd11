#include "engine/internal/text_lookup.h"

#include <algorithm>
#include <bit>
#include <limits>

namespace millrace::engine {

size_t TextLookup::slot(std::span<const TokenId> tokens, std::span<const TokenId> guesses,
                        int64_t last) const {
  uint64_t hash = 0;
  for (int64_t place = last - kTokens + 1; place <= last; ++place) {
    hash = (hash + static_cast<uint32_t>(at(tokens, guesses, place)) + 1) * 0x9e3779b97f4a7c15u;
    hash ^= hash >> 32;
  }
  return static_cast<size_t>(hash) & (last_.size() - 1);
}

void TextLookup::extend(std::span<const TokenId> tokens) {
  // A place counts once a token stands after it.
  const int64_t places =
      std::min<int64_t>(static_cast<int64_t>(tokens.size()) - 1, std::numeric_limits<int32_t>::max());
  const size_t wanted = std::clamp<size_t>(std::bit_ceil(tokens.size() + tokens.size() / 2), 256, kSlotsMax);
  if (wanted > last_.size()) {
    last_.assign(wanted, -1);
    noted_ = kTokens - 1;
  }
  for (; noted_ < places; ++noted_) last_[slot(tokens, {}, noted_)] = static_cast<int32_t>(noted_);
}

TextLookup::Place TextLookup::find(std::span<const TokenId> tokens, std::span<const TokenId> guesses) {
  const auto all = static_cast<int64_t>(tokens.size() + guesses.size());
  if (all <= kTokens) return {};
  extend(tokens);
  const int64_t last = last_[slot(tokens, guesses, all - 1)];
  int matched = 0;  // a slot may be another's
  while (matched < kMatchedMax && matched <= last &&
         at(tokens, guesses, last - matched) == at(tokens, guesses, all - 1 - matched))
    ++matched;
  return matched < kTokens ? Place{} : Place{last, matched};
}

}  // namespace millrace::engine
