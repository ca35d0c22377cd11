// Typed reads of a JSON object's fields, with errors that name the key, what was found and what was expected.
// An absent key and null are the same. Include in .cc files only.
#pragma once
#include <fmt/core.h>

#include <boost/json.hpp>
#include <charconv>
#include <cmath>
#include <optional>
#include <string>
#include <string_view>

#include "base/status.h"

namespace millrace::model {

// The field, or null if it is absent or JSON null.
inline const boost::json::value* field_of(const boost::json::object& object, std::string_view key) {
  const boost::json::value* value = object.if_contains(key);
  return value == nullptr || value->is_null() ? nullptr : value;
}

inline std::optional<int64_t> integer_of(const boost::json::value& value) {
  if (value.is_int64()) return value.get_int64();
  if (value.is_uint64()) return std::nullopt;  // Boost.JSON keeps what fits as int64, so this is above 2^63
  if (value.is_double()) {                     // 1e6 for 1000000
    const double number = value.get_double();
    if (std::trunc(number) == number && std::abs(number) < 0x1p53) return static_cast<int64_t>(number);
  }
  return std::nullopt;
}

inline Expected<int64_t> read_integer(const boost::json::object& object, std::string_view key,
                                      std::optional<int64_t> fallback = std::nullopt) {
  const boost::json::value* value = field_of(object, key);
  if (value == nullptr) {
    if (fallback) return *fallback;
    return invalid(fmt::format("\"{}\" is missing", key), std::string(key));
  }
  const auto integer = integer_of(*value);
  if (!integer)
    return invalid(
        fmt::format("\"{}\" is {}, not an integer", key, boost::json::serialize(*value).substr(0, 80)),
        std::string(key));
  return *integer;
}

// An integer that fits an int and is not negative; ModelConfig::validate knows the tighter limits.
inline Expected<int> read_size(const boost::json::object& object, std::string_view key,
                               std::optional<int64_t> fallback = std::nullopt) {
  const int64_t value = MR_TRY(read_integer(object, key, fallback));
  if (value < 0 || value > INT32_MAX)
    return invalid(fmt::format("\"{}\" is {}, out of range", key, value), std::string(key));
  return static_cast<int>(value);
}

inline Expected<double> read_number(const boost::json::object& object, std::string_view key,
                                    std::optional<double> fallback = std::nullopt) {
  const boost::json::value* value = field_of(object, key);
  if (value == nullptr) {
    if (fallback) return *fallback;
    return invalid(fmt::format("\"{}\" is missing", key), std::string(key));
  }
  if (!value->is_number())
    return invalid(
        fmt::format("\"{}\" is {}, not a number", key, boost::json::serialize(*value).substr(0, 80)),
        std::string(key));
  return value->to_number<double>();
}

inline Expected<bool> read_bool(const boost::json::object& object, std::string_view key, bool fallback) {
  const boost::json::value* value = field_of(object, key);
  if (value == nullptr) return fallback;
  if (!value->is_bool())
    return invalid(
        fmt::format("\"{}\" is {}, not true or false", key, boost::json::serialize(*value).substr(0, 80)),
        std::string(key));
  return value->get_bool();
}

inline Expected<std::string> read_text(const boost::json::object& object, std::string_view key,
                                       std::optional<std::string_view> fallback = std::nullopt) {
  const boost::json::value* value = field_of(object, key);
  if (value == nullptr) {
    if (fallback) return std::string(*fallback);
    return invalid(fmt::format("\"{}\" is missing", key), std::string(key));
  }
  if (!value->is_string())
    return invalid(
        fmt::format("\"{}\" is {}, not a string", key, boost::json::serialize(*value).substr(0, 80)),
        std::string(key));
  return std::string(value->get_string());
}

}  // namespace millrace::model
