#include "gateway/prefix_map.h"

#include <algorithm>
#include <span>

#include "base/hash.h"

namespace millrace::gateway {

PromptBlocks prompt_blocks(const engine::GenerateRequest& request) {
  PromptBlocks blocks;
  uint64_t hash = hash64(request.cache_salt, request.prompt.add_special ? 1 : 0);
  if (request.prompt.text.empty()) {
    const std::vector<TokenId>& tokens = request.prompt.tokens;
    blocks.estimated_tokens = static_cast<int64_t>(tokens.size());
    for (size_t i = 0; i + kBlockTokens <= tokens.size() && blocks.hashes.size() < kMaxPromptBlocks;
         i += kBlockTokens)
      blocks.hashes.push_back(hash = hash64(std::as_bytes(std::span(tokens).subspan(i, kBlockTokens)), hash));
    return blocks;
  }
  constexpr size_t kBlockBytes = kBlockTokens * kBytesPerToken;
  // Segment borders need no mark here: a collision between two ways of cutting the same text costs nothing
  // but a guess.
  std::string block;
  size_t bytes = 0;
  for (const engine::TextSegment& segment : request.prompt.text) {
    bytes += segment.text.size();
    std::string_view rest = segment.text;
    while (!rest.empty() && blocks.hashes.size() < kMaxPromptBlocks) {
      const size_t take = std::min(rest.size(), kBlockBytes - block.size());
      block.append(rest.substr(0, take));
      rest.remove_prefix(take);
      if (block.size() < kBlockBytes) continue;
      blocks.hashes.push_back(hash = hash64(block, hash));
      block.clear();
    }
  }
  blocks.estimated_tokens = static_cast<int64_t>(bytes) / kBytesPerToken + 1;
  return blocks;
}

std::vector<int> PrefixMap::match(const PromptBlocks& blocks, int groups) const {
  std::vector<int> matched(static_cast<size_t>(groups), 0);
  const std::lock_guard lock(mutex_);
  uint64_t still = ~uint64_t{0};
  for (const uint64_t hash : blocks.hashes) {
    const auto found = index_.find(hash);
    if (found == index_.end()) break;
    still &= found->second->groups;
    if (still == 0) break;
    for (int group = 0; group < groups; ++group)
      if ((still >> group & 1) != 0) ++matched[static_cast<size_t>(group)];
  }
  return matched;
}

void PrefixMap::record(const PromptBlocks& blocks, int group) {
  const uint64_t bit = uint64_t{1} << group;
  const std::lock_guard lock(mutex_);
  // From the last block to the first, so that a prefix outlives what hangs on it.
  for (auto hash = blocks.hashes.rbegin(); hash != blocks.hashes.rend(); ++hash) {
    const auto found = index_.find(*hash);
    if (found != index_.end()) {
      found->second->groups |= bit;
      nodes_.splice(nodes_.begin(), nodes_, found->second);
      continue;
    }
    nodes_.push_front({*hash, bit});
    index_.emplace(*hash, nodes_.begin());
  }
  while (nodes_.size() > max_entries_) {
    index_.erase(nodes_.back().hash);
    nodes_.pop_back();
  }
}

void PrefixMap::forget_group(int group) {
  const std::lock_guard lock(mutex_);
  for (auto node = nodes_.begin(); node != nodes_.end();) {
    node->groups &= ~(uint64_t{1} << group);
    if (node->groups != 0) {
      ++node;
      continue;
    }
    index_.erase(node->hash);
    node = nodes_.erase(node);
  }
}

size_t PrefixMap::size() const {
  const std::lock_guard lock(mutex_);
  return nodes_.size();
}

}  // namespace millrace::gateway
