// Python's str() and repr() of values.
#include <fmt/core.h>

#include <charconv>
#include <cmath>

#include "model/internal/jinja_value.h"

namespace millrace::model::jinja {

std::string int_text(Int i) {
  if (i >= INT64_MIN && i <= INT64_MAX) return fmt::format("{}", static_cast<int64_t>(i));
  std::string digits;
  const bool negative = i < 0;
  auto rest = negative ? -static_cast<unsigned __int128>(i) : static_cast<unsigned __int128>(i);
  for (; rest != 0; rest /= 10)
    digits.insert(digits.begin(), static_cast<char>('0' + static_cast<int>(rest % 10)));
  return (negative ? "-" : "") + digits;
}

std::optional<Int> parse_int(std::string_view digits, int base) {
  Int value = 0;
  for (const char c : digits) {
    const int digit = c >= '0' && c <= '9' ? c - '0' : (c | 0x20) - 'a' + 10;
    if (__builtin_mul_overflow(value, Int{base}, &value) || __builtin_add_overflow(value, Int{digit}, &value))
      return std::nullopt;
  }
  return value;
}

// The shortest digits that read back as the same double, laid out as Python does: an exponent below 1e-4 and
// from 1e16.
std::string float_repr(double d) {
  if (std::isnan(d)) return "nan";
  if (std::isinf(d)) return d < 0 ? "-inf" : "inf";
  char buffer[64];
  const auto end = std::to_chars(buffer, buffer + sizeof buffer, d, std::chars_format::scientific).ptr;
  const std::string_view text(buffer, static_cast<size_t>(end - buffer));
  const size_t e = text.find('e');
  int exponent = 0;
  const bool negative_exponent = text[e + 1] == '-';
  std::from_chars(text.data() + e + 2, text.data() + text.size(), exponent);
  if (negative_exponent) exponent = -exponent;
  if (exponent < -4 || exponent >= 16)
    return fmt::format("{}e{}{:02}", text.substr(0, e), exponent < 0 ? '-' : '+', std::abs(exponent));
  const auto fixed_end = std::to_chars(buffer, buffer + sizeof buffer, d, std::chars_format::fixed).ptr;
  std::string fixed(buffer, static_cast<size_t>(fixed_end - buffer));
  if (fixed.find('.') == std::string::npos) fixed += ".0";
  return fixed;
}

std::string repr_string(std::string_view bytes) {
  const bool single = bytes.find('\'') != std::string_view::npos;
  const char quote = single && bytes.find('"') == std::string_view::npos ? '"' : '\'';
  std::string out(1, quote);
  for (size_t i = 0; i < bytes.size();) {
    const size_t next = next_code_point(bytes, i);
    const char32_t c = code_point_at(bytes, i);
    if (c == static_cast<char32_t>(quote) || c == '\\')
      (out += '\\') += static_cast<char>(c);
    else if (c == '\n')
      out += "\\n";
    else if (c == '\r')
      out += "\\r";
    else if (c == '\t')
      out += "\\t";
    else if (is_printable(c))
      out += bytes.substr(i, next - i);
    else if (c < 0x100)
      out += fmt::format("\\x{:02x}", static_cast<uint32_t>(c));
    else if (c < 0x10000)
      out += fmt::format("\\u{:04x}", static_cast<uint32_t>(c));
    else
      out += fmt::format("\\U{:08x}", static_cast<uint32_t>(c));
    i = next;
  }
  return out += quote;
}

namespace {

std::string joined(const std::vector<Value>& items) {
  std::string out;
  for (const Value& item : items) {
    if (!out.empty()) out += ", ";
    out += repr(item);
  }
  spend_text(static_cast<Int>(out.size()));
  return out;
}

std::string dict_repr(const DictObject& dict) {
  std::string out = "{";
  for (const auto& [key, value] : dict.items) {
    if (out.size() > 1) out += ", ";
    out += repr(key) + ": " + repr(value);
  }
  spend_text(static_cast<Int>(out.size()));
  return out + "}";
}

}  // namespace

std::string repr(const Value& v) {
  spend(1);
  switch (v.kind()) {
    case Kind::undefined:
      return "Undefined";
    case Kind::none:
      return "None";
    case Kind::boolean:
      return v.as_bool() ? "True" : "False";
    case Kind::integer:
      return int_text(v.as_int());
    case Kind::real:
      return float_repr(v.as_double());
    case Kind::string:
      return v.is_markup() ? "Markup(" + repr_string(v.bytes()) + ")" : repr_string(v.bytes());
    case Kind::list:
      return "[" + joined(v.items()) + "]";
    case Kind::tuple:
      return "(" + joined(v.items()) + (v.items().size() == 1 ? ",)" : ")");
    case Kind::dict:
      return dict_repr(v.dict());
    case Kind::view: {
      const auto items = items_of(v);
      return fmt::format("{}([{}])", v.type_name(), joined(items));
    }
    case Kind::range: {
      const RangeObject& r = v.range();
      return r.step == 1 ? fmt::format("range({}, {})", r.start, r.stop)
                         : fmt::format("range({}, {}, {})", r.start, r.stop, r.step);
    }
    case Kind::iterator:
      return fmt::format("<{} object>", v.type_name());
    case Kind::host:
      return v.host().repr();
  }
  return "";
}

bool contains_marked(const Value& v) {
  spend(1);
  switch (v.kind()) {
    case Kind::string:
      return v.text().any_marked();
    case Kind::list:
    case Kind::tuple:
      for (const Value& item : v.items())
        if (contains_marked(item)) return true;
      return false;
    case Kind::dict:
      for (const auto& [key, value] : v.dict().items)
        if (contains_marked(key) || contains_marked(value)) return true;
      return false;
    case Kind::view:
      return contains_marked(v.view().dict);
    case Kind::host:
      return true;  // a namespace or a macro may hold anything: the careful answer
    default:
      return false;
  }
}

Text to_text(const Value& v) {
  if (v.is(Kind::string)) return v.text();
  if (v.is(Kind::undefined)) return Text();
  return Text(repr(v), contains_marked(v));
}

Value to_string_value(const Value& v) { return v.is(Kind::string) ? v : Value::string(to_text(v)); }

}  // namespace millrace::model::jinja
