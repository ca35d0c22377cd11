// The request journal: what must be known to carry a live request over from a dead group to another one.
//
// A reply is a pure function of (prompt, sampling and stop parameters, seed); its first n tokens with that
// give the rest, bit for bit. So the journal keeps the request as it came and, in `request.resumed`, every
// token that has been handed to the client's side. Text needs no journal: what text has been shown after n
// tokens follows from the n tokens, and the next group replays them silently, with what was held back still
// held back.
//
// It lives in the gateway's memory, beside the client's connection: both die together. Thread-safe; each
// entry has its own mutex, and the map is sharded, so that no lock is shared by all requests.
#pragma once
#include <array>
#include <atomic>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "engine/request.h"
#include "gateway/generator.h"

namespace millrace::gateway {

struct JournalEntry {
  explicit JournalEntry(engine::GenerateRequest r, Generator::Sink s, size_t accounted)
      : id(r.id), accounted_bytes(accounted), request(std::move(r)), sink(std::move(s)) {}

  enum class State { homeless, placed, done };

  const RequestId id;
  const size_t accounted_bytes;  // of the journal's budget

  // Held while an event is handed to the sink, so that cancel() can promise silence. Recursive: a sink may
  // cancel.
  std::recursive_mutex mutex;
  // Guarded by mutex:
  engine::GenerateRequest request;  // grows by resumed
  Generator::Sink sink;             // emptied when done
  State state = State::homeless;
  int group = -1;        // index of the group it is placed on
  int avoid_group = -1;  // refused or lost there just now: others first
  bool prompt_delivered = false;
  int resumes = 0;            // times it lost its group
  int fruitless_resumes = 0;  // of these, in a row without a new token
  size_t tokens_when_placed = 0;
  double homeless_since_s = 0;  // monotonic
  double homeless_total_s = 0;  // of earlier episodes
  double retry_not_before_s = 0;
};

class Journal {
 public:
  void add(std::shared_ptr<JournalEntry> entry);
  std::shared_ptr<JournalEntry> find(RequestId id) const;  // null: unknown or finished
  void remove(RequestId id);
  std::vector<std::shared_ptr<JournalEntry>> snapshot() const;
  size_t size() const { return size_.load(std::memory_order_relaxed); }
  size_t bytes() const { return bytes_.load(std::memory_order_relaxed); }

 private:
  static constexpr size_t kShards = 16;
  struct Shard {
    mutable std::mutex mutex;
    std::unordered_map<RequestId, std::shared_ptr<JournalEntry>> entries;
  };
  Shard& shard(RequestId id) { return shards_[id.value % kShards]; }
  const Shard& shard(RequestId id) const { return shards_[id.value % kShards]; }

  std::array<Shard, kShards> shards_;
  std::atomic<size_t> size_{0}, bytes_{0};
};

// What an entry for this request is charged: its text and tokens, its reply's tokens, and the bookkeeping.
size_t journal_bytes(const engine::GenerateRequest& request);

}  // namespace millrace::gateway
