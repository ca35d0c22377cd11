// The gateway's side of the wire: one connection to one DP group, kept up by itself.
//
// It connects, checks the hello, delivers events, and after a loss connects again with backoff. The callbacks
// come from this client's own threads, one at a time and in order: up, events..., down, up, ... None comes
// after the destructor has returned. They must not block, and must not destroy the client. submit() and
// cancel() may be called from any thread, from the callbacks too; they put the message in a bounded queue and
// return at once.
#pragma once
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "cluster/group_info.h"
#include "engine/request.h"

namespace millrace::cluster {

struct GroupClientOptions {
  std::string address;                   // as GroupServerOptions::address
  uint64_t model_fingerprint = 0;        // a group with another one is refused; 0: any
  double connect_timeout_s = 5;          // until the hello
  double backoff_initial_s = 0.02;       // after a loss; doubles up to the cap while connecting fails
  double backoff_cap_s = 0.5;            // a local socket costs nothing to try twice a second
  size_t max_queued_bytes = 128 * kMiB;  // submits not yet sent
};

class GroupClient {
 public:
  struct Callbacks {
    std::function<void(const GroupInfo& info)> up;
    // Events of one or more whole steps; empty for a heartbeat.
    std::function<void(std::vector<engine::GenerateEvent> events, const engine::GroupLoad& load)> events;
    // The connection was up and is lost: no event of a request submitted over it comes any more.
    std::function<void(const Status& why)> down;
  };

  static Expected<std::unique_ptr<GroupClient>> start(GroupClientOptions options, Callbacks callbacks);
  virtual ~GroupClient() = default;

  // False: not connected, or the queue is full; nothing was sent then. True: queued on the present
  // connection, so that either events or down() follow.
  virtual bool submit(const engine::GenerateRequest& request) = 0;
  virtual void cancel(RequestId id) = 0;
  virtual bool connected() const = 0;
  virtual Status last_error() const = 0;  // why it is not connected; ok if it never failed
};

}  // namespace millrace::cluster
