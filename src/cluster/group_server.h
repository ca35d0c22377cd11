// The group's side of the wire: serves one engine to gateways over a unix socket (or host:port), one stream a
// gateway.
//
// What the engine's step thread gives to its sink is handed to the session that asked; each session has a
// writer thread that sends whole steps, batched. A gateway that does not read makes its queue grow to
// `max_queued_bytes` and is then cut off: its requests are cancelled and their pages freed, and other
// sessions do not notice. An event that no message can hold is replaced by an error; its request goes on
// until the gateway cancels it. When a session ends, for whatever reason, its requests are cancelled.
//
// TCP addresses carry no encryption and no authentication yet: use them inside a trusted network only.
#pragma once
#include <filesystem>
#include <functional>
#include <memory>
#include <string>

#include "cluster/group_info.h"
#include "cluster/status_page.h"
#include "engine/engine.h"

namespace millrace::cluster {

struct GroupServerOptions {
  std::string address;  // "/path/to/socket" (at most 100 bytes), or "host:port"
  GroupId id;
  uint64_t model_fingerprint = 0;
  int max_sessions = 8;  // gateways at once; a ninth is refused
  // Per session, not yet sent. Above a message's limit: one large answer (a long prompt's log-probabilities)
  // does not mean that the gateway has stopped reading.
  size_t max_queued_bytes = 2 * kMaxMessageBytes;
  std::shared_ptr<StatusPage> status;  // null: none
};

using EngineFactory = std::function<Expected<std::unique_ptr<engine::Engine>>(engine::EventSink sink)>;

class GroupServer {
 public:
  // Makes the engine, binds the address (a stale socket file is replaced) and serves.
  static Expected<std::unique_ptr<GroupServer>> start(GroupServerOptions options,
                                                      const EngineFactory& make_engine);
  virtual ~GroupServer() = default;  // ends the sessions at once, then destroys the engine
  virtual const GroupInfo& info() const = 0;
  virtual size_t live_requests() const = 0;
};

struct GroupProcessOptions {
  std::filesystem::path packed_model;
  engine::EngineOptions engine;
  std::string address;
  GroupId id;
  std::filesystem::path status_page;  // empty: none
};

// The whole life of a group process: maps the model, makes the engine, serves until SIGTERM or SIGINT. Call
// it from main, before other threads exist (it blocks these signals). Returns the exit status: 0,
// kExitConfiguration when a restart cannot help (bad model or option; the reason is printed and left on the
// status page), 1 otherwise.
int run_group_process(const GroupProcessOptions& options);

}  // namespace millrace::cluster
