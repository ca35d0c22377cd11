// Byte-pair merging: from a piece to token ids, by a table of merges in rank order.
#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "model/tokenizer.h"

namespace millrace::model::internal {

// Vocabulary entries as bytes, and a hash from bytes to id. Immutable after building; thread-safe.
class Vocabulary {
 public:
  explicit Vocabulary(const TokenizerSpec& spec);
  // What the token stands for in decoded text.
  std::string_view bytes(TokenId id) const {
    if (id < 0 || static_cast<size_t>(id) + 1 >= offsets_.size()) return {};
    const auto i = static_cast<size_t>(id);
    return std::string_view(arena_).substr(offsets_[i], offsets_[i + 1] - offsets_[i]);
  }
  TokenId find_text(std::string_view text) const;  // the entry as the spec writes it
  TokenId find_piece(
      std::string_view piece) const;  // a token that merging may use, by its bytes (byte_bpe) or text
  bool is_mergeable(TokenId id) const { return mergeable_[static_cast<size_t>(id)]; }

 private:
  TokenId probe(std::string_view text) const;
  const std::vector<std::string>* tokens_;
  bool byte_level_;
  std::string arena_;
  std::vector<uint32_t> offsets_;
  std::vector<int32_t> slots_;  // open addressing over the entries' text; -1 empty
  uint64_t mask_ = 0;
  std::vector<bool> mergeable_;  // not a special token
};

class Bpe {
 public:
  Bpe(const TokenizerSpec& spec, const Vocabulary& vocabulary);
  // Appends the ids of a piece: bytes of UTF-8 text for byte_bpe, text with U+2581 for sentencepiece_bpe.
  // Time is O(n log n) in the piece's length. Thread-safe.
  void encode(std::string_view piece, std::vector<TokenId>& out) const;
  // sentencepiece_bpe: true if no merge joins a character and a U+2581 behind it, so that text may be cut
  // there.
  bool may_cut_before_metaspace() const { return may_cut_; }

 private:
  struct Symbol {
    TokenId id;
    int32_t previous, next;  // positions; -1 at the ends
  };
  struct Slot {
    uint64_t key;  // left << 32 | right; all ones: empty
    uint32_t rank;
    TokenId result;
  };
  const Slot* find(TokenId left, TokenId right) const;
  void initial(std::string_view piece, std::vector<TokenId>& out) const;
  void merge_short(std::vector<TokenId>& ids, size_t begin) const;
  void merge_long(std::vector<TokenId>& ids, size_t begin) const;

  const TokenizerSpec& spec_;
  const Vocabulary& vocabulary_;
  std::vector<Slot> slots_;
  uint64_t mask_ = 0;
  TokenId byte_ids_[256];  // byte_bpe: the byte's token; sentencepiece_bpe: "<0xNN>"
  bool bytes_complete_ = true;
  bool may_cut_ = false;
};

// GPT-2's alphabet, which gives each byte a printable character.
uint32_t byte_to_character(uint8_t byte);
// The bytes a vocabulary entry stands for; false if it has a character outside the alphabet.
bool alphabet_to_bytes(std::string_view text, std::string& out);
std::string bytes_to_alphabet(std::string_view bytes);

}  // namespace millrace::model::internal
