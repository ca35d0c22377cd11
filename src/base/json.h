// JSON by Boost.JSON, behind a bounded parse with errors that say where. Include <boost/json.hpp> only in .cc files
// that build or walk documents: it is a heavy header.
#pragma once
#include <boost/json/fwd.hpp>
#include <cstddef>
#include <string>
#include <string_view>

#include "base/status.h"

namespace millrace {

namespace json = boost::json;

struct JsonLimits {
  size_t max_bytes = size_t{64} << 20;
  size_t max_depth = 64;
};

// Parses one document; trailing text, broken UTF-8 and depth above the limit are refused with the byte offset.
Expected<json::value> parse_json(std::string_view text, const JsonLimits& limits = {});

}  // namespace millrace
