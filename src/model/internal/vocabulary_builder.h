// What the loaders of vocabularies share: names to ids, and merges from names.
#pragma once
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "model/tokenizer.h"

namespace millrace::model::internal {

// Views into spec.tokens: valid while the strings stay where they are.
using TokenIds = std::unordered_map<std::string_view, TokenId>;
TokenIds ids_by_text(
    const std::vector<std::string>& tokens);  // the first id of a text that stands there twice

// Appends the merge of two token texts. Invalid if either, or both joined, is not a token.
Expected<void> append_merge(const TokenIds& ids, std::string_view left, std::string_view right,
                            std::vector<Merge>& merges);

// The merges that a SentencePiece vocabulary with scores implies, best score first; tokens in `excluded`
// (control, byte, unknown) are neither parts nor results. Tokens of more than 512 bytes are no results: no
// published vocabulary merges that far.
std::vector<Merge> merges_from_scores(const std::vector<std::string>& tokens,
                                      const std::vector<float>& scores, const std::vector<bool>& excluded);

// Puts those merges into a spec whose tokens are set, with ranks by score: of equal scores the leftmost pair
// is first, as in SentencePiece.
void add_score_merges(const std::vector<float>& scores, const std::vector<bool>& excluded,
                      TokenizerSpec& spec);

// tiktoken's rule, for a spec whose first `ranked` tokens stand in rank order: any two neighbours that make a
// token may merge, the lowest made token first, of equal ones the leftmost. The tokens are in GPT-2's
// alphabet; those of more than 1,024 bytes there are not made of others.
void add_rank_merges(size_t ranked, TokenizerSpec& spec);

inline constexpr std::string_view kMetaspaceText = "\xE2\x96\x81";  // U+2581

}  // namespace millrace::model::internal
