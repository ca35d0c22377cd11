// Filters on numbers.
#include <fmt/core.h>

#include <charconv>
#include <cmath>
#include <cstdlib>

#include "model/internal/jinja_interpreter.h"
#include "model/internal/jinja_text_ops.h"

namespace millrace::model::jinja {
namespace {

// Python's float(str).
std::optional<double> parse_float(const Text& source) {
  const Text stripped = strip(source, Side::both, std::nullopt);
  std::string text;
  for (size_t i = 0; i < stripped.size(); ++i) {
    const char c = stripped.bytes()[i];
    auto digit = [&](size_t k) {
      return k < stripped.size() && std::isdigit(static_cast<unsigned char>(stripped.bytes()[k]));
    };
    if (c == '_') {
      if (i == 0 || !digit(i - 1) || !digit(i + 1)) return std::nullopt;
      continue;
    }
    text += static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  }
  std::string_view body = text;
  const bool negative = body.starts_with('-');
  if (negative || body.starts_with('+')) body.remove_prefix(1);
  if (body == "inf" || body == "infinity") return negative ? -HUGE_VAL : HUGE_VAL;
  if (body == "nan") return std::nan("");
  if (body.empty() || body.find_first_not_of("0123456789.e+-") != body.npos) return std::nullopt;
  std::string parsed(body);
  if (parsed.back() == '.') parsed.pop_back();  // from_chars wants digits on neither side
  if (const size_t dot = parsed.find(".e"); dot != parsed.npos) parsed.erase(dot, 1);
  double value = 0;
  const auto [end, error] = std::from_chars(parsed.data(), parsed.data() + parsed.size(), value);
  if (end != parsed.data() + parsed.size() || error == std::errc::invalid_argument) return std::nullopt;
  if (error == std::errc::result_out_of_range) value = std::strtod(parsed.c_str(), nullptr);
  return negative ? -value : value;
}

// Python's int(str, base).
std::optional<Int> parse_integer(const Text& source, Int base) {
  if (base != 0 && (base < 2 || base > 36)) return std::nullopt;
  const Text stripped = strip(source, Side::both, std::nullopt);
  std::string_view body = stripped.bytes();
  const bool negative = body.starts_with('-');
  if (negative || body.starts_with('+')) body.remove_prefix(1);
  int radix = static_cast<int>(base);
  bool prefixed = false;
  if (body.size() > 2 && body[0] == '0') {
    const char c = static_cast<char>(body[1] | 0x20);
    const int named = c == 'x' ? 16 : c == 'o' ? 8 : c == 'b' ? 2 : 0;
    if (named && (radix == 0 || radix == named)) {
      radix = named;
      body.remove_prefix(2);
      prefixed = true;
    }
  }
  if (radix == 0) {
    radix = 10;
    if (body.size() > 1 && body[0] == '0' && body.find_first_not_of("0_") != body.npos) return std::nullopt;
  }
  std::string digits;
  bool underscore_allowed = prefixed;
  for (const char c : body) {
    if (c == '_') {
      if (!underscore_allowed) return std::nullopt;
      underscore_allowed = false;
      continue;
    }
    const int low = c | 0x20;
    const int digit = c >= '0' && c <= '9' ? c - '0' : low >= 'a' && low <= 'z' ? low - 'a' + 10 : 99;
    if (digit >= radix) return std::nullopt;
    digits += c;
    underscore_allowed = true;
  }
  if (digits.empty() || !underscore_allowed) return std::nullopt;
  const auto value = parse_int(digits, radix);
  if (!value) fail_type("an integer past 128 bits is not supported");
  return negative ? -*value : *value;
}

std::optional<Int> truncate(double d) {
  if (!std::isfinite(d)) return std::nullopt;
  if (!(std::fabs(d) < 0x1p126)) fail_type("an integer past 128 bits is not supported");
  return static_cast<Int>(d);
}

Value int_filter(Interpreter&, const Value& subject, Args& args) {
  const Bound bound("int", args, {"default", "base"});
  const Value otherwise = bound.has(0) ? bound[0] : Value::integer(0);
  if (subject.is(Kind::undefined)) fail_undefined(subject);
  if (subject.is_integral()) return Value::integer(subject.as_int());
  std::optional<Int> value;
  if (subject.is(Kind::real)) {
    if (std::isinf(subject.as_double())) fail_type("cannot convert float infinity to integer");
    value = truncate(subject.as_double());
  } else if (subject.is(Kind::string)) {
    value = parse_integer(subject.text(), bound.integer(1, 10));
    if (!value)
      if (const auto real = parse_float(subject.text())) value = truncate(*real);
  }
  return value ? Value::integer(*value) : otherwise;
}

Value float_filter(Interpreter&, const Value& subject, Args& args) {
  const Bound bound("float", args, {"default"});
  if (subject.is(Kind::undefined)) fail_undefined(subject);
  if (subject.is_number()) return Value::real(subject.as_double());
  if (subject.is(Kind::string))
    if (const auto value = parse_float(subject.text())) return Value::real(*value);
  return bound.has(0) ? bound[0] : Value::real(0);
}

Value abs_filter(Interpreter&, const Value& subject, Args& args) {
  const Bound bound("abs", args, {});
  if (!subject.is_number()) return negate(subject, '-');  // its error
  if (subject.is(Kind::real)) return Value::real(std::fabs(subject.as_double()));
  return subject.as_int() < 0 ? negate(subject, '-') : Value::integer(subject.as_int());
}

double round_half_even(double d) { return std::nearbyint(d); }

Value round_common(const Value& subject, Int precision) {
  if (subject.is_integral()) {
    if (precision >= 0) return Value::integer(subject.as_int());
    if (precision < -37) return Value::integer(0);
    const Int unit = arithmetic("**", Value::integer(10), Value::integer(-precision)).as_int();
    const Int half = unit / 2;
    Int rest = subject.as_int() % unit;
    if (rest < 0) rest += unit;
    const Int floor = subject.as_int() - rest;
    const bool up = rest > half || (rest == half && (floor / unit) % 2 != 0);
    return Value::integer(up ? floor + unit : floor);
  }
  const double d = subject.as_double();
  if (!std::isfinite(d) || precision > 323) return subject;
  if (precision < -308) return Value::real(std::copysign(0.0, d));
  if (precision < 0) {
    const double unit = std::pow(10.0, static_cast<double>(-precision));
    return Value::real(round_half_even(d / unit) * unit);
  }
  // Correctly rounded from the exact decimal value, as Python does: print with so many digits, read back.
  const std::string text = format_spec(subject, fmt::format(".{}f", static_cast<int>(precision)));
  return Value::real(std::strtod(text.c_str(), nullptr));
}

Value round_filter(Interpreter&, const Value& subject, Args& args) {
  const Bound bound("round", args, {"precision", "method"});
  const Int precision = bound.integer(0, 0);
  const std::string_view method = bound.string(1, "common");
  if (method != "common" && method != "ceil" && method != "floor")
    fail_type("method must be common, ceil or floor");
  if (subject.is(Kind::undefined)) fail_undefined(subject);
  if (!subject.is_number()) fail_type(fmt::format("round needs a number, not {}", subject.type_name()));
  if (method == "common") return round_common(subject, precision);
  const Value unit = arithmetic("**", Value::integer(10), Value::integer(precision));
  const Value scaled = arithmetic("*", subject, unit);
  if (scaled.is_integral()) return arithmetic("/", scaled, unit);
  const double d = scaled.as_double();
  if (!std::isfinite(d)) fail_type("cannot round this float");
  const double whole = method == "ceil" ? std::ceil(d) : std::floor(d);
  return Value::real(whole / unit.as_double());
}

Value file_size(Interpreter&, const Value& subject, Args& args) {
  const Bound bound("filesizeformat", args, {"binary"});
  if (subject.is(Kind::undefined)) fail_undefined(subject);
  std::optional<double> bytes;
  if (subject.is_number()) bytes = subject.as_double();
  if (subject.is(Kind::string)) bytes = parse_float(subject.text());
  if (!bytes) fail_type("filesizeformat needs a number");
  const bool binary = bound.flag(0, false);
  const double base = binary ? 1024 : 1000;
  if (*bytes == 1) return Value::string("1 Byte");
  if (*bytes < base) return Value::string(fmt::format("{} Bytes", int_text(truncate(*bytes).value_or(0))));
  constexpr std::string_view kPrefixes = "KMGTPEZY";
  double unit = base;
  for (size_t i = 0;; ++i) {
    unit *= base;
    if (*bytes < unit || i + 1 == kPrefixes.size()) {
      std::string prefix(1, kPrefixes[i]);
      if (!binary && i == 0) prefix = "k";
      return Value::string(fmt::format("{} {}{}", format_spec(Value::real(base * *bytes / unit), ".1f"),
                                       prefix, binary ? "iB" : "B"));
    }
  }
}

}  // namespace

const std::vector<FilterRow>& number_filters() {
  static const std::vector<FilterRow> rows = {{"int", int_filter},
                                              {"float", float_filter},
                                              {"abs", abs_filter},
                                              {"round", round_filter},
                                              {"filesizeformat", file_size}};
  return rows;
}

}  // namespace millrace::model::jinja
