#include "gateway/internal/api.h"

namespace millrace::gateway {
namespace {

constexpr Route kRoutes[] = {
    {"GET", "/", true, get_page},
    {"GET", "/health", true, get_health},
    {"GET", "/health/live", true, get_live},
    {"GET", "/health/ready", true, get_ready},
    {"GET", "/version", true, get_version},
    {"GET", "/metrics", true, get_metrics},
    {"GET", "/openapi.json", true, get_openapi},
    {"GET", "/v1/models", false, list_models},
    {"GET", "/v1/models/{model}", false, get_model},
    {"POST", "/v1/chat/completions", false, post_chat_completions},
    {"POST", "/v1/completions", false, post_completions},
    {"POST", "/tokenize", false, post_tokenize},
    {"POST", "/detokenize", false, post_detokenize},
};

bool matches(std::string_view pattern, std::string_view path) {
  const size_t brace = pattern.find("{");
  if (brace == pattern.npos) return pattern == path;
  return path.size() > brace && path.substr(0, brace) == pattern.substr(0, brace);
}

}  // namespace

std::span<const Route> routes() { return kRoutes; }

RouteMatch find_route(std::string_view method, std::string_view path) {
  RouteMatch found;
  for (const Route& route : kRoutes) {
    if (!matches(route.path, path)) continue;
    found.pattern = route.path;
    if (!found.allow.empty()) found.allow += ", ";
    found.allow += route.method;
    if (route.method == "GET") found.allow += ", HEAD";
    if (route.method == method || (method == "HEAD" && route.method == "GET")) found.route = &route;
  }
  if (!found.allow.empty()) found.allow += ", OPTIONS";
  return found;
}

}  // namespace millrace::gateway
