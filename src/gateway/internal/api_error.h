// The one place where a Status becomes HTTP: OpenAI's error object, its status code and Retry-After.
#pragma once
#include <string>

#include "base/status.h"
#include "gateway/internal/http_message.h"

namespace millrace::gateway {

int http_status(const Status& status);
// {"error":{"message","type","param","code"}}
std::string error_body(const Status& status);
HttpResponse error_response(const Status& status);
// For conditions that HTTP has a number for and Status has not (404, 405, 408, 413, 417, 431, 505...).
HttpResponse error_response(int http_status, std::string message, std::string code);

// A Status with a slug for programs, which becomes the error's `code`.
std::unexpected<Status> refuse(Code code, std::string message, std::string reason, std::string param = {});

}  // namespace millrace::gateway
