#include "gateway/internal/api_error.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "gateway/internal/json_writer.h"

namespace millrace::gateway {
namespace {

constexpr double kRetryAfterMaxSeconds = 3600;  // a wait beyond an hour is a guess nobody should act on

std::string_view error_type(int status) {
  switch (status) {
    case 401:
      return "authentication_error";
    case 403:
      return "permission_error";
    case 429:
      return "rate_limit_error";
    case 503:
      return "service_unavailable_error";
    default:
      return status >= 500 ? "server_error" : "invalid_request_error";
  }
}

std::string_view default_code(int status) {
  switch (status) {
    case 400:
      return "invalid_value";
    case 401:
      return "invalid_api_key";
    case 403:
      return "permission_denied";
    case 404:
      return "not_found";
    case 409:
      return "conflict";
    case 429:
      return "rate_limit_exceeded";
    case 501:
      return "not_implemented";
    case 503:
      return "unavailable";
    case 504:
      return "timeout";
    default:
      return "internal_error";
  }
}

std::string body_text(int status, const std::string& message, const std::string& param,
                      std::string_view code) {
  JsonWriter w;
  w.begin_object().key("error").begin_object();
  w.key("message").string(message).key("type").string(error_type(status)).key("param");
  param.empty() ? w.null() : w.string(param);
  w.key("code").string(code).end_object().end_object();
  return w.take();
}

}  // namespace

int http_status(const Status& status) {
  switch (status.code) {
    case Code::ok:
      return 200;
    case Code::invalid_argument:
    case Code::out_of_range:
    case Code::failed_precondition:
      return 400;
    case Code::unauthenticated:
      return 401;
    case Code::permission_denied:
      return 403;
    case Code::not_found:
      return 404;
    case Code::already_exists:
      return 409;
    case Code::resource_exhausted:
      return 429;
    case Code::unimplemented:
      return 501;
    case Code::cancelled:  // by us (the client has gone if it was the client): a drain or a shutdown
    case Code::aborted:
    case Code::unavailable:
      return 503;
    case Code::deadline_exceeded:
      return 504;
    default:
      return 500;
  }
}

std::string error_body(const Status& status) {
  const int http = http_status(status);
  const std::string_view code = status.reason.empty() ? default_code(http) : std::string_view(status.reason);
  return body_text(http, status.message, status.param, code);
}

HttpResponse error_response(const Status& status) {
  HttpResponse response{.status = http_status(status), .body = error_body(status)};
  if (response.status == 429 || response.status == 503) {
    // Written so that a NaN gives 1.
    const double seconds =
        status.retry_after_s > 1 ? std::min(std::ceil(status.retry_after_s), kRetryAfterMaxSeconds) : 1.0;
    response.headers.emplace_back("Retry-After", fmt::format("{}", static_cast<int>(seconds)));
  }
  if (response.status == 401) response.headers.emplace_back("WWW-Authenticate", "Bearer");
  return response;
}

HttpResponse error_response(int http_status, std::string message, std::string code) {
  return {.status = http_status, .body = body_text(http_status, message, "", code)};
}

std::unexpected<Status> refuse(Code code, std::string message, std::string reason, std::string param) {
  return std::unexpected(Status{
      .code = code, .message = std::move(message), .reason = std::move(reason), .param = std::move(param)});
}

}  // namespace millrace::gateway
