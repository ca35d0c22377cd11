// The real Generator: journal, router and the connections to the DP groups.
//
// A request goes to the group where it is likely to start soonest: published load and prompt tokens that are
// not cached there yet, in one unit. When a group's connection drops, every request it had is placed again,
// on another group or on the same one when it is back, with the tokens already delivered; the client's stream
// goes on with the same bits. Each such resume is bounded: in number, in waiting time, and (a request that
// kills whoever runs it) in resumes without a new token. Over the bounds the client gets an `unavailable`
// error event.
//
// Thread-safe. Locks: one per request, one per group (numbers only), the prefix map's; none is held over the
// network.
#pragma once
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/units.h"
#include "cluster/group_info.h"
#include "gateway/generator.h"

namespace millrace::gateway {

struct DispatcherOptions {
  struct Group {
    GroupId id;
    std::string address;  // as cluster::GroupServerOptions::address
  };
  std::vector<Group> groups;       // 1 to PrefixMap::kMaxGroups
  uint64_t model_fingerprint = 0;  // 0: any (then the first group's, for all)
  size_t max_queued = 1024;        // requests beyond the connected groups' running places; above: refused
  size_t max_journal_bytes = 1 * kGiB;  // prompts and tokens of live requests; above: refused
  int max_resumes = 100;                // of one request, in its life
  int max_fruitless_resumes = 8;        // in a row without a new token: then it is probably what kills them
  double max_homeless_s = 120;          // waiting for a group, in its life
  // With work pending and no step finished for this long, a group is not ready. The longest step we mean to
  // allow, a full prefill chunk of a large model on few cores, takes seconds. The supervisor's patience
  // (cluster::SupervisorOptions::wedged_after_s) is longer: readiness goes first, then the process.
  double step_stalled_s = 15;
};

struct DispatcherStats {  // totals since start, but for the first two and the rate
  size_t live = 0, homeless = 0;
  uint64_t started = 0, finished = 0, cancelled = 0, failed = 0, resumes = 0;
  uint64_t refused_full = 0, refused_unavailable = 0;
  double tokens_per_s = 0;  // of all groups over the last seconds: what Retry-After is computed from
};

// A group is believed to work if it was heard within this (13 heartbeats), and steps advance
// (step_stalled_s).
inline constexpr double kHeartbeatStale_s = 2.0;
// While all groups are down (the supervisor restarts the only one), new requests wait instead of being
// refused, if one was up this recently.
inline constexpr double kDowntimeGrace_s = 10.0;

class Dispatcher : public Generator {
 public:
  static Expected<std::unique_ptr<Dispatcher>> create(DispatcherOptions options);
  // Ends live requests with an `unavailable` error event.
  ~Dispatcher() override = default;

  // From now on start() refuses (unavailable, "shutting down") and ready() is false; live requests go on.
  virtual void set_draining(bool draining) = 0;
  // Waits until ready(); false after timeout_s.
  virtual bool wait_ready(double timeout_s) const = 0;
  // Of the first group that ever connected: max_model_len and the like.
  virtual std::optional<cluster::GroupInfo> group_info() const = 0;
  virtual DispatcherStats stats() const = 0;
};

}  // namespace millrace::gateway
