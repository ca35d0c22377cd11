// Reads the fields of a request's JSON object with types and ranges checked: every refusal names the field,
// the value and the limit. A field that is absent or null takes its default.
#pragma once
#include <boost/json/object.hpp>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "base/json.h"
#include "base/status.h"

namespace millrace::gateway {

class Fields {
 public:
  // The object must outlive this. `prefix` goes before names in errors, e.g. "stream_options.".
  explicit Fields(const json::object& object, std::string prefix = {})
      : object_(object), prefix_(std::move(prefix)) {}

  const json::value* find(std::string_view name) const;  // null if absent or JSON null
  bool has(std::string_view name) const { return find(name) != nullptr; }
  std::string param(std::string_view name) const { return prefix_ + std::string(name); }

  Expected<bool> boolean(std::string_view name, bool otherwise) const;
  Expected<double> number(std::string_view name, double otherwise, double low, double high) const;
  Expected<int64_t> integer(std::string_view name, int64_t otherwise, int64_t low, int64_t high) const;
  Expected<std::string> string(std::string_view name, std::string otherwise, size_t max_bytes) const;
  Expected<const json::object*> object(std::string_view name) const;  // null if absent
  Expected<const json::array*> array(std::string_view name, size_t max_size) const;

  // Refuses a field that this server knows but does not serve, unless its value asks for nothing (null,
  // false, an empty array or object, or the word `nothing` where the field has one).
  Expected<void> unsupported(std::string_view name, std::string_view nothing = {}) const;

 private:
  const json::object& object_;
  const std::string prefix_;
};

// A JSON number that is a whole number in [low, high] (10.0 counts as 10).
std::optional<int64_t> whole_number(const json::value& value, int64_t low, int64_t high);
// The kind of a value for error messages: "a string", "an array"...
std::string_view kind_name(const json::value& value);

}  // namespace millrace::gateway
