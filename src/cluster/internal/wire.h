// Between the engine's structs and the wire's messages. What comes from the wire is checked: a field that no
// correct peer sends gives an error that names it, and the session ends.
#pragma once
#include <group.pb.h>

#include "cluster/group_info.h"
#include "engine/request.h"

namespace millrace::cluster {

void to_wire(const engine::GenerateRequest& request, wire::Submit* out);
Expected<engine::GenerateRequest> from_wire(const wire::Submit& in);

void to_wire(engine::GenerateEvent&& event, wire::Event* out);
Expected<engine::GenerateEvent> from_wire(wire::Event&& in);

void to_wire(const engine::GroupLoad& load, wire::Load* out);
engine::GroupLoad from_wire(const wire::Load& in);

void to_wire(const GroupInfo& info, wire::Hello* out);
Expected<GroupInfo> from_wire(const wire::Hello& in);

// An upper estimate of the event's size on the wire and in a queue, without encoding it.
size_t estimated_bytes(const engine::GenerateEvent& event);

}  // namespace millrace::cluster
