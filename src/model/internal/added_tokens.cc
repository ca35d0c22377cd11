#include "model/internal/added_tokens.h"

#include <utf8proc.h>

#include <algorithm>

#include "model/internal/unicode_tables.h"

namespace millrace::model::internal {
namespace {

uint32_t hash_edge(uint32_t key) { return key * 0x9E3779B1U >> 7; }

// \w of Rust's regex crate: alphabetic, mark, decimal digit, connector, joiner.
bool is_word(uint32_t c) {
  const uint8_t classes = UnicodeTables::get().classes(c);
  if ((classes & (kLetter | kMark)) != 0) return true;
  if ((classes & kNumber) != 0) {
    const utf8proc_category_t category = utf8proc_category(static_cast<utf8proc_int32_t>(c));
    return category != UTF8PROC_CATEGORY_NO;
  }
  if (c == '_' || c == 0x200C || c == 0x200D) return true;
  if ((classes & kPunctuation) != 0)
    return utf8proc_category(static_cast<utf8proc_int32_t>(c)) == UTF8PROC_CATEGORY_PC;
  // Circled and squared letters are symbols, yet alphabetic.
  return (c >= 0x24B6 && c <= 0x24E9) || (c >= 0x1F130 && c <= 0x1F149) || (c >= 0x1F150 && c <= 0x1F169) ||
         (c >= 0x1F170 && c <= 0x1F189);
}

size_t previous_start(std::string_view text, size_t at) {
  do --at;
  while (at > 0 && (static_cast<uint8_t>(text[at]) & 0xC0) == 0x80);
  return at;
}

uint32_t at_code_point(std::string_view text, size_t at) { return next_code_point(text, at); }

size_t spaces_before(std::string_view text, size_t at) {
  while (at > 0) {
    const size_t start = previous_start(text, at);
    if ((UnicodeTables::get().classes(at_code_point(text, start)) & kSpace) == 0) break;
    at = start;
  }
  return at;
}

size_t spaces_behind(std::string_view text, size_t at) {
  while (at < text.size()) {
    size_t next = at;
    if ((UnicodeTables::get().classes(next_code_point(text, next)) & kSpace) == 0) break;
    at = next;
  }
  return at;
}

}  // namespace

uint32_t AddedTokenMatcher::child(uint32_t node, uint8_t byte) const {
  const uint32_t key = node << 8 | byte, mask = static_cast<uint32_t>(edges_.size() - 1);
  for (uint32_t slot = hash_edge(key) & mask; edges_[slot].key != ~0U; slot = (slot + 1) & mask)
    if (edges_[slot].key == key) return edges_[slot].node;
  return 0;
}

void AddedTokenMatcher::insert_edge(uint32_t node, uint8_t byte, uint32_t target) {
  if (++edge_count_ * 2 > edges_.size()) {
    std::vector<Edge> old(edges_.size() * 2, Edge{~0U, 0});
    old.swap(edges_);
    const auto mask = static_cast<uint32_t>(edges_.size() - 1);
    for (const Edge& edge : old) {
      if (edge.key == ~0U) continue;
      uint32_t slot = hash_edge(edge.key) & mask;
      while (edges_[slot].key != ~0U) slot = (slot + 1) & mask;
      edges_[slot] = edge;
    }
  }
  const auto mask = static_cast<uint32_t>(edges_.size() - 1);
  const uint32_t key = node << 8 | byte;
  uint32_t slot = hash_edge(key) & mask;
  while (edges_[slot].key != ~0U) slot = (slot + 1) & mask;
  edges_[slot] = {key, target};
}

void AddedTokenMatcher::add(std::string_view text, const AddedToken* token) {
  uint32_t node = 0;
  for (const char b : text) {
    uint32_t next = child(node, static_cast<uint8_t>(b));
    if (next == 0) {
      next = static_cast<uint32_t>(token_of_node_.size());
      token_of_node_.push_back(-1);
      insert_edge(node, static_cast<uint8_t>(b), next);
    }
    node = next;
  }
  first_byte_[static_cast<uint8_t>(text[0])] = true;
  token_of_node_[node] = static_cast<int32_t>(tokens_.size());
  tokens_.push_back(token);
  all_special_ = all_special_ && token->special;
}

const AddedToken* AddedTokenMatcher::longest(std::string_view text, size_t at, size_t& end) const {
  const AddedToken* found = nullptr;
  uint32_t node = 0;
  for (size_t i = at; i < text.size(); ++i) {
    node = child(node, static_cast<uint8_t>(text[i]));
    if (node == 0) break;
    if (token_of_node_[node] >= 0) {
      found = tokens_[static_cast<size_t>(token_of_node_[node])];
      end = i + 1;
    }
  }
  return found;
}

bool AddedTokenMatcher::split(std::string_view text, bool parse_special,
                              FunctionRef<bool(const AddedToken*, size_t, size_t)> emit) const {
  if (tokens_.empty() || (all_special_ && !parse_special))
    return text.empty() || emit(nullptr, 0, text.size());
  size_t done = 0;
  for (size_t at = 0; at < text.size();) {
    if (!first_byte_[static_cast<uint8_t>(text[at])]) {
      ++at;
      continue;
    }
    size_t stop = at;
    const AddedToken* token = longest(text, at, stop);
    if (token == nullptr) {
      ++at;
      continue;
    }
    size_t start = at;
    at = stop;  // the search goes on behind the token's own text, whatever becomes of it
    if (token->special && !parse_special) continue;
    if (token->single_word) {
      const bool open = start == 0 || !is_word(at_code_point(text, previous_start(text, start)));
      const bool closed = stop == text.size() || !is_word(at_code_point(text, stop));
      if (!open || !closed) continue;
    }
    if (token->lstrip) start = std::max(spaces_before(text, start), done);
    if (token->rstrip) stop = spaces_behind(text, stop);
    if (done < start && !emit(nullptr, done, start)) return false;
    if (!emit(token, start, stop)) return false;
    done = stop;
  }
  return done >= text.size() || emit(nullptr, done, text.size());
}

}  // namespace millrace::model::internal
