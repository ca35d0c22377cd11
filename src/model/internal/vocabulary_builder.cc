#include "model/internal/vocabulary_builder.h"

#include <fmt/core.h>

#include <algorithm>

#include "model/internal/pieces.h"

namespace millrace::model::internal {
namespace {

// A longer token is not the result of merging in any published vocabulary. Each way to cut one in two costs a
// hash of its text, so without a limit a file of one long token takes the square of its size.
constexpr size_t kMaxMergedBytes = 512;

}  // namespace

TokenIds ids_by_text(const std::vector<std::string>& tokens) {
  TokenIds ids;
  ids.reserve(tokens.size());
  for (size_t id = 0; id < tokens.size(); ++id)
    if (!tokens[id].empty()) ids.try_emplace(tokens[id], static_cast<TokenId>(id));
  return ids;
}

Expected<void> append_merge(const TokenIds& ids, std::string_view left, std::string_view right,
                            std::vector<Merge>& merges) {
  const auto find = [&](std::string_view text) {
    const auto found = ids.find(text);
    return found == ids.end() ? TokenId{-1} : found->second;
  };
  const std::string joined = std::string(left) + std::string(right);
  const Merge merge{find(left), find(right), find(joined)};
  if (merge.left < 0 || merge.right < 0 || merge.result < 0)
    return invalid(fmt::format("merge {} joins '{}' and '{}', but '{}' is not in the vocabulary",
                               merges.size(), left, right,
                               merge.left < 0    ? left
                               : merge.right < 0 ? right
                                                 : std::string_view(joined)));
  merges.push_back(merge);
  return {};
}

std::vector<Merge> merges_from_scores(const std::vector<std::string>& tokens,
                                      const std::vector<float>& scores, const std::vector<bool>& excluded) {
  TokenIds ids;
  ids.reserve(tokens.size());
  for (size_t id = 0; id < tokens.size(); ++id)
    if (!tokens[id].empty() && !excluded[id]) ids.try_emplace(tokens[id], static_cast<TokenId>(id));
  std::vector<Merge> merges;
  for (size_t id = 0; id < tokens.size(); ++id) {
    const std::string_view text = tokens[id];
    if (excluded[id] || text.size() > kMaxMergedBytes) continue;
    const auto first = static_cast<int64_t>(merges.size());
    for (size_t cut = 0; cut < text.size();) {
      cut += sequence_length(text[cut]);
      if (cut >= text.size()) break;
      const auto left = ids.find(text.substr(0, cut)), right = ids.find(text.substr(cut));
      if (left != ids.end() && right != ids.end())
        merges.push_back({left->second, right->second, static_cast<TokenId>(id)});
    }
    std::sort(merges.begin() + first, merges.end(), [](const Merge& a, const Merge& b) {
      return std::pair(a.left, a.right) < std::pair(b.left, b.right);
    });
  }
  // Ties as the conversion to tokenizer.json breaks them: longer left parts first, then longer right parts,
  // then as they stand in the vocabulary, and the ways to one token by their parts' ids.
  const auto length = [&](TokenId id) {
    return std::ranges::count_if(tokens[static_cast<size_t>(id)], [](char c) { return (c & 0xC0) != 0x80; });
  };
  std::stable_sort(merges.begin(), merges.end(), [&](const Merge& a, const Merge& b) {
    const float x = scores[static_cast<size_t>(a.result)], y = scores[static_cast<size_t>(b.result)];
    if (x != y) return x > y;
    const auto la = length(a.left), lb = length(b.left);
    return la != lb ? la > lb : length(a.right) > length(b.right);
  });
  return merges;
}

void add_score_merges(const std::vector<float>& scores, const std::vector<bool>& excluded,
                      TokenizerSpec& spec) {
  spec.merges = merges_from_scores(spec.tokens, scores, excluded);
  spec.merge_ranks.clear();
  spec.merge_ranks.reserve(spec.merges.size());
  uint32_t rank = 0;
  for (size_t i = 0; i < spec.merges.size(); ++i) {
    const auto score = [&](size_t at) { return scores[static_cast<size_t>(spec.merges[at].result)]; };
    if (i > 0 && score(i) != score(i - 1)) ++rank;
    spec.merge_ranks.push_back(rank);
  }
}

void add_rank_merges(size_t ranked, TokenizerSpec& spec) {
  TokenIds ids;
  ids.reserve(ranked);
  for (size_t id = 0; id < ranked; ++id) ids.try_emplace(spec.tokens[id], static_cast<TokenId>(id));
  spec.merges.clear();
  spec.merge_ranks.clear();
  for (size_t id = 0; id < ranked; ++id) {
    const std::string_view text = spec.tokens[id];
    if (text.size() > 2 * kMaxMergedBytes) continue;  // GPT-2's alphabet writes a byte as up to two
    for (size_t cut = 0; cut < text.size();) {
      cut += sequence_length(text[cut]);
      if (cut >= text.size()) break;
      const auto left = ids.find(text.substr(0, cut));
      if (left == ids.end()) continue;
      const auto right = ids.find(text.substr(cut));
      if (right == ids.end()) continue;
      spec.merges.push_back({left->second, right->second, static_cast<TokenId>(id)});
      spec.merge_ranks.push_back(static_cast<uint32_t>(id));
    }
  }
}

}  // namespace millrace::model::internal
