// hub_driver resolve|pull|rm MODEL, or list: one JSON line with the result. pull prints progress lines to standard error;
// HUB_DRIVER_STOP_AFTER=BYTES stops it there.
#include <boost/json.hpp>
#include <cstdlib>
#include <iostream>

#include "hub/hub.h"

namespace {

using namespace millrace;
namespace json = boost::json;

json::object error_of(const Status& status) {
  return {{"error", status.message}, {"code", std::string(code_name(status.code))}};
}

json::object path_of(const Expected<std::filesystem::path>& path) {
  return path ? json::object{{"path", path->string()}} : error_of(path.error());
}

}  // namespace

int main(int argc, char** argv) {
  const std::string verb = argc > 1 ? argv[1] : "", model = argc > 2 ? argv[2] : "";
  json::object result;
  if (verb == "resolve") {
    result = path_of(hub::resolve(model));
  } else if (verb == "pull") {
    const char* stop = std::getenv("HUB_DRIVER_STOP_AFTER");
    const uint64_t stop_after = stop ? std::strtoull(stop, nullptr, 10) : UINT64_MAX;
    result = path_of(hub::pull(model, [&](const hub::PullProgress& p) {
      std::cerr << p.bytes_done << " " << p.bytes_total << " " << p.what << std::endl;
      return p.bytes_done < stop_after;
    }));
  } else if (verb == "rm") {
    const auto removed = hub::remove(model);
    if (!removed) result = error_of(removed.error());
  } else if (verb == "list") {
    json::array models;
    for (const auto& info : hub::list())
      models.push_back({{"name", info.name}, {"path", info.path.string()}, {"bytes", info.bytes}, {"packed", info.packed.size()}});
    result = {{"models", std::move(models)}};
  } else {
    return 2;
  }
  std::cout << json::serialize(result) << std::endl;
  return result.contains("error") ? 1 : 0;
}
