// Endpoints that only look: health, models, version, metrics, documents.
#include "gateway/internal/api.h"
#include "gateway/internal/api_error.h"
#include "gateway/internal/embedded_files.h"
#include "gateway/internal/json_writer.h"

namespace millrace::gateway {
namespace {

bool ready(const Api& api) { return !api.draining() && api.generator->ready(); }

void write_model(JsonWriter& w, const ServedModel& model, std::string_view name) {
  w.begin_object().key("id").string(name).key("object").string("model");
  w.key("created").integer(model.created_unix_s).key("owned_by").string("millrace");
  w.key("root").string(model.config.name.empty() ? name : std::string_view(model.config.name));
  w.key("parent").null().key("max_model_len").integer(model.max_model_len);
  w.key("service_tiers").begin_array().string("default").end_array().end_object();
}

}  // namespace

// vLLM's: the status is the answer.
void get_health(const Api& api, const std::shared_ptr<Exchange>& exchange) {
  exchange->respond({.status = ready(api) ? 200 : 503, .content_type = ""});
}

void get_live(const Api&, const std::shared_ptr<Exchange>& exchange) {
  exchange->respond({.body = R"({"live":true})"});
}

void get_ready(const Api& api, const std::shared_ptr<Exchange>& exchange) {
  const bool is_ready = ready(api);
  JsonWriter w;
  w.begin_object().key("ready").boolean(is_ready).key("draining").boolean(api.draining());
  w.key("groups").begin_array();
  for (const GroupStatus& group : api.generator->groups()) {
    w.begin_object().key("id").integer(group.id.value);
    w.key("connected").boolean(group.connected).key("progressing").boolean(group.progressing);
    w.key("restarts").integer(static_cast<int64_t>(group.restarts));
    w.key("steps").integer(static_cast<int64_t>(group.load.steps));
    w.key("last_step_age_ms").integer(group.load.last_step_age_ms);
    w.key("running").integer(group.load.running).key("waiting").integer(group.load.waiting);
    w.key("kv_pages_total").integer(group.load.kv_pages_total);
    w.key("kv_pages_free").integer(group.load.kv_pages_free).end_object();
  }
  w.end_array().end_object();
  exchange->respond({.status = is_ready ? 200 : 503, .body = w.take()});
}

void get_version(const Api&, const std::shared_ptr<Exchange>& exchange) {
  exchange->respond({.body = R"({"version":")" MILLRACE_VERSION R"("})"});
}

void get_metrics(const Api& api, const std::shared_ptr<Exchange>& exchange) {
  exchange->respond({.body = api.metrics->text(*api.generator),
                     .content_type = "text/plain; version=0.0.4; charset=utf-8"});
}

void get_openapi(const Api&, const std::shared_ptr<Exchange>& exchange) {
  exchange->respond({.body = std::string(kOpenApiJson)});
}

void get_page(const Api&, const std::shared_ptr<Exchange>& exchange) {
  exchange->respond(
      {.body = std::string(kChatPage),
       .content_type = "text/html; charset=utf-8",
       .headers = {{"Content-Security-Policy",
                    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
                    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
                    "frame-ancestors 'none'"},
                   {"X-Content-Type-Options", "nosniff"},
                   {"Referrer-Policy", "no-referrer"}}});
}

void list_models(const Api& api, const std::shared_ptr<Exchange>& exchange) {
  JsonWriter w;
  w.begin_object().key("object").string("list").key("data").begin_array();
  for (const std::string& name : api.model->names) write_model(w, *api.model, name);
  w.end_array().end_object();
  exchange->respond({.body = w.take()});
}

void get_model(const Api& api, const std::shared_ptr<Exchange>& exchange) {
  const std::string name = exchange->request().path.substr(std::string_view("/v1/models/").size());
  for (const std::string& served : api.model->names) {
    if (served != name) continue;
    JsonWriter w;
    write_model(w, *api.model, name);
    return exchange->respond({.body = w.take()});
  }
  exchange->respond(error_response(Status{.code = Code::not_found,
                                          .message = "the model '" + name + "' does not exist here",
                                          .reason = "model_not_found",
                                          .param = "model"}));
}

}  // namespace millrace::gateway
