#include "base/json.h"

#include <fmt/core.h>

#include <boost/json.hpp>

namespace millrace {

Expected<json::value> parse_json(std::string_view text, const JsonLimits& limits) {
  if (text.size() > limits.max_bytes)
    return invalid(fmt::format("JSON of {} bytes is over the limit of {}", text.size(), limits.max_bytes));
  json::parse_options options;
  options.max_depth = limits.max_depth;
  json::stream_parser parser({}, options);
  json::error_code error;
  const size_t used = parser.write_some(text.data(), text.size(), error);
  if (!error && used < text.size()) return invalid(fmt::format("extra text after the JSON value at byte {}", used));
  if (!error) parser.finish(error);
  if (error) return invalid(fmt::format("invalid JSON at byte {}: {}", used, error.message()));
  return parser.release();
}

}  // namespace millrace
