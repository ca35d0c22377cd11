// Python's json.dumps, as transformers' tojson filter calls it.
#include <fmt/core.h>

#include <algorithm>
#include <cmath>

#include "model/internal/jinja_interpreter.h"

namespace millrace::model::jinja {
namespace {

class JsonWriter {
 public:
  JsonWriter(bool ensure_ascii, const std::optional<std::string>& indent, std::string_view item_separator,
             std::string_view key_separator, bool sort_keys)
      : ensure_ascii_(ensure_ascii),
        indent_(indent),
        item_separator_(item_separator),
        key_separator_(key_separator),
        sort_keys_(sort_keys) {}

  void write(const Value& v) {
    spend(1);
    switch (v.kind()) {
      case Kind::none:
        put("null");
        break;
      case Kind::boolean:
        put(v.as_bool() ? "true" : "false");
        break;
      case Kind::integer:
        put(int_text(v.as_int()));
        break;
      case Kind::real:
        put(number(v.as_double()));
        break;
      case Kind::string:
        string(v.bytes());
        break;
      case Kind::list:
      case Kind::tuple:
        array(v.items());
        break;
      case Kind::dict:
        object(v.dict());
        break;
      default:
        fail_type(fmt::format("Object of type {} is not JSON serializable", v.type_name()));
    }
  }
  std::string take() { return std::move(out_); }

 private:
  void put(std::string_view text) {
    spend_text_growth(out_.size(), text.size());
    out_ += text;
  }

  static std::string number(double d) {
    if (std::isnan(d)) return "NaN";
    if (std::isinf(d)) return d < 0 ? "-Infinity" : "Infinity";
    return float_repr(d);
  }

  void escape(char32_t c) { out_ += fmt::format("\\u{:04x}", static_cast<uint32_t>(c)); }

  void string(std::string_view text) {
    spend_text_growth(out_.size(), text.size());
    out_ += '"';
    for (size_t i = 0; i < text.size();) {
      const size_t next = next_code_point(text, i);
      const char32_t c = code_point_at(text, i);
      constexpr std::string_view kFrom = "\"\\\n\r\t\b\f", kTo = "\"\\nrtbf";
      const size_t k = c < 0x80 ? kFrom.find(static_cast<char>(c)) : std::string_view::npos;
      if (k != std::string_view::npos) {
        out_ += '\\';
        out_ += kTo[k];
      } else if (c < 0x20 || (ensure_ascii_ && c > 0x7E && c < 0x10000)) {
        escape(c);
      } else if (ensure_ascii_ && c >= 0x10000) {
        escape(0xD800 + ((c - 0x10000) >> 10));
        escape(0xDC00 + ((c - 0x10000) & 0x3FF));
      } else {
        out_ += text.substr(i, next - i);
      }
      i = next;
    }
    out_ += '"';
  }

  void new_line() {
    if (!indent_) return;
    put("\n");
    for (int i = 0; i < level_; ++i) put(*indent_);
  }

  void array(const std::vector<Value>& items) {
    if (items.empty()) return put("[]");
    put("[");
    ++level_;
    for (size_t i = 0; i < items.size(); ++i) {
      if (i > 0) put(item_separator_);
      new_line();
      write(items[i]);
    }
    --level_;
    new_line();
    put("]");
  }

  static std::string key_text(const Value& key) {
    switch (key.kind()) {
      case Kind::string:
        return std::string(key.bytes());
      case Kind::none:
        return "null";
      case Kind::boolean:
        return key.as_bool() ? "true" : "false";
      case Kind::integer:
        return int_text(key.as_int());
      case Kind::real:
        return number(key.as_double());
      default:
        fail_type(fmt::format("keys must be str, int, float, bool or None, not {}", key.type_name()));
    }
  }

  void object(const DictObject& dict) {
    if (dict.items.empty()) return put("{}");
    std::vector<size_t> order(dict.items.size());
    for (size_t i = 0; i < order.size(); ++i) order[i] = i;
    if (sort_keys_)
      std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
        spend(1);
        return compare(dict.items[a].first, dict.items[b].first, "<") < 0;
      });
    put("{");
    ++level_;
    for (size_t i = 0; i < order.size(); ++i) {
      if (i > 0) put(item_separator_);
      new_line();
      const auto& [key, value] = dict.items[order[i]];
      string(key_text(key));
      put(key_separator_);
      write(value);
    }
    --level_;
    new_line();
    put("}");
  }

  const bool ensure_ascii_;
  const std::optional<std::string>& indent_;
  const std::string_view item_separator_, key_separator_;
  const bool sort_keys_;
  int level_ = 0;
  std::string out_;
};

}  // namespace

std::string to_json(const Value& value, bool ensure_ascii, const std::optional<std::string>& indent,
                    std::string_view item_separator, std::string_view key_separator, bool sort_keys) {
  JsonWriter writer(ensure_ascii, indent, item_separator, key_separator, sort_keys);
  writer.write(value);
  return writer.take();
}

}  // namespace millrace::model::jinja
