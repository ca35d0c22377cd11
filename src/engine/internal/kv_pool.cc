#include "engine/internal/kv_pool.h"

#include <fmt/core.h>

#include <algorithm>
#include <bit>
#include <limits>

#include "base/hash.h"
#include "base/random.h"

namespace millrace::engine {

Expected<KvPool> KvPool::create(int64_t pages, size_t page_bytes) {
  if (pages < 1 || pages > std::numeric_limits<int32_t>::max() / 4)
    return fail(Code::invalid_argument,
                fmt::format("a KV pool of {} pages of {} bytes is not possible", pages, page_bytes));
  KvPool pool;
  pool.memory_ = MR_TRY(Buffer::allocate(static_cast<size_t>(pages) * page_bytes));
  pool.pages_.resize(static_cast<size_t>(pages));
  pool.free_.reserve(static_cast<size_t>(pages));
  for (int64_t page = pages - 1; page >= 0; --page) pool.free_.push_back(static_cast<int32_t>(page));
  pool.buckets_.assign(std::bit_ceil(static_cast<size_t>(pages) * 2), -1);
  pool.hash_seed_ = random_seed();
  return pool;
}

int32_t KvPool::allocate() {
  int32_t page = -1;
  if (!free_.empty()) {
    page = free_.back();
    free_.pop_back();
  } else if (lru_first_ >= 0) {
    page = lru_first_;
    lru_remove(page);
    unpublish(page);
  } else {
    return -1;
  }
  at(page).users = 1;
  return page;
}

void KvPool::release(int32_t page) {
  Page& record = at(page);
  MR_CHECK(record.users > 0, fmt::format("KV page {} released with no user", page));
  if (--record.users > 0) return;
  if (record.published) {
    lru_push_back(page);
  } else {
    free_.push_back(page);
  }
}

void KvPool::release_all(std::vector<int32_t>& pages) {
  for (auto page = pages.rbegin(); page != pages.rend(); ++page) release(*page);
  pages.clear();
}

int64_t KvPool::match(std::string_view salt, std::span<const TokenId> tokens, int64_t max_pages,
                      std::vector<int32_t>& pages) {
  int64_t matched = 0;
  int32_t parent = -1;
  while (matched < max_pages && (matched + 1) * kernels::kPageTokens <= static_cast<int64_t>(tokens.size())) {
    const PageTokens page_tokens =
        tokens.subspan(static_cast<size_t>(matched) * kernels::kPageTokens).first<kernels::kPageTokens>();
    const int32_t page = find(salt, parent, page_tokens, hash_of(salt, parent, page_tokens));
    if (page < 0) break;
    use(page);
    pages.push_back(page);
    parent = page;
    ++matched;
  }
  return matched;
}

int32_t KvPool::publish(std::string_view salt, int32_t parent, PageTokens tokens, int32_t page) {
  const uint64_t hash = hash_of(salt, parent, tokens);
  if (const int32_t equal = find(salt, parent, tokens, hash); equal >= 0) {
    use(equal);
    release(page);
    return equal;
  }
  Page& record = at(page);
  MR_CHECK(!record.published && record.users == 1, fmt::format("KV page {} published twice", page));
  record.published = true;
  record.hash = hash;
  record.parent = parent;
  std::ranges::copy(tokens, record.tokens.begin());
  if (parent < 0) {
    record.salt = salt;
  } else {
    ++at(parent).children;
  }
  record.next_in_bucket = bucket(hash);
  bucket(hash) = page;
  return page;
}

uint64_t KvPool::hash_of(std::string_view salt, int32_t parent, PageTokens tokens) const {
  const uint64_t seed =
      parent < 0 ? hash64(salt, hash_seed_) : hash_seed_ + static_cast<uint64_t>(parent) + 1;
  return hash64(std::as_bytes(tokens), seed);
}

int32_t KvPool::find(std::string_view salt, int32_t parent, PageTokens tokens, uint64_t hash) const {
  for (int32_t page = buckets_[hash & (buckets_.size() - 1)]; page >= 0; page = at(page).next_in_bucket) {
    const Page& record = at(page);
    if (record.hash == hash && record.parent == parent && std::ranges::equal(record.tokens, tokens) &&
        (parent >= 0 || record.salt == salt))
      return page;
  }
  return -1;
}

void KvPool::use(int32_t page) {
  if (at(page).users++ == 0) lru_remove(page);
}

void KvPool::unpublish(int32_t page) {
  Page& record = at(page);
  MR_CHECK(record.children == 0,
           fmt::format("KV page {} evicted before the {} below it", page, record.children));
  int32_t* link = &bucket(record.hash);
  while (*link != page) link = &at(*link).next_in_bucket;
  *link = record.next_in_bucket;
  if (record.parent >= 0) --at(record.parent).children;
  record.published = record.drafted = false;
  record.parent = -1;
  record.next_in_bucket = -1;
  record.salt.clear();
}

void KvPool::lru_push_back(int32_t page) {
  Page& record = at(page);
  record.lru_prev = lru_last_;
  record.lru_next = -1;
  (lru_last_ >= 0 ? at(lru_last_).lru_next : lru_first_) = page;
  lru_last_ = page;
  ++cached_count_;
}

void KvPool::lru_remove(int32_t page) {
  Page& record = at(page);
  (record.lru_prev >= 0 ? at(record.lru_prev).lru_next : lru_first_) = record.lru_next;
  (record.lru_next >= 0 ? at(record.lru_next).lru_prev : lru_last_) = record.lru_prev;
  record.lru_prev = record.lru_next = -1;
  --cached_count_;
}

void KvPool::check() const {
  int64_t in_use = 0, unused_published = 0, in_lru = 0;
  for (const Page& page : pages_) {
    MR_CHECK(page.users >= 0, "negative users");
    in_use += page.users > 0;
    unused_published += page.published && page.users == 0;
    if (page.published && page.parent >= 0) {
      MR_CHECK(at(page.parent).published, "a published page below an unpublished one");
      MR_CHECK(page.users == 0 || at(page.parent).users > 0, "a used page below an unused one");
    }
  }
  for (int32_t page = lru_first_; page >= 0; page = at(page).lru_next) ++in_lru;
  MR_CHECK(in_lru == cached_count_ && unused_published == cached_count_,
           "the LRU list and the pages disagree");
  MR_CHECK(in_use + pages_free() == pages_total(), "pages leaked");
}

}  // namespace millrace::engine
