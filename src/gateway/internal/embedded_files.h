// Files of this room that are compiled in (CMakeLists.txt makes their texts at build time).
#pragma once
#include <string_view>

namespace millrace::gateway {

extern const std::string_view kOpenApiJson;  // openapi.json
extern const std::string_view kChatPage;     // web/index.html, with its style and script put in

}  // namespace millrace::gateway
