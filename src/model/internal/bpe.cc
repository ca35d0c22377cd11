#include "model/internal/bpe.h"

#include <fmt/core.h>

#include <algorithm>
#include <array>
#include <bit>
#include <queue>

#include "base/hash.h"
#include "base/utf8.h"
#include "model/internal/pieces.h"

namespace millrace::model::internal {
namespace {

constexpr std::string_view kMetaspace = "\xE2\x96\x81";

struct Alphabet {
  std::array<uint16_t, 256> character{};
  std::array<int16_t, 0x144> byte{};
  Alphabet() {
    byte.fill(-1);
    uint16_t extra = 256;
    for (int b = 0; b < 256; ++b) {
      const bool printable = (b >= 0x21 && b <= 0x7E) || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE;
      const auto c = printable ? static_cast<uint16_t>(b) : extra++;
      character[static_cast<size_t>(b)] = c;
      byte[c] = static_cast<int16_t>(b);
    }
  }
};
const Alphabet& alphabet() {
  static const Alphabet instance;
  return instance;
}

uint64_t mix(uint64_t key) {
  key *= 0x9E3779B97F4A7C15ULL;
  return key ^ key >> 32;
}

// "<0x0A>" -> 10; -1 for anything else.
int byte_token(std::string_view text) {
  if (text.size() != 6 || !text.starts_with("<0x") || text[5] != '>') return -1;
  int value = 0;
  for (const char c : text.substr(3, 2)) {
    if (c >= '0' && c <= '9')
      value = value * 16 + (c - '0');
    else if (c >= 'A' && c <= 'F')
      value = value * 16 + (c - 'A' + 10);
    else
      return -1;
  }
  return value;
}

std::string spaces_for_metaspace(std::string_view text) {
  std::string out;
  for (size_t at = 0; at < text.size();) {
    if (text.substr(at, kMetaspace.size()) == kMetaspace) {
      out += ' ';
      at += kMetaspace.size();
    } else {
      out += text[at++];
    }
  }
  return out;
}

}  // namespace

uint32_t byte_to_character(uint8_t byte) { return alphabet().character[byte]; }

bool alphabet_to_bytes(std::string_view text, std::string& out) {
  const Alphabet& table = alphabet();
  for (size_t at = 0; at < text.size();) {
    const uint32_t c = next_code_point(text, at);
    if (c >= table.byte.size() || table.byte[c] < 0) return false;
    out += static_cast<char>(table.byte[c]);
  }
  return true;
}

std::string bytes_to_alphabet(std::string_view bytes) {
  std::string out;
  for (const char b : bytes) utf8_append(out, byte_to_character(static_cast<uint8_t>(b)));
  return out;
}

Vocabulary::Vocabulary(const TokenizerSpec& spec)
    : tokens_(&spec.tokens),
      byte_level_(spec.kind == TokenizerSpec::Kind::byte_bpe),
      mergeable_(spec.tokens.size(), true) {
  std::vector<bool> added(spec.tokens.size(), false);
  for (const AddedToken& token : spec.added) {
    added[static_cast<size_t>(token.id)] = true;
    if (token.special) mergeable_[static_cast<size_t>(token.id)] = false;
  }
  slots_.assign(std::bit_ceil(spec.tokens.size() * 2 + 2), -1);
  mask_ = slots_.size() - 1;
  offsets_.reserve(spec.tokens.size() + 1);
  arena_.reserve(spec.tokens.size() * 8);
  for (size_t id = 0; id < spec.tokens.size(); ++id) {
    const std::string& text = spec.tokens[id];
    const size_t begin = arena_.size();
    offsets_.push_back(static_cast<uint32_t>(begin));
    if (text.empty()) continue;
    if (added[id] && byte_level_) {
      arena_ += text;  // not in the alphabet, even where it looks so
    } else if (byte_level_) {
      if (!alphabet_to_bytes(text, arena_)) arena_.resize(begin), arena_ += text;
    } else if (const int byte = spec.byte_fallback ? byte_token(text) : -1; byte >= 0) {
      arena_ += static_cast<char>(byte);
    } else {
      arena_ += spaces_for_metaspace(text);
    }
    uint64_t slot = hash64(text) & mask_;
    // Of tokens with the same text the first is found; the others would only make the table long to search.
    while (slots_[slot] >= 0 && spec.tokens[static_cast<size_t>(slots_[slot])] != text)
      slot = (slot + 1) & mask_;
    if (slots_[slot] < 0) slots_[slot] = static_cast<int32_t>(id);
  }
  offsets_.push_back(static_cast<uint32_t>(arena_.size()));
}

TokenId Vocabulary::probe(std::string_view text) const {
  for (uint64_t slot = hash64(text) & mask_; slots_[slot] >= 0; slot = (slot + 1) & mask_)
    if ((*tokens_)[static_cast<size_t>(slots_[slot])] == text) return slots_[slot];
  return -1;
}

TokenId Vocabulary::find_text(std::string_view text) const { return text.empty() ? -1 : probe(text); }

TokenId Vocabulary::find_piece(std::string_view piece) const {
  if (piece.empty()) return -1;
  const TokenId id = byte_level_ ? probe(bytes_to_alphabet(piece)) : probe(piece);
  return id >= 0 && mergeable_[static_cast<size_t>(id)] ? id : -1;
}

Bpe::Bpe(const TokenizerSpec& spec, const Vocabulary& vocabulary) : spec_(spec), vocabulary_(vocabulary) {
  const bool byte_level = spec.kind == TokenizerSpec::Kind::byte_bpe;
  for (int b = 0; b < 256; ++b) {
    std::string name;
    if (byte_level)
      utf8_append(name, byte_to_character(static_cast<uint8_t>(b)));
    else
      name = fmt::format("<0x{:02X}>", b);
    byte_ids_[b] = vocabulary.find_text(name);
    bytes_complete_ = bytes_complete_ && byte_ids_[b] >= 0;
  }
  slots_.assign(std::bit_ceil(spec.merges.size() * 2 + 2), Slot{~0ULL, 0, -1});
  mask_ = slots_.size() - 1;
  may_cut_ = !byte_level && vocabulary.find_text(kMetaspace) >= 0;
  for (uint32_t rank = 0; rank < spec.merges.size(); ++rank) {
    const Merge& merge = spec.merges[rank];
    const uint64_t key =
        static_cast<uint64_t>(static_cast<uint32_t>(merge.left)) << 32 | static_cast<uint32_t>(merge.right);
    uint64_t slot = mix(key) & mask_;
    while (slots_[slot].key != ~0ULL && slots_[slot].key != key) slot = (slot + 1) & mask_;
    slots_[slot] = {key, spec.merge_ranks.empty() ? rank : spec.merge_ranks[rank],
                    merge.result};  // a pair given twice keeps its last rank, as in the package
    if (may_cut_) {
      const std::string& left = spec.tokens[static_cast<size_t>(merge.left)];
      const std::string& right = spec.tokens[static_cast<size_t>(merge.right)];
      if (right.starts_with(kMetaspace) && !left.ends_with(kMetaspace)) may_cut_ = false;
    }
  }
}

const Bpe::Slot* Bpe::find(TokenId left, TokenId right) const {
  const uint64_t key =
      static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
  for (uint64_t slot = mix(key) & mask_;; slot = (slot + 1) & mask_) {
    if (slots_[slot].key == key) return &slots_[slot];
    if (slots_[slot].key == ~0ULL) return nullptr;
  }
}

// One symbol for each character (byte_bpe: for each byte). Unknown ones follow the package to the letter,
// with an unknown token held back until the next known one, so that byte tokens may overtake it.
void Bpe::initial(std::string_view piece, std::vector<TokenId>& out) const {
  const bool byte_level = spec_.kind == TokenizerSpec::Kind::byte_bpe;
  if (byte_level && bytes_complete_) {
    for (const char b : piece) out.push_back(byte_ids_[static_cast<uint8_t>(b)]);
    return;
  }
  bool held = false;
  for (size_t at = 0; at < piece.size();) {
    const size_t length = byte_level ? 1 : std::min(sequence_length(piece[at]), piece.size() - at);
    const std::string_view character = piece.substr(at, length);
    at += length;
    const TokenId id =
        byte_level ? byte_ids_[static_cast<uint8_t>(character[0])] : vocabulary_.find_text(character);
    if (id >= 0) {
      if (held) out.push_back(spec_.unknown);
      held = false;
      out.push_back(id);
      continue;
    }
    if (!byte_level && spec_.byte_fallback) {
      const bool all =
          std::ranges::all_of(character, [&](char b) { return byte_ids_[static_cast<uint8_t>(b)] >= 0; });
      if (all) {
        for (const char b : character) out.push_back(byte_ids_[static_cast<uint8_t>(b)]);
        continue;
      }
    }
    if (spec_.unknown < 0) continue;  // no unknown token: the character is dropped
    if (held && !spec_.fuse_unknown) out.push_back(spec_.unknown);
    held = true;
  }
  if (held) out.push_back(spec_.unknown);
}

void Bpe::encode(std::string_view piece, std::vector<TokenId>& out) const {
  if (spec_.ignore_merges) {
    if (const TokenId id = vocabulary_.find_piece(piece); id >= 0) {
      out.push_back(id);
      return;
    }
  }
  const size_t begin = out.size();
  initial(piece, out);
  // Up to here a scan over all pairs for each merge is faster than a heap.
  constexpr size_t kShort = 48;
  if (out.size() - begin <= kShort)
    merge_short(out, begin);
  else
    merge_long(out, begin);
}

// Scans for the lowest rank, merges there, and asks the table again only for the two pairs that changed.
void Bpe::merge_short(std::vector<TokenId>& ids, size_t begin) const {
  struct Pair {
    uint32_t rank;
    TokenId result;
  };
  constexpr uint32_t kNone = ~0U;
  Pair pairs[64];
  TokenId* symbols = ids.data() + begin;
  size_t count = ids.size() - begin;
  const auto look = [&](size_t i) {
    const Slot* slot = find(symbols[i], symbols[i + 1]);
    pairs[i] = slot != nullptr ? Pair{slot->rank, slot->result} : Pair{kNone, -1};
  };
  for (size_t i = 0; i + 1 < count; ++i) look(i);
  while (count > 1) {
    size_t best = 0;
    for (size_t i = 1; i + 1 < count; ++i)
      if (pairs[i].rank < pairs[best].rank) best = i;
    if (pairs[best].rank == kNone) break;
    symbols[best] = pairs[best].result;
    std::copy(symbols + best + 2, symbols + count, symbols + best + 1);
    std::copy(pairs + best + 1, pairs + count - 1, pairs + best);
    --count;
    if (best > 0) look(best - 1);
    if (best + 1 < count) look(best);
  }
  ids.resize(begin + count);
}

void Bpe::merge_long(std::vector<TokenId>& ids, size_t begin) const {
  struct Candidate {
    uint32_t rank;
    int32_t position;
    TokenId result;
    bool operator>(const Candidate& other) const {
      return rank != other.rank ? rank > other.rank : position > other.position;
    }
  };
  const auto count = static_cast<int32_t>(ids.size() - begin);
  std::vector<Symbol> symbols(static_cast<size_t>(count));
  for (int32_t i = 0; i < count; ++i)
    symbols[static_cast<size_t>(i)] = {ids[begin + static_cast<size_t>(i)], i - 1,
                                       i + 1 < count ? i + 1 : -1};
  std::vector<Candidate> first;
  const auto candidate = [&](int32_t position, auto&& take) {
    const Symbol& left = symbols[static_cast<size_t>(position)];
    if (const Slot* slot = find(left.id, symbols[static_cast<size_t>(left.next)].id); slot != nullptr)
      take(Candidate{slot->rank, position, slot->result});
  };
  for (int32_t i = 0; i + 1 < count; ++i) candidate(i, [&](const Candidate& c) { first.push_back(c); });
  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> queue(std::greater<>{},
                                                                               std::move(first));
  while (!queue.empty()) {
    const Candidate top = queue.top();
    queue.pop();
    Symbol& left = symbols[static_cast<size_t>(top.position)];
    if (left.id < 0 || left.next < 0) continue;  // swallowed, or the last one
    Symbol& right = symbols[static_cast<size_t>(left.next)];
    const Slot* slot = find(left.id, right.id);
    if (slot == nullptr || slot->result != top.result) continue;  // what it was about has changed
    left.id = top.result;
    left.next = right.next;
    right.id = -1;
    if (left.next >= 0) symbols[static_cast<size_t>(left.next)].previous = top.position;
    if (left.previous >= 0) candidate(left.previous, [&](const Candidate& c) { queue.push(c); });
    if (left.next >= 0) candidate(top.position, [&](const Candidate& c) { queue.push(c); });
  }
  ids.resize(begin);
  for (const Symbol& symbol : symbols)
    if (symbol.id >= 0) ids.push_back(symbol.id);
}

}  // namespace millrace::model::internal
