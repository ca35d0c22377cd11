#include "engine/prompt.h"

#include <algorithm>

namespace millrace::engine {
namespace {

std::vector<TokenId> specials_of(const model::Tokenizer& tokenizer, std::span<const TokenId> ids) {
  std::vector<TokenId> specials;
  std::ranges::copy_if(ids, std::back_inserter(specials),
                       [&](TokenId id) { return tokenizer.is_special(id); });
  return specials;
}

Expected<void> encode_text(const model::Tokenizer& tokenizer, const std::vector<TextSegment>& segments,
                           size_t max_tokens, std::vector<TokenId>& out) {
  const bool parses = std::ranges::any_of(segments, &TextSegment::parse_special);
  const bool mixed = parses && !std::ranges::all_of(segments, &TextSegment::parse_special);
  std::string joined;
  for (const auto& segment : segments) joined += segment.text;
  const size_t before = out.size();
  MR_TRY(tokenizer.encode(joined, {.add_special = false, .parse_special = parses}, max_tokens, out));
  if (!mixed) return {};

  // Did the request's own words make a special token? Then there are more than the template's.
  std::vector<TokenId> allowed;
  for (const auto& segment : segments) {
    if (!segment.parse_special) continue;
    std::vector<TokenId> ids;
    MR_TRY(tokenizer.encode(segment.text, {.add_special = false, .parse_special = true}, 0, ids));
    std::ranges::copy(specials_of(tokenizer, ids), std::back_inserter(allowed));
  }
  if (specials_of(tokenizer, std::span(out).subspan(before)) == allowed) return {};
  out.resize(before);
  for (const auto& segment : segments)
    MR_TRY(tokenizer.encode(segment.text, {.add_special = false, .parse_special = segment.parse_special},
                            max_tokens, out));
  return {};
}

}  // namespace

Expected<std::vector<TokenId>> encode_prompt(const model::Tokenizer& tokenizer, const Prompt& prompt,
                                             size_t max_tokens) {
  if (prompt.text.empty()) return prompt.tokens;
  const model::TokenizerSpec& spec = tokenizer.spec();
  std::vector<TokenId> ids;
  if (prompt.add_special) ids.insert(ids.end(), spec.prefix.begin(), spec.prefix.end());
  MR_TRY(encode_text(tokenizer, prompt.text, max_tokens, ids));
  if (prompt.add_special) ids.insert(ids.end(), spec.suffix.begin(), spec.suffix.end());
  return ids;
}

}  // namespace millrace::engine
