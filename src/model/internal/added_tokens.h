// Finds added tokens in text: at each place the longest one, left to right, as an Aho-Corasick automaton with
// leftmost-longest matching would.
#pragma once
#include <array>
#include <cstdint>
#include <string_view>
#include <vector>

#include "model/internal/pieces.h"
#include "model/tokenizer.h"

namespace millrace::model::internal {

class AddedTokenMatcher {
 public:
  // Pairs of the text to look for and the token; texts are not empty, tokens outlive the matcher.
  void add(std::string_view text, const AddedToken* token);
  bool empty() const { return tokens_.empty(); }
  bool all_special() const { return all_special_; }

  // Calls emit(token, begin, end) for tokens and emit(nullptr, begin, end) for the text between; false stops.
  // Without parse_special, special tokens are found and stepped over, but remain text.
  bool split(std::string_view text, bool parse_special,
             FunctionRef<bool(const AddedToken*, size_t, size_t)> emit) const;

 private:
  struct Edge {
    uint32_t key;  // node << 8 | byte; all ones: empty
    uint32_t node;
  };
  uint32_t child(uint32_t node, uint8_t byte) const;  // 0: none
  void insert_edge(uint32_t node, uint8_t byte, uint32_t target);
  const AddedToken* longest(std::string_view text, size_t at, size_t& end) const;

  std::vector<const AddedToken*> tokens_;
  std::vector<int32_t> token_of_node_{-1};
  std::vector<Edge> edges_{16, Edge{~0U, 0}};
  size_t edge_count_ = 0;
  std::array<bool, 256> first_byte_{};
  bool all_special_ = true;
};

}  // namespace millrace::model::internal
