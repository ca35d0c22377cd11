// The KV pages of one DP group, and the prefix cache over them.
//
// A page holds kernels::kPageTokens tokens of every layer. It is in one of four states:
//   free        nobody uses it and it stands for no tokens
//   private     used by one sequence, not (yet) full and published
//   shared      published and used by one or more sequences
//   cached      published, used by nobody: kept in least-recently-used order until a page is needed
//
// Published pages form a radix tree whose edges are pages of tokens: a page's identity is (its parent page,
// its tokens), and for a first page (its salt, its tokens). The hash only finds candidates; parent, tokens
// and salt are compared. Whoever uses a page uses all its ancestors too, and releases them after it
// (release_all), so a parent is always used later than its children: plain LRU order evicts leaves first, and
// an identity never dangles.
//
// Metadata is one fixed record a page and one fixed bucket table: bounded by the pool. Not thread-safe: the
// step thread owns it (counters that others read are published by the engine).
#pragma once
#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/memory.h"
#include "base/status.h"
#include "base/strong_id.h"
#include "kernels/attention.h"

namespace millrace::engine {

using PageTokens = std::span<const TokenId, kernels::kPageTokens>;

class KvPool {
 public:
  // `pages` pages of page_bytes each in one zeroed mapping; memory is taken as pages are first written.
  static Expected<KvPool> create(int64_t pages, size_t page_bytes);

  std::byte* base() const { return memory_.data(); }
  const Buffer& memory() const { return memory_; }  // for populating it beside the step thread
  int64_t pages_total() const { return static_cast<int64_t>(pages_.size()); }
  int64_t pages_free() const {
    return static_cast<int64_t>(free_.size()) + cached_count_;
  }  // cached ones included
  int64_t pages_cached() const { return cached_count_; }

  // A private page with one user, evicting the least recently used cached page if none is free; -1 if all are
  // in use.
  int32_t allocate();
  // One user less. At zero a published page becomes cached, a private one free.
  void release(int32_t page);
  // Releases a sequence's pages, last first (see above), and clears the list.
  void release_all(std::vector<int32_t>& pages);

  // The longest chain of published pages that equals the head of `tokens`, at most max_pages long: appended
  // to `pages`, each with one more user. Returns how many.
  int64_t match(std::string_view salt, std::span<const TokenId> tokens, int64_t max_pages,
                std::vector<int32_t>& pages);
  // Makes a full private page findable below `parent` (published and used by the caller; -1: a first page,
  // under `salt`). If an equal page is published already, the caller's page is released and the other, with
  // one more user, is returned instead: its bytes are the same (design decision 1).
  int32_t publish(std::string_view salt, int32_t parent, PageTokens tokens, int32_t page);

  // Whether a published page also holds what the MTP layer made of its tokens; forgotten with the page.
  bool drafted(int32_t page) const { return at(page).drafted; }
  void set_drafted(int32_t page) { at(page).drafted = true; }

  int users(int32_t page) const { return at(page).users; }
  void check() const;  // walks everything and stops the process on a broken invariant; for tests

 private:
  struct Page {
    int32_t users = 0;
    int32_t children = 0;  // published pages below this one
    int32_t parent = -1;
    int32_t next_in_bucket = -1;
    int32_t lru_prev = -1, lru_next = -1;
    bool published = false, drafted = false;
    uint64_t hash = 0;
    std::array<TokenId, kernels::kPageTokens> tokens{};
    std::string salt;  // of a first page
  };

  const Page& at(int32_t page) const { return pages_[static_cast<size_t>(page)]; }
  Page& at(int32_t page) { return pages_[static_cast<size_t>(page)]; }
  uint64_t hash_of(std::string_view salt, int32_t parent, PageTokens tokens) const;
  int32_t find(std::string_view salt, int32_t parent, PageTokens tokens, uint64_t hash) const;
  void use(int32_t page);
  void unpublish(int32_t page);
  void lru_push_back(int32_t page);
  void lru_remove(int32_t page);
  int32_t& bucket(uint64_t hash) { return buckets_[hash & (buckets_.size() - 1)]; }

  Buffer memory_;
  std::vector<Page> pages_;
  std::vector<int32_t> free_;     // last in, first out: warm pages are reused first
  std::vector<int32_t> buckets_;  // first page of each bucket, -1: none; a power of two
  uint64_t hash_seed_ = 0;        // random: buckets cannot be aimed at from outside
  int32_t lru_first_ = -1, lru_last_ = -1;
  int64_t cached_count_ = 0;
};

}  // namespace millrace::engine
