// Addresses of groups: "/path" or "unix:/path" is a unix socket, anything else "host:port".
#pragma once
#include <string>

#include "base/status.h"

namespace millrace::cluster {

struct GroupAddress {
  std::string grpc_target;  // what gRPC calls it
  std::string socket_path;  // empty: TCP
};

Expected<GroupAddress> parse_group_address(const std::string& address);

}  // namespace millrace::cluster
