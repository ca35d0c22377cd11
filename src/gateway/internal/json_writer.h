// Writes JSON text directly, commas and escapes included: what is sent per token should not build a document
// first. Keys and values must alternate correctly (checked by the tests, not at run time). Strings are
// repaired to valid UTF-8, and numbers that JSON cannot hold are written as null.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>

namespace millrace::gateway {

void append_json_string(std::string& out, std::string_view text);

class JsonWriter {
 public:
  JsonWriter& begin_object() { return open('{'); }
  JsonWriter& end_object() { return close('}'); }
  JsonWriter& begin_array() { return open('['); }
  JsonWriter& end_array() { return close(']'); }
  JsonWriter& key(std::string_view name);
  JsonWriter& string(std::string_view text);
  JsonWriter& integer(int64_t value);
  JsonWriter& number(double value);  // shortest text that reads back as the same double
  JsonWriter& number(float value);   // the same for a float
  JsonWriter& boolean(bool value);
  JsonWriter& null();
  JsonWriter& raw(std::string_view json);  // text that is already one JSON value

  const std::string& text() const { return out_; }
  std::string take() { return std::move(out_); }

 private:
  JsonWriter& open(char bracket);
  JsonWriter& close(char bracket);
  void separate();

  std::string out_;
  bool comma_ = false;  // a value stands before the next one in this array or object
};

}  // namespace millrace::gateway
