// Which groups have lately computed which prompt prefixes: a bounded guess at their caches, for routing only.
// A wrong guess costs a prefill, never a wrong token. Thread-safe; never held over a call to a group.
#pragma once
#include <cstdint>
#include <list>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "engine/request.h"

namespace millrace::gateway {

// Chained hashes of a prompt's leading blocks: equal at i only if all blocks to i are equal (and the salt).
struct PromptBlocks {
  std::vector<uint64_t> hashes;
  int64_t estimated_tokens = 0;  // of the whole prompt
};
inline constexpr int64_t kBlockTokens = 64;
inline constexpr int64_t kBytesPerToken = 4;     // of text, a common mean; only ratios matter here
inline constexpr size_t kMaxPromptBlocks = 512;  // 32 Ki tokens: a longer match would not change the choice
PromptBlocks prompt_blocks(const engine::GenerateRequest& request);

class PrefixMap {
 public:
  static constexpr int kMaxGroups = 64;                                          // one bit each
  explicit PrefixMap(size_t max_entries = 65536) : max_entries_(max_entries) {}  // about 5 MiB

  // For each group, how many leading blocks of the prompt it has seen.
  std::vector<int> match(const PromptBlocks& blocks, int groups) const;
  void record(const PromptBlocks& blocks, int group);
  void forget_group(int group);  // it restarted: its cache is empty
  size_t size() const;

 private:
  struct Node {
    uint64_t hash;
    uint64_t groups;
  };
  const size_t max_entries_;
  mutable std::mutex mutex_;
  std::list<Node> nodes_;  // most recently recorded first
  std::unordered_map<uint64_t, std::list<Node>::iterator> index_;
};

}  // namespace millrace::gateway
