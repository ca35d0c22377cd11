#include "gateway/journal.h"

#include <algorithm>

namespace millrace::gateway {

void Journal::add(std::shared_ptr<JournalEntry> entry) {
  size_.fetch_add(1, std::memory_order_relaxed);
  bytes_.fetch_add(entry->accounted_bytes, std::memory_order_relaxed);
  Shard& place = shard(entry->id);
  const std::lock_guard lock(place.mutex);
  const RequestId id = entry->id;
  place.entries.emplace(id, std::move(entry));
}

std::shared_ptr<JournalEntry> Journal::find(RequestId id) const {
  const Shard& place = shard(id);
  const std::lock_guard lock(place.mutex);
  const auto found = place.entries.find(id);
  return found == place.entries.end() ? nullptr : found->second;
}

void Journal::remove(RequestId id) {
  Shard& place = shard(id);
  std::shared_ptr<JournalEntry> entry;  // destroyed after the lock is released
  {
    const std::lock_guard lock(place.mutex);
    const auto found = place.entries.find(id);
    if (found == place.entries.end()) return;
    entry = std::move(found->second);
    place.entries.erase(found);
  }
  size_.fetch_sub(1, std::memory_order_relaxed);
  bytes_.fetch_sub(entry->accounted_bytes, std::memory_order_relaxed);
}

std::vector<std::shared_ptr<JournalEntry>> Journal::snapshot() const {
  std::vector<std::shared_ptr<JournalEntry>> entries;
  for (const Shard& place : shards_) {
    const std::lock_guard lock(place.mutex);
    for (const auto& [id, entry] : place.entries) entries.push_back(entry);
  }
  std::sort(entries.begin(), entries.end(), [](const auto& a, const auto& b) { return a->id < b->id; });
  return entries;
}

size_t journal_bytes(const engine::GenerateRequest& request) {
  constexpr size_t kBookkeeping = 1024;   // the entry, its map node, the sink's captures
  constexpr int64_t kReplyTokens = 4096;  // longer replies exist, but few reach their max_tokens
  size_t bytes = kBookkeeping + request.prompt.tokens.size() * sizeof(TokenId) + request.cache_salt.size() +
                 request.sampling.logit_bias.size() * 8;
  for (const engine::TextSegment& segment : request.prompt.text) bytes += segment.text.size();
  return bytes +
         static_cast<size_t>(std::clamp<int64_t>(request.stop.max_tokens, 0, kReplyTokens)) * sizeof(TokenId);
}

}  // namespace millrace::gateway
