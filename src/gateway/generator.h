// The seam between the HTTP side of the gateway and what makes tokens. The real one (Dispatcher) keeps the
// request journal, picks a DP group, and carries a request over to another group when its own dies; tests put
// a fake here.
//
// Thread-safe. The sink is called from the generator's own threads, never after cancel() has returned or
// after an event with a finish; it must not block.
#pragma once
#include <functional>
#include <memory>
#include <vector>

#include "engine/request.h"

namespace millrace::gateway {

struct GroupStatus {
  GroupId id;
  bool connected = false;
  bool progressing = false;  // idle, or finishing steps: the truth behind /health/ready
  uint64_t restarts = 0;
  uint64_t boot_id = 0;    // of the process whose totals `load` has; 0: none was seen yet
  engine::GroupLoad load;  // last published
};

class Generator {
 public:
  using Sink = std::function<void(engine::GenerateEvent event)>;
  virtual ~Generator() = default;

  // Starts a request (its id is assigned here) or refuses it: resource_exhausted (queues full; retry_after_s
  // set) or unavailable (no group up, or draining).
  virtual Expected<RequestId> start(engine::GenerateRequest request, Sink sink) = 0;
  virtual void cancel(RequestId id) = 0;
  virtual std::vector<GroupStatus> groups() const = 0;
  virtual bool ready() const = 0;  // some group is connected and progressing, and we are not draining
};

}  // namespace millrace::gateway
