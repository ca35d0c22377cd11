// GET over libcurl: text into memory, files with resume. Proxies, redirects (at most 5, http and https) and
// certificates as curl has them; the bearer token goes to the first host only.
#pragma once
#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>

#include "base/status.h"

namespace millrace::hub {

// Errors: unauthenticated and permission_denied (401, 403), not_found (404), unavailable (429, 5xx and broken
// connections: worth another try), invalid_argument (other answers), cancelled.
Expected<std::string> http_get(const std::string& url, const std::string& token, size_t max_bytes);

// Appends to `part` from its present size on until it has `size` bytes. A server that ignores the range
// starts the file anew. More bytes than `size` are refused. on_bytes(bytes in the file) false: cancelled.
Expected<void> http_get_file(const std::string& url, const std::string& token,
                             const std::filesystem::path& part, uint64_t size,
                             const std::function<bool(uint64_t)>& on_bytes);

std::string url_escape(std::string_view text);  // a path component

}  // namespace millrace::hub
