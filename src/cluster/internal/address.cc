#include "cluster/internal/address.h"

#include <fmt/core.h>

#include <charconv>

namespace millrace::cluster {

Expected<GroupAddress> parse_group_address(const std::string& address) {
  std::string path = address;
  if (path.starts_with("unix:")) path.erase(0, 5);
  if (path.starts_with("/")) {
    constexpr size_t kMaxPath = 107;  // sun_path holds 108 bytes with the NUL
    if (path.size() > kMaxPath)
      return invalid(
          fmt::format("socket path {} has {} bytes, the system's limit is {}", path, path.size(), kMaxPath),
          "address");
    return GroupAddress{"unix:" + path, path};
  }
  const size_t colon = address.rfind(':');
  int port = 0;
  if (colon != std::string::npos) {
    const char* end = address.data() + address.size();
    const auto parsed = std::from_chars(address.data() + colon + 1, end, port);
    if (parsed.ec != std::errc() || parsed.ptr != end) port = 0;
  }
  if (colon == 0 || colon == std::string::npos || port <= 0 || port > 65535)
    return invalid(fmt::format("address \"{}\" is neither an absolute socket path nor host:port", address),
                   "address");
  return GroupAddress{"dns:///" + address, {}};
}

}  // namespace millrace::cluster
