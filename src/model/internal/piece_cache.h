// Remembers the ids of short pieces, since text repeats its words. One cache a thread and tokenizer, so no
// lock; bounded: 1 MiB each, at most 4 a thread, a new piece overwrites the one in its slot.
#pragma once
#include <array>
#include <cstdint>
#include <cstring>
#include <span>
#include <string_view>
#include <vector>

#include "base/strong_id.h"

namespace millrace::model::internal {

class PieceCache {
 public:
  static constexpr size_t kMaxBytes = 32, kMaxIds = 7;
  // The calling thread's cache for the tokenizer with this serial number (never 0, never used twice).
  static PieceCache& of(uint64_t serial) {
    static thread_local std::array<PieceCache, 4> caches;
    static thread_local size_t victim = 0;
    for (PieceCache& cache : caches)
      if (cache.serial_ == serial) return cache;
    PieceCache& cache = caches[victim++ % caches.size()];
    cache.serial_ = serial;
    cache.entries_.assign(kEntries, Entry{});
    return cache;
  }

  struct alignas(64) Entry {
    char piece[kMaxBytes];
    TokenId ids[kMaxIds];
    uint8_t bytes, count;  // bytes 0: empty
  };
  static_assert(sizeof(Entry) == 64);

  struct Key {
    char piece[kMaxBytes];
    uint8_t bytes;
    Entry* entry;
  };
  // Only for pieces of 1 to kMaxBytes bytes.
  Key key(std::string_view piece) {
    Key key{};
    std::memcpy(key.piece, piece.data(), piece.size());
    key.bytes = static_cast<uint8_t>(piece.size());
    uint64_t w[4];
    std::memcpy(w, key.piece, sizeof(w));
    uint64_t h = (w[0] ^ 0x9E3779B97F4A7C15ULL) * 0xC2B2AE3D27D4EB4FULL;
    h = (h ^ h >> 29 ^ w[1]) * 0x9E3779B97F4A7C15ULL;
    h = (h ^ h >> 31 ^ w[2]) * 0xD6E8FEB86659FD93ULL;
    h = (h ^ h >> 30 ^ w[3]) * 0xC2B2AE3D27D4EB4FULL;
    key.entry = &entries_[h >> (64 - kEntryBits)];
    return key;
  }
  // The ids, or an empty span where the piece is not there (a piece without ids is not stored).
  std::span<const TokenId> find(const Key& key) const {
    const Entry& entry = *key.entry;
    if (entry.bytes != key.bytes || std::memcmp(entry.piece, key.piece, kMaxBytes) != 0) return {};
    return {entry.ids, entry.count};
  }
  void store(const Key& key, std::span<const TokenId> ids) {
    if (ids.empty() || ids.size() > kMaxIds) return;
    Entry& entry = *key.entry;
    std::memcpy(entry.piece, key.piece, kMaxBytes);
    std::memcpy(entry.ids, ids.data(), ids.size_bytes());
    entry.bytes = key.bytes;
    entry.count = static_cast<uint8_t>(ids.size());
  }

 private:
  static constexpr int kEntryBits = 14;
  static constexpr size_t kEntries = size_t{1} << kEntryBits;
  uint64_t serial_ = 0;
  std::vector<Entry> entries_;
};

}  // namespace millrace::model::internal
