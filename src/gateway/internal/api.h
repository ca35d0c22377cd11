// The routes and what they do. To add an endpoint: a function here, a line in the table of api.cc, an entry
// in openapi.json, a test (README.md walks through one).
#pragma once
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "gateway/generator.h"
#include "gateway/http_server.h"
#include "gateway/internal/http_message.h"
#include "gateway/internal/metrics.h"

namespace millrace::gateway {

struct Api {  // what endpoints may use; immutable once serving
  std::shared_ptr<const ServedModel> model;
  std::shared_ptr<Generator> generator;
  std::shared_ptr<Metrics> metrics;
  std::function<bool()> draining;
  double ping_interval_s = 5;
};

// An endpoint answers its exchange, now or later. Those with a body run on a worker thread, the others on the
// connection's thread (they must be quick).
using Endpoint = void (*)(const Api& api, const std::shared_ptr<Exchange>& exchange);

struct Route {
  std::string_view method;
  std::string_view path;  // a path, or a prefix that ends in "/{...}" for the rest of the path
  bool open;              // served without an API key
  Endpoint endpoint;
};
std::span<const Route> routes();

struct RouteMatch {
  const Route* route = nullptr;  // null: no such path, or not this method
  std::string_view pattern;      // the path's pattern, "" if there is no such path
  std::string allow;             // methods of the path, for Allow
};
RouteMatch find_route(std::string_view method, std::string_view path);

// info_endpoints.cc
void get_health(const Api&, const std::shared_ptr<Exchange>&);
void get_live(const Api&, const std::shared_ptr<Exchange>&);
void get_ready(const Api&, const std::shared_ptr<Exchange>&);
void get_version(const Api&, const std::shared_ptr<Exchange>&);
void get_metrics(const Api&, const std::shared_ptr<Exchange>&);
void get_openapi(const Api&, const std::shared_ptr<Exchange>&);
void get_page(const Api&, const std::shared_ptr<Exchange>&);
void list_models(const Api&, const std::shared_ptr<Exchange>&);
void get_model(const Api&, const std::shared_ptr<Exchange>&);
// generate_endpoints.cc
void post_chat_completions(const Api&, const std::shared_ptr<Exchange>&);
void post_completions(const Api&, const std::shared_ptr<Exchange>&);
void post_tokenize(const Api&, const std::shared_ptr<Exchange>&);
void post_detokenize(const Api&, const std::shared_ptr<Exchange>&);

}  // namespace millrace::gateway
