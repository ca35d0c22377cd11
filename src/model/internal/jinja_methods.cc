// Methods of dict, list, tuple, range, int and float.
#include <fmt/core.h>

#include <cmath>

#include "model/internal/jinja_interpreter.h"

namespace millrace::model::jinja {
namespace {

Value dict_get(Interpreter&, const Value& self, Args& args) {
  const Bound bound("get", args, {"key", "default"}, 1);
  if (!hashable(bound[0])) fail_type(fmt::format("unhashable type: '{}'", bound[0].type_name()));
  if (const Value* value = self.dict().find(bound[0])) return *value;
  return bound.has(1) ? bound[1] : Value::none();
}

template <int which>
Value dict_view(Interpreter&, const Value& self, Args& args) {
  const Bound bound("dict view", args, {});
  return Value::view(self, which);
}

Value copy(Interpreter&, const Value& self, Args& args) {
  const Bound bound("copy", args, {});
  return self;  // values never change, so a copy is the value
}

Value sequence_count(Interpreter&, const Value& self, Args& args) {
  const Bound bound("count", args, {"value"}, 1);
  Int count = 0;
  for (const Value& item : items_of(self)) count += equal(item, bound[0]);
  return Value::integer(count);
}

Value sequence_index(Interpreter&, const Value& self, Args& args) {
  const Bound bound("index", args, {"value", "start", "stop"}, 1);
  const auto items = items_of(self);
  const auto length = static_cast<Int>(items.size());
  auto edge = [&](size_t i, Int otherwise) {
    Int v = bound.integer(i, otherwise);
    if (v < 0) v = std::max<Int>(v + length, 0);
    return std::min(v, length);
  };
  for (Int i = edge(1, 0); i < edge(2, length); ++i)
    if (equal(items[static_cast<size_t>(i)], bound[0])) return Value::integer(i);
  fail_type(fmt::format("{} is not in {}", repr(bound[0]), self.type_name()));
}

Value bit_length(Interpreter&, const Value& self, Args& args) {
  const Bound bound("bit_length", args, {});
  Int value = self.as_int(), bits = 0;
  for (auto rest = value < 0 ? -static_cast<unsigned __int128>(value) : static_cast<unsigned __int128>(value);
       rest != 0; rest >>= 1)
    ++bits;
  return Value::integer(bits);
}

Value is_integer(Interpreter&, const Value& self, Args& args) {
  const Bound bound("is_integer", args, {});
  const double d = self.as_double();
  return Value::boolean(std::isfinite(d) && d == std::floor(d));
}

template <size_t N>
Method find_in(const MethodRow (&rows)[N], std::string_view name) {
  for (const auto& [known, method] : rows)
    if (known == name) return method;
  return nullptr;
}

constexpr MethodRow kDict[] = {{"get", dict_get},
                               {"keys", dict_view<0>},
                               {"values", dict_view<1>},
                               {"items", dict_view<2>},
                               {"copy", copy}};
constexpr MethodRow kList[] = {{"index", sequence_index}, {"count", sequence_count}, {"copy", copy}};
constexpr MethodRow kTuple[] = {{"index", sequence_index}, {"count", sequence_count}};
constexpr MethodRow kInt[] = {{"bit_length", bit_length}};
constexpr MethodRow kFloat[] = {{"is_integer", is_integer}};

}  // namespace

Method find_method(const Value& self, std::string_view name) {
  switch (self.kind()) {
    case Kind::string:
      return find_text_method(name);
    case Kind::dict:
      return find_in(kDict, name);
    case Kind::list:
      return find_in(kList, name);
    case Kind::tuple:
    case Kind::range:
      return find_in(kTuple, name);
    case Kind::boolean:
    case Kind::integer:
      return find_in(kInt, name);
    case Kind::real:
      return find_in(kFloat, name);
    default:
      return nullptr;
  }
}

// What jinja2's immutable sandbox withholds from templates.
bool modifies_in_place(const Value& self, std::string_view name) {
  auto one_of = [name](std::initializer_list<std::string_view> names) {
    for (const std::string_view n : names)
      if (n == name) return true;
    return false;
  };
  if (self.is(Kind::dict)) return one_of({"clear", "pop", "popitem", "setdefault", "update"});
  if (self.is(Kind::list))
    return one_of({"append", "clear", "pop", "reverse", "insert", "sort", "extend", "remove"});
  return false;
}

}  // namespace millrace::model::jinja
