#include "gateway/internal/request_fields.h"

#include <fmt/format.h>

#include <boost/json.hpp>
#include <cmath>

#include "gateway/internal/api_error.h"

namespace millrace::gateway {
namespace {

std::unexpected<Status> wrong_type(const Fields& fields, std::string_view name, std::string_view wanted,
                                   const json::value& value) {
  return refuse(Code::invalid_argument,
                fmt::format("'{}' must be {}, not {}", fields.param(name), wanted, kind_name(value)),
                "invalid_type", fields.param(name));
}

}  // namespace

std::string_view kind_name(const json::value& value) {
  switch (value.kind()) {
    case json::kind::null:
      return "null";
    case json::kind::bool_:
      return "a boolean";
    case json::kind::int64:
    case json::kind::uint64:
    case json::kind::double_:
      return "a number";
    case json::kind::string:
      return "a string";
    case json::kind::array:
      return "an array";
    case json::kind::object:
      return "an object";
  }
  return "something else";
}

std::optional<int64_t> whole_number(const json::value& value, int64_t low, int64_t high) {
  int64_t n = 0;
  if (value.is_int64()) {
    n = value.get_int64();
  } else if (value.is_uint64()) {
    if (value.get_uint64() > static_cast<uint64_t>(INT64_MAX)) return std::nullopt;
    n = static_cast<int64_t>(value.get_uint64());
  } else if (value.is_double()) {
    const double d = value.get_double();
    if (!(std::fabs(d) <= 0x1p53) || d != std::floor(d))
      return std::nullopt;  // beyond 2^53 doubles skip integers
    n = static_cast<int64_t>(d);
  } else {
    return std::nullopt;
  }
  if (n < low || n > high) return std::nullopt;
  return n;
}

const json::value* Fields::find(std::string_view name) const {
  const json::value* value = object_.if_contains(json::string_view(name.data(), name.size()));
  return value && !value->is_null() ? value : nullptr;
}

Expected<bool> Fields::boolean(std::string_view name, bool otherwise) const {
  const json::value* value = find(name);
  if (!value) return otherwise;
  if (!value->is_bool()) return wrong_type(*this, name, "a boolean", *value);
  return value->get_bool();
}

Expected<double> Fields::number(std::string_view name, double otherwise, double low, double high) const {
  const json::value* value = find(name);
  if (!value) return otherwise;
  double d = 0;
  if (value->is_double())
    d = value->get_double();
  else if (value->is_int64())
    d = static_cast<double>(value->get_int64());
  else if (value->is_uint64())
    d = static_cast<double>(value->get_uint64());
  else
    return wrong_type(*this, name, "a number", *value);
  if (!(d >= low && d <= high))
    return invalid(fmt::format("'{}' is {}; it must be from {} to {}", param(name), d, low, high),
                   param(name));
  return d;
}

Expected<int64_t> Fields::integer(std::string_view name, int64_t otherwise, int64_t low, int64_t high) const {
  const json::value* value = find(name);
  if (!value) return otherwise;
  if (!value->is_number()) return wrong_type(*this, name, "an integer", *value);
  const std::optional<int64_t> n = whole_number(*value, low, high);
  if (!n)
    return invalid(fmt::format("'{}' is {}; it must be a whole number from {} to {}", param(name),
                               std::string(json::serialize(*value)), low, high),
                   param(name));
  return *n;
}

Expected<std::string> Fields::string(std::string_view name, std::string otherwise, size_t max_bytes) const {
  const json::value* value = find(name);
  if (!value) return otherwise;
  if (!value->is_string()) return wrong_type(*this, name, "a string", *value);
  const json::string& text = value->get_string();
  if (text.size() > max_bytes)
    return invalid(fmt::format("'{}' has {} bytes; the limit is {}", param(name), text.size(), max_bytes),
                   param(name));
  return std::string(text.data(), text.size());
}

Expected<const json::object*> Fields::object(std::string_view name) const {
  const json::value* value = find(name);
  if (!value) return nullptr;
  if (!value->is_object()) return wrong_type(*this, name, "an object", *value);
  return &value->get_object();
}

Expected<const json::array*> Fields::array(std::string_view name, size_t max_size) const {
  const json::value* value = find(name);
  if (!value) return nullptr;
  if (!value->is_array()) return wrong_type(*this, name, "an array", *value);
  const json::array& array = value->get_array();
  if (array.size() > max_size)
    return invalid(fmt::format("'{}' has {} entries; the limit is {}", param(name), array.size(), max_size),
                   param(name));
  return &array;
}

Expected<void> Fields::unsupported(std::string_view name, std::string_view nothing) const {
  const json::value* value = find(name);
  if (!value) return {};
  if (value->is_bool() && !value->get_bool()) return {};
  if (value->is_array() && value->get_array().empty()) return {};
  if (value->is_object() && value->get_object().empty()) return {};
  if (!nothing.empty() && value->is_string() && value->get_string() == nothing) return {};
  return refuse(Code::invalid_argument, fmt::format("'{}' is not supported by this server", param(name)),
                "unsupported_parameter", param(name));
}

}  // namespace millrace::gateway
