// Python's operators on values: arithmetic, comparison, containment, subscripts and slices.
#include <fmt/core.h>

#include <cmath>

#include "model/internal/jinja_interpreter.h"

namespace millrace::model::jinja {
namespace {

[[noreturn]] void fail_operands(std::string_view op, const Value& a, const Value& b) {
  if (a.is(Kind::undefined)) fail_undefined(a);
  if (b.is(Kind::undefined)) fail_undefined(b);
  fail_type(
      fmt::format("unsupported operand type(s) for {}: '{}' and '{}'", op, a.type_name(), b.type_name()));
}
[[noreturn]] void fail_overflow(std::string_view op) {
  fail_type(fmt::format("integer overflow in '{}': results past 128 bits are not supported", op));
}

Int floor_div(Int a, Int b) {
  const Int quotient = a / b;
  return quotient * b != a && (a < 0) != (b < 0) ? quotient - 1 : quotient;
}

Value integer_power(Int base, Int exponent) {
  if (exponent < 0) {
    if (base == 0) fail_type("0.0 cannot be raised to a negative power");
    return Value::real(std::pow(static_cast<double>(base), static_cast<double>(exponent)));
  }
  if (base == 0 || base == 1) return Value::integer(exponent == 0 ? 1 : base);
  if (base == -1) return Value::integer(exponent % 2 == 0 ? 1 : -1);
  if (exponent > 127) fail_overflow("**");
  Int result = 1;
  for (Int i = 0; i < exponent; ++i)
    if (__builtin_mul_overflow(result, base, &result)) fail_overflow("**");
  return Value::integer(result);
}

Value integer_arithmetic(std::string_view op, Int a, Int b) {
  Int result = 0;
  if (op == "+") {
    if (__builtin_add_overflow(a, b, &result)) fail_overflow(op);
    return Value::integer(result);
  }
  if (op == "-") {
    if (__builtin_sub_overflow(a, b, &result)) fail_overflow(op);
    return Value::integer(result);
  }
  if (op == "*") {
    if (__builtin_mul_overflow(a, b, &result)) fail_overflow(op);
    return Value::integer(result);
  }
  if (op == "**") return integer_power(a, b);
  if (b == 0) fail_type("division by zero");
  if (op == "/")
    return Value::real(static_cast<double>(static_cast<long double>(a) / static_cast<long double>(b)));
  if (b == -1) {  // the one quotient that can overflow
    if (op == "%") return Value::integer(0);
    if (__builtin_sub_overflow(Int{0}, a, &result)) fail_overflow(op);
    return Value::integer(result);
  }
  const Int quotient = floor_div(a, b);
  return Value::integer(op == "//" ? quotient : a - quotient * b);
}

Value real_arithmetic(std::string_view op, double a, double b) {
  if (op == "+") return Value::real(a + b);
  if (op == "-") return Value::real(a - b);
  if (op == "*") return Value::real(a * b);
  if (op == "**") {
    if (a == 0 && b < 0) fail_type("0.0 cannot be raised to a negative power");
    if (a < 0 && std::isfinite(b) && b != std::floor(b)) fail_type("complex numbers are not supported");
    const double result = std::pow(a, b);
    if (std::isinf(result) && std::isfinite(a) && std::isfinite(b))
      fail_type("the result of '**' is too large");
    return Value::real(result);
  }
  if (b == 0) fail_type("float division by zero");
  if (op == "/") return Value::real(a / b);
  double mod = std::fmod(a, b);
  double quotient = (a - mod) / b;
  if (mod != 0) {
    if ((b < 0) != (mod < 0)) {
      mod += b;
      quotient -= 1;
    }
  } else {
    mod = std::copysign(0.0, b);
  }
  if (op == "%") return Value::real(mod);
  if (quotient == 0) return Value::real(std::copysign(0.0, a / b));
  double whole = std::floor(quotient);
  if (quotient - whole > 0.5) whole += 1;
  return Value::real(whole);
}

Value repeat(const Value& v, Int count) {
  count = std::max<Int>(count, 0);
  if (v.is(Kind::string)) {
    const Text& text = v.text();
    if (text.empty() || count == 0) return Value::string(Text(), v.is_markup());
    if (count > INT64_MAX / static_cast<Int>(text.size())) count = INT64_MAX / static_cast<Int>(text.size());
    spend_text(count * static_cast<Int>(text.size()));
    Text out;
    for (Int i = 0; i < count; ++i) out.append(text);
    return Value::string(std::move(out), v.is_markup());
  }
  const auto& items = v.items();
  std::vector<Value> out;
  if (!items.empty()) {
    if (count > INT64_MAX / static_cast<Int>(items.size()))
      count = INT64_MAX / static_cast<Int>(items.size());
    spend(static_cast<size_t>(count) * items.size());
    for (Int i = 0; i < count; ++i) out.insert(out.end(), items.begin(), items.end());
  }
  return v.is(Kind::list) ? Value::list(std::move(out)) : Value::tuple(std::move(out));
}

bool is_sequence(const Value& v) { return v.is(Kind::string) || v.is(Kind::list) || v.is(Kind::tuple); }

Value join_sequences(const Value& a, const Value& b) {
  std::vector<Value> out = a.items();
  spend(out.size());
  out.insert(out.end(), b.items().begin(), b.items().end());
  return a.is(Kind::list) ? Value::list(std::move(out)) : Value::tuple(std::move(out));
}

// Python's slice.indices(): where a slice starts, how many steps of what size it takes.
struct Indices {
  int64_t start, count, step;
};
Indices slice_indices(int64_t length, const Value& start, const Value& stop, const Value& step) {
  const Int stride = step.is(Kind::none) ? Int{1} : integer_of(step, "slice indices");
  if (stride == 0) fail_type("slice step cannot be zero");
  const Int low = stride < 0 ? -1 : 0, high = stride < 0 ? length - 1 : length;
  auto bound = [&](const Value& v, Int otherwise) {
    if (v.is(Kind::none)) return otherwise;
    Int i = integer_of(v, "slice indices");
    if (i < 0) i = std::max(i + length, low);
    return std::min(i, high);
  };
  const Int first = bound(start, stride < 0 ? high : low), last = bound(stop, stride < 0 ? low : high);
  const Int distance = stride > 0 ? last - first : first - last, size = stride > 0 ? stride : -stride;
  const Int count = distance <= 0 ? 0 : (distance + size - 1) / size;
  return {static_cast<int64_t>(first), static_cast<int64_t>(count),
          static_cast<int64_t>(count > 1    ? stride
                               : stride > 0 ? 1
                                            : -1)};
}

std::optional<int64_t> element(const Value& key, int64_t length) {
  if (!key.is_integral()) return std::nullopt;
  Int i = key.as_int();
  if (i < 0) i += length;
  if (i < 0 || i >= length) return std::nullopt;
  return static_cast<int64_t>(i);
}

}  // namespace

Int integer_of(const Value& v, std::string_view what) {
  if (v.is(Kind::undefined)) fail_undefined(v);
  if (!v.is_integral()) fail_type(fmt::format("{} must be an integer, not {}", what, v.type_name()));
  return v.as_int();
}

Value concat_strings(const Value& a, const Value& b) {
  Text out = a.text();
  spend_text(static_cast<Int>(a.text().size() + b.text().size()));
  const bool markup = a.is_markup() || b.is_markup();
  if (markup && !a.is_markup()) out = escape_html(out);
  out.append(markup && !b.is_markup() ? escape_html(b.text()) : b.text());
  return Value::string(std::move(out), markup);
}

Value arithmetic(std::string_view op, const Value& a, const Value& b) {
  if (a.is_number() && b.is_number())
    return a.is(Kind::real) || b.is(Kind::real) ? real_arithmetic(op, a.as_double(), b.as_double())
                                                : integer_arithmetic(op, a.as_int(), b.as_int());
  if (op == "%" && a.is(Kind::string)) return percent_format(a, b);
  if (op == "+" && a.kind() == b.kind()) {
    if (a.is(Kind::string)) return concat_strings(a, b);
    if (a.is(Kind::list) || a.is(Kind::tuple)) return join_sequences(a, b);
  }
  if (op == "*") {
    if (is_sequence(a) && b.is_integral()) return repeat(a, b.as_int());
    if (is_sequence(b) && a.is_integral()) return repeat(b, a.as_int());
  }
  fail_operands(op, a, b);
}

Value negate(const Value& v, char op) {
  if (v.is(Kind::undefined)) fail_undefined(v);
  if (!v.is_number()) fail_type(fmt::format("bad operand type for unary {}: '{}'", op, v.type_name()));
  if (v.is(Kind::real)) return Value::real(op == '-' ? -v.as_double() : v.as_double());
  return op == '-' ? integer_arithmetic("-", 0, v.as_int()) : Value::integer(v.as_int());
}

bool compare_by(std::string_view op, const Value& a, const Value& b) {
  if (op == "==") return equal(a, b);
  if (op == "!=") return !equal(a, b);
  const int order = compare(a, b, op);
  if (order == 2) return false;  // NaN
  if (op == "<") return order < 0;
  if (op == ">") return order > 0;
  if (op == "<=") return order <= 0;
  return order >= 0;
}

bool contains(const Value& container, const Value& item) {
  switch (container.kind()) {
    case Kind::undefined:
      return false;
    case Kind::string:
      if (item.is(Kind::undefined)) fail_undefined(item);
      if (!item.is(Kind::string))
        fail_type(fmt::format("'in <string>' requires string as left operand, not {}", item.type_name()));
      spend(container.bytes().size() / 32);
      return container.bytes().find(item.bytes()) != std::string_view::npos;
    case Kind::dict:
      if (!hashable(item)) fail_type(fmt::format("unhashable type: '{}'", item.type_name()));
      return container.dict().find(item) != nullptr;
    case Kind::list:
    case Kind::tuple:
      for (const Value& candidate : container.items())
        if (equal(candidate, item)) return true;
      return false;
    case Kind::range: {
      if (!item.is_number()) return false;
      const RangeObject& r = container.range();
      if (item.is(Kind::real) && item.as_double() != std::floor(item.as_double())) return false;
      if (item.is(Kind::real) && !(std::fabs(item.as_double()) < 0x1p62)) return false;
      const Int i = item.is(Kind::real) ? static_cast<Int>(item.as_double()) : item.as_int();
      const Int offset = i - r.start;
      return offset % r.step == 0 && offset / r.step >= 0 && offset / r.step < r.size();
    }
    default:
      for (const Value& candidate : items_of(container))
        if (equal(candidate, item)) return true;
      return false;
  }
}

Value slice_of(const Value& object, const Value& start, const Value& stop, const Value& step) {
  const auto length = static_cast<int64_t>(length_of(object).value_or(0));
  spend(static_cast<size_t>(length) / 32);
  const Indices at = slice_indices(length, start, stop, step);
  if (object.is(Kind::range)) {
    const RangeObject& r = object.range();
    const Int first = r.at(at.start), stride = Int{at.step} * r.step;
    return Value::range(static_cast<int64_t>(first), static_cast<int64_t>(first + stride * at.count),
                        static_cast<int64_t>(stride));
  }
  if (object.is(Kind::string)) {
    const Text& text = object.text();
    if (at.count == 0) return Value::string(Text(), object.is_markup());
    if (at.step == 1) {
      const size_t begin = text.offset_of(static_cast<size_t>(at.start));
      const Text rest = text.slice(begin, text.size());
      return Value::string(rest.slice(0, rest.offset_of(static_cast<size_t>(at.count))), object.is_markup());
    }
    std::vector<size_t> offsets;
    for (size_t i = 0; i < text.size(); i = next_code_point(text.bytes(), i)) offsets.push_back(i);
    offsets.push_back(text.size());
    Text out;
    for (int64_t i = 0; i < at.count; ++i) {
      const auto k = static_cast<size_t>(at.start + i * at.step);
      out.append(text.slice(offsets[k], offsets[k + 1]));
    }
    return Value::string(std::move(out), object.is_markup());
  }
  std::vector<Value> out;
  spend(static_cast<size_t>(at.count));
  for (int64_t i = 0; i < at.count; ++i)
    out.push_back(object.items()[static_cast<size_t>(at.start + i * at.step)]);
  return object.is(Kind::list) ? Value::list(std::move(out)) : Value::tuple(std::move(out));
}

// object[key] as Python has it; found = false where Python raises TypeError or LookupError.
Value subscript(const Value& object, const Value& key, bool& found) {
  found = true;
  switch (object.kind()) {
    case Kind::dict:
      if (hashable(key))
        if (const Value* value = object.dict().find(key)) return *value;
      break;
    case Kind::list:
    case Kind::tuple:
      if (const auto i = element(key, static_cast<int64_t>(object.items().size())))
        return object.items()[static_cast<size_t>(*i)];
      break;
    case Kind::range:
      if (const auto i = element(key, object.range().size())) return Value::integer(object.range().at(*i));
      break;
    case Kind::string: {
      if (!key.is_integral()) break;
      const Text& text = object.text();
      spend(text.size() / 32);
      const auto i = element(key, static_cast<int64_t>(text.length()));
      if (!i) break;
      const size_t begin = text.offset_of(static_cast<size_t>(*i));
      return Value::string(text.slice(begin, next_code_point(text.bytes(), begin)), object.is_markup());
    }
    default:
      break;
  }
  found = false;
  return Value();
}

}  // namespace millrace::model::jinja
