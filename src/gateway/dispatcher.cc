#include "gateway/dispatcher.h"

#include <fmt/core.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <thread>

#include "base/clock.h"
#include "base/log.h"
#include "cluster/group_client.h"
#include "gateway/boot_total.h"
#include "gateway/internal/post_batch.h"
#include "gateway/journal.h"
#include "gateway/prefix_map.h"
#include "gateway/retry_after.h"

namespace millrace::gateway {
namespace {

using engine::FinishReason;
using engine::GenerateEvent;
using engine::GenerateRequest;
using State = JournalEntry::State;
using EntryPtr = std::shared_ptr<JournalEntry>;

constexpr double kTickSeconds = 0.1;     // deadlines and rates; placing is woken at once
constexpr double kRefusedRetry_s = 0.2;  // before a resumed request knocks again where there was no room
// What a live request costs a newcomer, in prefill tokens: half of a middling reply of 512 tokens is still to
// come, and a decoded token in a batch costs about as much as a prefilled one.
constexpr double kLiveRequestTokens = 256;

// One group as the dispatcher sees it.
struct Slot {
  GroupId id;
  std::string address;
  std::unique_ptr<cluster::GroupClient> client;
  std::atomic<int> live{0};  // requests placed there

  mutable std::mutex mutex;  // guards all below
  bool connected = false;
  bool ever_connected = false;
  double last_up_s = 0;     // monotonic, while connected or when lost
  double heard_s = 0;       // last message
  double progressed_s = 0;  // last new step, or idle
  uint64_t boots_seen = 0;
  cluster::GroupInfo info;
  engine::GroupLoad load;
  bool load_known = false;    // of this process
  BootTotal generated;        // tokens, as far as they are in fresh_tokens
  uint64_t fresh_tokens = 0;  // generated since rates were measured last

  bool progressing(double now_s, double step_stalled_s) const {
    return connected && now_s - heard_s < kHeartbeatStale_s && now_s - progressed_s < step_stalled_s;
  }
};

struct Counters {
  std::atomic<uint64_t> started{0}, finished{0}, cancelled{0}, failed{0}, resumes{0}, refused_full{0},
      refused_unavailable{0};
};

class DispatcherImpl final : public Dispatcher {
 public:
  explicit DispatcherImpl(DispatcherOptions options) : options_(std::move(options)) {}

  ~DispatcherImpl() override {
    draining_.store(true);
    {
      const std::lock_guard lock(homeless_mutex_);
      stopping_ = true;
    }
    homeless_wake_.notify_all();
    if (placer_.joinable()) placer_.join();
    // First the requests, so that no sink can reach a client (by cancel) that is being destroyed.
    for (const EntryPtr& entry : journal_.snapshot())
      fail_request(*entry, {.code = Code::unavailable, .message = "the service is shutting down"});
    for (const auto& slot : slots_) slot->client.reset();
  }

  Expected<void> start_clients() {
    for (const DispatcherOptions::Group& group : options_.groups) {
      auto slot = std::make_unique<Slot>();
      slot->id = group.id;
      slot->address = group.address;
      slots_.push_back(std::move(slot));
    }
    for (size_t i = 0; i < slots_.size(); ++i) {
      const int index = static_cast<int>(i);
      cluster::GroupClient::Callbacks callbacks{
          .up = [this, index](const cluster::GroupInfo& info) { on_up(index, info); },
          .events = [this, index](
                        std::vector<GenerateEvent> events,
                        const engine::GroupLoad& load) { on_events(index, std::move(events), load); },
          .down = [this, index](const Status& why) { on_down(index, why); }};
      // The client pointer is used by other threads only after `connected` was seen under the slot's mutex.
      auto client = MR_TRY(cluster::GroupClient::start(
          {.address = slots_[i]->address, .model_fingerprint = options_.model_fingerprint},
          std::move(callbacks)));
      const std::lock_guard lock(slots_[i]->mutex);
      slots_[i]->client = std::move(client);
    }
    placer_ = std::thread([this] { place_loop(); });
    return {};
  }

  Expected<RequestId> start(GenerateRequest request, Sink sink) override {
    MR_TRY(admit(request));
    request.id = RequestId(next_id_.fetch_add(1));
    const size_t bytes = journal_bytes(request);
    const auto entry = std::make_shared<JournalEntry>(std::move(request), std::move(sink), bytes);
    journal_.add(entry);
    counters_.started.fetch_add(1);
    const std::lock_guard lock(entry->mutex);
    make_homeless(entry, monotonic_s());
    if (!place(entry, monotonic_s())) queue_homeless(entry);
    return entry->id;
  }

  void cancel(RequestId id) override {
    const EntryPtr entry = journal_.find(id);
    if (entry == nullptr) return;
    const std::lock_guard lock(entry->mutex);
    if (entry->state == State::done) return;
    if (entry->state == State::placed) slots_[static_cast<size_t>(entry->group)]->client->cancel(id);
    counters_.cancelled.fetch_add(1);
    end(*entry);
    journal_.remove(id);
  }

  std::vector<GroupStatus> groups() const override {
    std::vector<GroupStatus> all;
    const double now_s = monotonic_s();
    for (const auto& slot : slots_) {
      const std::lock_guard lock(slot->mutex);
      all.push_back(
          {.id = slot->id,
           .connected = slot->connected,
           .progressing = slot->progressing(now_s, options_.step_stalled_s),
           .restarts = std::max(slot->info.restarts, slot->boots_seen == 0 ? 0 : slot->boots_seen - 1),
           .boot_id = slot->info.boot_id,
           .load = slot->load});
    }
    return all;
  }

  bool ready() const override {
    if (draining_.load()) return false;
    const double now_s = monotonic_s();
    return std::any_of(slots_.begin(), slots_.end(), [&](const auto& slot) {
      const std::lock_guard lock(slot->mutex);
      return slot->progressing(now_s, options_.step_stalled_s);
    });
  }

  void set_draining(bool draining) override { draining_.store(draining); }

  bool wait_ready(double timeout_s) const override {
    const double deadline_s = monotonic_s() + timeout_s;
    while (!ready()) {
      if (monotonic_s() > deadline_s) return false;
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
    return true;
  }

  std::optional<cluster::GroupInfo> group_info() const override {
    for (const auto& slot : slots_) {
      const std::lock_guard lock(slot->mutex);
      if (slot->ever_connected) return slot->info;
    }
    return std::nullopt;
  }

  DispatcherStats stats() const override {
    DispatcherStats stats{.live = journal_.size(),
                          .started = counters_.started.load(),
                          .finished = counters_.finished.load(),
                          .cancelled = counters_.cancelled.load(),
                          .failed = counters_.failed.load(),
                          .resumes = counters_.resumes.load(),
                          .refused_full = counters_.refused_full.load(),
                          .refused_unavailable = counters_.refused_unavailable.load()};
    int placed = 0;
    for (const auto& slot : slots_) placed += slot->live.load();
    {
      const std::lock_guard lock(retry_mutex_);
      stats.tokens_per_s = retry_after_.tokens_per_s();
    }
    stats.homeless = stats.live > static_cast<size_t>(placed) ? stats.live - static_cast<size_t>(placed) : 0;
    return stats;
  }

 private:
  // ---- admission ----

  Expected<void> admit(const GenerateRequest& request) {
    const auto refuse = [](Code code, std::string message, double retry_after_s) {
      return std::unexpected(
          Status{.code = code, .message = std::move(message), .retry_after_s = retry_after_s});
    };
    if (draining_.load()) {
      counters_.refused_unavailable.fetch_add(1);
      return refuse(Code::unavailable, "the service is shutting down", 5);
    }
    const double now_s = monotonic_s();
    size_t places = 0;
    bool any_up_lately = false;
    for (const auto& slot : slots_) {
      const std::lock_guard lock(slot->mutex);
      if (slot->ever_connected && (slot->connected || now_s - slot->last_up_s < kDowntimeGrace_s)) {
        any_up_lately = true;
        places += static_cast<size_t>(slot->info.max_num_seqs);
      }
    }
    if (!any_up_lately) {
      counters_.refused_unavailable.fetch_add(1);
      return refuse(Code::unavailable, "no group is up to serve the model; it may be starting", 2);
    }
    if (journal_.size() >= places + options_.max_queued) {
      counters_.refused_full.fetch_add(1);
      return refuse(Code::resource_exhausted,
                    fmt::format("{} requests are running or queued, the limit is {}", journal_.size(),
                                places + options_.max_queued),
                    next_place_s(now_s));
    }
    const size_t bytes = journal_bytes(request);
    if (bytes > cluster::kMaxMessageBytes / 2)
      return invalid(
          fmt::format("the request has {} bytes, the limit is {}", bytes, cluster::kMaxMessageBytes / 2));
    if (journal_.bytes() + bytes > options_.max_journal_bytes) {
      counters_.refused_full.fetch_add(1);
      return refuse(Code::resource_exhausted,
                    fmt::format("live requests hold {} bytes, the limit is {}", journal_.bytes(),
                                options_.max_journal_bytes),
                    next_place_s(now_s));
    }
    return {};
  }

  double next_place_s(double now_s) {
    const std::lock_guard lock(retry_mutex_);
    return retry_after_.promise(now_s);
  }

  // ---- placing ----

  // The entry's mutex is held in all of these.
  void make_homeless(const EntryPtr& entry, double now_s) {
    entry->state = State::homeless;
    entry->group = -1;
    entry->homeless_since_s = now_s;
  }
  void queue_homeless(const EntryPtr& entry) {
    const std::lock_guard lock(homeless_mutex_);
    homeless_.push_back(entry);
    homeless_wake_.notify_all();
  }

  // Sends the entry to the best group that has room; false: none has.
  bool place(const EntryPtr& entry, double now_s) {
    // Before the prompt is hashed: under overload, all that wait come here again and again.
    if (!any_room()) return false;
    const PromptBlocks blocks = prompt_blocks(entry->request);
    for (const int group : ranked(blocks, entry->avoid_group, now_s)) {
      Slot& slot = *slots_[static_cast<size_t>(group)];
      // Ordered before submit: an event may come from the client's thread at once; it waits for the entry's
      // mutex.
      entry->state = State::placed;
      entry->group = group;
      entry->tokens_when_placed = entry->request.resumed.size();
      slot.live.fetch_add(1);
      if (slot.client->submit(entry->request)) {
        entry->homeless_total_s += now_s - entry->homeless_since_s;
        prefixes_.record(blocks, group);
        return true;
      }
      slot.live.fetch_sub(1);
      entry->state = State::homeless;
      entry->group = -1;
    }
    return false;
  }

  // Published load counts other gateways' requests too, ours knows what was sent a moment ago. With the
  // slot's mutex held, as below.
  static int busy(const Slot& slot) {
    return std::max(slot.live.load(), slot.load.running + slot.load.waiting);
  }
  static bool has_room(const Slot& slot) {
    return slot.connected && busy(slot) < slot.info.max_num_seqs + slot.info.max_waiting;
  }
  bool any_room() const {
    return std::any_of(slots_.begin(), slots_.end(), [](const auto& slot) {
      const std::lock_guard lock(slot->mutex);
      return has_room(*slot);
    });
  }

  // Connected groups with room, best first: those that progress before those that do not, then the least
  // cost.
  std::vector<int> ranked(const PromptBlocks& blocks, int avoid, double now_s) const {
    struct Candidate {
      bool last_resort;
      double cost;
      int live, group;
      auto key() const { return std::make_tuple(last_resort, cost, live, group); }
    };
    const std::vector<int> matched = prefixes_.match(blocks, static_cast<int>(slots_.size()));
    std::vector<Candidate> candidates;
    for (int group = 0; group < static_cast<int>(slots_.size()); ++group) {
      const Slot& slot = *slots_[static_cast<size_t>(group)];
      const std::lock_guard lock(slot.mutex);
      if (!has_room(slot)) continue;
      const double uncached = static_cast<double>(
          std::max<int64_t>(blocks.estimated_tokens - matched[static_cast<size_t>(group)] * kBlockTokens, 0));
      candidates.push_back({group == avoid || !slot.progressing(now_s, options_.step_stalled_s),
                            uncached + busy(slot) * kLiveRequestTokens, slot.live.load(), group});
    }
    std::sort(candidates.begin(), candidates.end(),
              [](const auto& a, const auto& b) { return a.key() < b.key(); });
    std::vector<int> order;
    for (const Candidate& candidate : candidates) order.push_back(candidate.group);
    return order;
  }

  // The placer's thread: finds groups for the homeless in the order they came, keeps deadlines and rates.
  void place_loop() {
    double next_tick_s = 0;
    while (true) {
      std::vector<EntryPtr> waiting;
      {
        std::unique_lock lock(homeless_mutex_);
        homeless_wake_.wait_for(lock, std::chrono::duration<double>(kTickSeconds),
                                [&] { return stopping_ || groups_changed_; });
        if (stopping_) return;
        groups_changed_ = false;
        waiting.swap(homeless_);
      }
      const double now_s = monotonic_s();
      if (now_s >= next_tick_s) {
        measure_rates(now_s);
        next_tick_s = now_s + kTickSeconds;
      }
      std::vector<EntryPtr> left;
      for (const EntryPtr& entry : waiting)
        if (!settle_homeless(entry, now_s)) left.push_back(entry);
      const std::lock_guard lock(homeless_mutex_);
      homeless_.insert(homeless_.begin(), left.begin(), left.end());
    }
  }

  // True: placed, failed or gone; false: it goes on waiting.
  bool settle_homeless(const EntryPtr& entry, double now_s) {
    const std::lock_guard lock(entry->mutex);
    if (entry->state != State::homeless) return true;
    const double homeless_s = entry->homeless_total_s + now_s - entry->homeless_since_s;
    if (homeless_s > options_.max_homeless_s) {
      fail_request(*entry,
                   {.code = Code::unavailable,
                    .message = fmt::format("no group could take the request within {:.0f} s", homeless_s),
                    .retry_after_s = 5});
      return true;
    }
    return now_s >= entry->retry_not_before_s && place(entry, now_s);
  }

  void measure_rates(double now_s) {
    uint64_t fresh = 0;
    for (const auto& slot : slots_) {
      const std::lock_guard lock(slot->mutex);
      fresh += std::exchange(slot->fresh_tokens, 0);
    }
    const std::lock_guard lock(retry_mutex_);
    retry_after_.observe(now_s, fresh);
  }

  // ---- news from the groups (each group's own thread) ----

  void on_up(int group, const cluster::GroupInfo& info) {
    Slot& slot = *slots_[static_cast<size_t>(group)];
    const double now_s = monotonic_s();
    {
      const std::lock_guard lock(slot.mutex);
      if (slot.boots_seen == 0 || slot.info.boot_id != info.boot_id) {
        ++slot.boots_seen;
        prefixes_.forget_group(group);
        slot.load = {};
        slot.load_known = false;
      }
      // A connection that was lost and found again is not a new process: its totals go on. What ran, it has
      // cancelled.
      slot.load.running = slot.load.waiting = 0;
      slot.info = info;
      slot.connected = slot.ever_connected = true;
      slot.heard_s = slot.progressed_s = slot.last_up_s = now_s;
    }
    log(LogLevel::info, "gateway", "group {} is up (pid {}, restarts {})", slot.id.value, info.pid,
        info.restarts);
    const std::lock_guard lock(homeless_mutex_);
    groups_changed_ = true;
    homeless_wake_.notify_all();
  }

  void on_down(int group, const Status& why) {
    Slot& slot = *slots_[static_cast<size_t>(group)];
    const double now_s = monotonic_s();
    {
      const std::lock_guard lock(slot.mutex);
      slot.connected = false;
      slot.last_up_s = now_s;
    }
    size_t lost = 0;
    for (const EntryPtr& entry : journal_.snapshot()) {
      const std::lock_guard lock(entry->mutex);
      if (entry->state != State::placed || entry->group != group) continue;
      ++lost;
      lose_group(entry, now_s, -1);
    }
    log(draining_.load() && lost == 0 ? LogLevel::info : LogLevel::warn, "gateway",
        "group {} is lost with {} requests, which go on elsewhere or when it is back: {}", slot.id.value,
        lost, why.message);
    const std::lock_guard lock(homeless_mutex_);
    groups_changed_ = true;
    homeless_wake_.notify_all();
  }

  // The entry's mutex is held.
  void lose_group(const EntryPtr& entry, double now_s, int avoid) {
    slots_[static_cast<size_t>(entry->group)]->live.fetch_sub(1);
    const bool fruitful = entry->request.resumed.size() > entry->tokens_when_placed;
    make_homeless(entry, now_s);
    entry->avoid_group = avoid;
    entry->fruitless_resumes = fruitful ? 0 : entry->fruitless_resumes + 1;
    ++entry->resumes;
    counters_.resumes.fetch_add(1);
    if (entry->resumes > options_.max_resumes || entry->fruitless_resumes > options_.max_fruitless_resumes) {
      fail_request(*entry,
                   {.code = Code::unavailable,
                    .message = fmt::format("the request lost its group {} times ({} in a row without a new "
                                           "token); it is given up",
                                           entry->resumes, entry->fruitless_resumes),
                    .retry_after_s = 5});
      return;
    }
    queue_homeless(entry);
  }

  void on_events(int group, std::vector<GenerateEvent> events, const engine::GroupLoad& load) {
    Slot& slot = *slots_[static_cast<size_t>(group)];
    const double now_s = monotonic_s();
    {
      const std::lock_guard lock(slot.mutex);
      const bool working = slot.live.load() > 0 || load.running + load.waiting > 0;
      if (load.steps != slot.load.steps || !working) slot.progressed_s = now_s;
      slot.heard_s = now_s;
      // What it had made before we first heard of it was not made just now.
      const uint64_t more = slot.generated.grown(slot.info.boot_id, load.generated_tokens);
      if (std::exchange(slot.load_known, true)) slot.fresh_tokens += more;
      slot.load = load;
    }
    bool freed = false;
    const PostBatch batch;
    for (GenerateEvent& event : events) {
      const EntryPtr entry = journal_.find(event.id);
      if (entry == nullptr) continue;  // cancelled meanwhile
      const std::lock_guard lock(entry->mutex);
      if (entry->state != State::placed || entry->group != group) continue;
      freed |= event.finish != FinishReason::none;
      apply(entry, std::move(event), now_s);
    }
    if (!freed) return;
    const std::lock_guard lock(homeless_mutex_);
    if (homeless_.empty()) return;
    groups_changed_ = true;
    homeless_wake_.notify_all();
  }

  // The entry's mutex is held: journal first, then the client.
  void apply(const EntryPtr& entry, GenerateEvent event, double now_s) {
    const bool unasked_cancel = event.finish == FinishReason::cancelled;
    const bool refused =
        event.finish == FinishReason::error &&
        (event.error.code == Code::resource_exhausted || event.error.code == Code::unavailable);
    // A refusal of a request that has begun, or that another group may take, is not the client's affair.
    if (unasked_cancel ||
        (refused &&
         (!entry->request.resumed.empty() || slots_.size() > 1 || event.error.code == Code::unavailable) &&
         entry->fruitless_resumes < options_.max_fruitless_resumes)) {
      entry->retry_not_before_s = now_s + kRefusedRetry_s;
      lose_group(entry, now_s, entry->group);
      return;
    }
    if (event.has_prompt && entry->prompt_delivered) {  // after a resume: the client has it
      event.has_prompt = false;
      event.prompt_tokens = event.cached_tokens = 0;
      event.queue_s = 0;
      event.prompt_ids.clear();
      event.prompt_logprobs.clear();
    }
    if (event.has_prompt) {
      event.queue_s += entry->homeless_total_s;
      entry->prompt_delivered = true;
      entry->request.prompt_logprobs = -1;  // not computed a second time
    }
    for (const engine::TokenOut& token : event.tokens) entry->request.resumed.push_back(token.token);
    const bool last = event.finish != FinishReason::none;
    if (!last) {
      const bool empty = !event.has_prompt && event.tokens.empty() && event.text.empty();
      if (!empty) entry->sink(std::move(event));
      return;
    }
    // The group may go on with what has ended for us: an answer that no message can hold.
    if (event.finish == FinishReason::error)
      slots_[static_cast<size_t>(entry->group)]->client->cancel(entry->id);
    (event.finish == FinishReason::error ? counters_.failed : counters_.finished).fetch_add(1);
    if (event.finish != FinishReason::error) {
      const std::lock_guard lock(retry_mutex_);
      retry_after_.finished(static_cast<int64_t>(entry->request.resumed.size()));
    }
    finish(*entry, std::move(event));
  }

  // From now on nothing is done for the entry; gives its sink for a last event. The entry's mutex is held.
  Sink end(JournalEntry& entry) {
    if (entry.state == State::placed) slots_[static_cast<size_t>(entry.group)]->live.fetch_sub(1);
    entry.state = State::done;
    return std::exchange(entry.sink, nullptr);
  }

  // The entry's mutex is held. cancel() finds the entry until its sink has returned, and so waits for it.
  void finish(JournalEntry& entry, GenerateEvent last) {
    const Sink sink = end(entry);
    sink(std::move(last));
    journal_.remove(entry.id);
  }

  void fail_request(JournalEntry& entry, Status why) {
    const std::lock_guard lock(entry.mutex);
    if (entry.state == State::done) return;
    counters_.failed.fetch_add(1);
    finish(entry, {.id = entry.id, .finish = FinishReason::error, .error = std::move(why)});
  }

  const DispatcherOptions options_;
  std::vector<std::unique_ptr<Slot>> slots_;  // constant after start_clients()
  Journal journal_;
  PrefixMap prefixes_;
  Counters counters_;
  std::atomic<bool> draining_{false};
  std::atomic<uint64_t> next_id_{1};

  mutable std::mutex retry_mutex_;
  RetryAfter retry_after_;  // guarded by retry_mutex_

  std::mutex homeless_mutex_;  // guards below; the last in order
  std::condition_variable homeless_wake_;
  std::vector<EntryPtr> homeless_;
  bool groups_changed_ = false, stopping_ = false;

  std::thread placer_;
};

}  // namespace

Expected<std::unique_ptr<Dispatcher>> Dispatcher::create(DispatcherOptions options) {
  if (options.groups.empty() || options.groups.size() > static_cast<size_t>(PrefixMap::kMaxGroups))
    return invalid(
        fmt::format("{} groups; from 1 to {} are possible", options.groups.size(), PrefixMap::kMaxGroups),
        "groups");
  auto dispatcher = std::make_unique<DispatcherImpl>(std::move(options));
  MR_TRY(dispatcher->start_clients());
  return dispatcher;
}

}  // namespace millrace::gateway
