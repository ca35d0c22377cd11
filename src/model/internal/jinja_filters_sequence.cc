// Filters on sequences and mappings.
#include <fmt/core.h>

#include <algorithm>
#include <charconv>
#include <functional>

#include "model/internal/jinja_interpreter.h"

namespace millrace::model::jinja {

Value look_up_path(Interpreter& interpreter, Value value, const Value& path, const Value& otherwise) {
  if (path.is(Kind::none)) return value;
  auto step = [&](const Value& part) {
    value = interpreter.item(value, part);
    if (value.is(Kind::undefined) && !otherwise.is(Kind::undefined) && !otherwise.is(Kind::none))
      value = otherwise;
  };
  if (!path.is(Kind::string)) {
    step(path);
    return value;
  }
  std::string_view rest = path.bytes();
  while (true) {
    const size_t dot = rest.find('.');
    const std::string_view part = rest.substr(0, dot);
    const bool digits = !part.empty() && part.find_first_not_of("0123456789") == std::string_view::npos;
    const auto number = digits ? parse_int(part, 10) : std::nullopt;
    step(number ? Value::integer(*number) : Value::string(part));
    if (dot == std::string_view::npos) return value;
    rest.remove_prefix(dot + 1);
  }
}

namespace {

Value fold_case(const Value& v) {
  if (!v.is(Kind::string)) return v;
  spend_text(static_cast<Int>(v.text().size()));
  return Value::string(Text(to_lower(v.bytes()), v.text().any_marked()));
}

// Python's sort: stable, by <; reverse keeps the order of equals. Comparison may throw, so the merge is our
// own (std::stable_sort may not be interrupted safely, and NaN breaks its contract).
void merge_sort(std::vector<size_t>& order, const std::function<bool(size_t, size_t)>& less) {
  std::vector<size_t> scratch(order.size());
  for (size_t width = 1; width < order.size(); width *= 2) {
    for (size_t low = 0; low < order.size(); low += 2 * width) {
      const size_t middle = std::min(low + width, order.size()),
                   high = std::min(low + 2 * width, order.size());
      size_t a = low, b = middle;
      for (size_t k = low; k < high; ++k)
        scratch[k] = b >= high || (a < middle && !less(order[b], order[a])) ? order[a++] : order[b++];
    }
    order.swap(scratch);
  }
}

std::vector<Value> sorted(const std::vector<Value>& items, const std::vector<Value>& keys, bool reverse) {
  std::vector<size_t> order(items.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  if (reverse) std::reverse(order.begin(), order.end());
  merge_sort(order, [&](size_t a, size_t b) {
    spend(1);
    return compare(keys[a], keys[b], "<") == -1;
  });
  if (reverse) std::reverse(order.begin(), order.end());
  std::vector<Value> out;
  out.reserve(items.size());
  for (const size_t i : order) out.push_back(items[i]);
  return out;
}

Value first(Interpreter&, const Value& subject, Args& args) {
  const Bound bound("first", args, {});
  if (subject.is(Kind::iterator)) {
    IteratorObject& it = subject.iterator();
    if (it.next < it.items.size()) return it.items[it.next++];
    return Value::undefined("no first item, the sequence was empty");
  }
  if (subject.is(Kind::string) && !subject.text().empty())
    return Value::string(subject.text().slice(0, next_code_point(subject.bytes(), 0)), subject.is_markup());
  const auto items = items_of(subject);
  return items.empty() ? Value::undefined("no first item, the sequence was empty") : items.front();
}

Value last(Interpreter&, const Value& subject, Args& args) {
  const Bound bound("last", args, {});
  if (subject.is(Kind::iterator) || subject.is(Kind::host))
    fail_type(fmt::format("'{}' object is not reversible", subject.type_name()));
  const auto items = items_of(subject);
  return items.empty() ? Value::undefined("no last item, the sequence was empty") : items.back();
}

Value length(Interpreter&, const Value& subject, Args& args) {
  const Bound bound("length", args, {});
  const auto size = length_of(subject);
  if (!size) fail_type(fmt::format("object of type '{}' has no len()", subject.type_name()));
  return Value::integer(static_cast<Int>(*size));
}

Value list(Interpreter&, const Value& subject, Args& args) {
  const Bound bound("list", args, {});
  return Value::list(items_of(subject));
}

Value reverse(Interpreter&, const Value& subject, Args& args) {
  const Bound bound("reverse", args, {});
  if (subject.is(Kind::string)) return slice_of(subject, Value::none(), Value::none(), Value::integer(-1));
  auto items = items_of(subject);
  std::reverse(items.begin(), items.end());
  if (subject.is(Kind::iterator)) return Value::list(std::move(items));
  const std::string_view type = subject.is(Kind::list)    ? "list_reverseiterator"
                                : subject.is(Kind::range) ? "range_iterator"
                                : subject.is(Kind::dict)  ? "dict_reversekeyiterator"
                                                          : "reversed";
  return Value::iterator(std::move(items), type);
}

Value items(Interpreter&, const Value& subject, Args& args) {
  const Bound bound("items", args, {});
  if (subject.is(Kind::undefined)) return Value::iterator({});
  if (!subject.is(Kind::dict)) fail_type("can only get item pairs from a mapping");
  return Value::iterator(items_of(Value::view(subject, 2)));
}

Value sort(Interpreter& interpreter, const Value& subject, Args& args) {
  const Bound bound("sort", args, {"reverse", "case_sensitive", "attribute"});
  const bool sensitive = bound.flag(1, false);
  const auto all = items_of(subject);
  std::vector<Value> paths;
  if (bound.present(2) && bound[2].is(Kind::string)) {
    std::string_view rest = bound[2].bytes();
    for (size_t comma; (comma = rest.find(',')) != std::string_view::npos; rest.remove_prefix(comma + 1))
      paths.push_back(Value::string(rest.substr(0, comma)));
    paths.push_back(Value::string(rest));
  } else {
    paths.push_back(bound.has(2) ? bound[2] : Value::none());
  }
  std::vector<Value> keys;
  for (const Value& item : all) {
    std::vector<Value> key;
    for (const Value& path : paths) {
      const Value part = look_up_path(interpreter, item, path, Value());
      key.push_back(sensitive ? part : fold_case(part));
    }
    keys.push_back(Value::list(std::move(key)));
  }
  return Value::list(sorted(all, keys, bound.flag(0, false)));
}

Value dict_sort(Interpreter&, const Value& subject, Args& args) {
  const Bound bound("dictsort", args, {"case_sensitive", "by", "reverse"});
  const bool sensitive = bound.flag(0, false);
  const std::string_view by = bound.string(1, "key");
  if (by != "key" && by != "value") fail_type("dictsort: 'by' must be 'key' or 'value'");
  if (subject.is(Kind::undefined)) fail_undefined(subject);
  if (!subject.is(Kind::dict))
    fail_type(fmt::format("dictsort needs a mapping, not {}", subject.type_name()));
  std::vector<Value> pairs, keys;
  for (const auto& [key, value] : subject.dict().items) {
    pairs.push_back(Value::tuple({key, value}));
    keys.push_back(sensitive ? (by == "key" ? key : value) : fold_case(by == "key" ? key : value));
  }
  return Value::list(sorted(pairs, keys, bound.flag(2, false)));
}

Value unique(Interpreter& interpreter, const Value& subject, Args& args) {
  const Bound bound("unique", args, {"case_sensitive", "attribute"});
  const Value path = bound.has(1) ? bound[1] : Value::none();
  DictObject seen;
  std::vector<Value> out;
  for (const Value& item : items_of(subject)) {
    Value key = look_up_path(interpreter, item, path, Value());
    if (!bound.flag(0, false)) key = fold_case(key);
    if (!hashable(key)) fail_type(fmt::format("unhashable type: '{}'", key.type_name()));
    if (seen.find(key)) continue;
    seen.set(key, Value::none());
    out.push_back(item);
  }
  return Value::iterator(std::move(out));
}

template <bool Max>
Value extreme(Interpreter& interpreter, const Value& subject, Args& args) {
  const Bound bound(Max ? "max" : "min", args, {"case_sensitive", "attribute"});
  const Value path = bound.has(1) ? bound[1] : Value::none();
  const auto all = items_of(subject);
  if (all.empty()) return Value::undefined("no aggregated item, the sequence was empty");
  size_t best = 0;
  Value best_key;
  for (size_t i = 0; i < all.size(); ++i) {
    Value key = look_up_path(interpreter, all[i], path, Value());
    if (!bound.flag(0, false)) key = fold_case(key);
    if (i > 0 && compare(Max ? best_key : key, Max ? key : best_key, Max ? ">" : "<") != -1) continue;
    best = i;
    best_key = std::move(key);
  }
  return all[best];
}

Value sum(Interpreter& interpreter, const Value& subject, Args& args) {
  const Bound bound("sum", args, {"attribute", "start"});
  Value total = bound.has(1) ? bound[1] : Value::integer(0);
  if (total.is(Kind::string)) fail_type("sum() cannot sum strings; use join");
  for (const Value& item : items_of(subject))
    total =
        arithmetic("+", total, bound.present(0) ? look_up_path(interpreter, item, bound[0], Value()) : item);
  return total;
}

Value batch(Interpreter&, const Value& subject, Args& args) {
  const Bound bound("batch", args, {"linecount", "fill_with"}, 1);
  const Int count = bound.integer(0, 0);
  std::vector<Value> out, row;
  for (const Value& item : items_of(subject)) {
    if (static_cast<Int>(row.size()) == count) out.push_back(Value::list(std::exchange(row, {})));
    row.push_back(item);
  }
  if (!row.empty()) {
    if (bound.present(1)) {
      if (count > static_cast<Int>(row.size())) spend(static_cast<size_t>(std::min<Int>(count, INT64_MAX)));
      while (static_cast<Int>(row.size()) < count) row.push_back(bound[1]);
    }
    out.push_back(Value::list(std::move(row)));
  }
  return Value::iterator(std::move(out));
}

Value slice(Interpreter&, const Value& subject, Args& args) {
  const Bound bound("slice", args, {"slices", "fill_with"}, 1);
  const auto all = items_of(subject);
  const Int slices = bound.integer(0, 0);
  if (slices == 0) fail_type("integer division or modulo by zero");
  std::vector<Value> out;
  if (slices < 0) return Value::iterator({});
  const auto size = static_cast<Int>(all.size());
  const Int each = size / slices, extra = size % slices;
  Int begin = 0;
  for (Int i = 0; i < slices; ++i) {
    spend(1);
    const Int end = begin + each + (i < extra ? 1 : 0);
    std::vector<Value> part(all.begin() + static_cast<ptrdiff_t>(begin),
                            all.begin() + static_cast<ptrdiff_t>(end));
    if (bound.present(1) && i >= extra) part.push_back(bound[1]);
    out.push_back(Value::list(std::move(part)));
    begin = end;
  }
  return Value::iterator(std::move(out));
}

Value group_by(Interpreter& interpreter, const Value& subject, Args& args) {
  const Bound bound("groupby", args, {"attribute", "default", "case_sensitive"}, 1);
  const Value otherwise = bound.has(1) ? bound[1] : Value::none();
  const bool sensitive = bound.flag(2, false);
  auto key_of = [&](const Value& item, bool fold) {
    const Value key = look_up_path(interpreter, item, bound[0], otherwise);
    return fold ? fold_case(key) : key;
  };
  const auto all = items_of(subject);
  std::vector<Value> keys;
  for (const Value& item : all) keys.push_back(key_of(item, !sensitive));
  const auto ordered = sorted(all, keys, false);
  std::vector<Value> out, group;
  Value group_key;
  auto flush = [&] {
    if (group.empty()) return;
    const Value shown = key_of(group.front(), false);
    out.push_back(Value::group(shown, Value::list(std::exchange(group, {}))));
  };
  for (const Value& item : ordered) {
    Value key = key_of(item, !sensitive);
    if (!group.empty() && !equal(key, group_key)) flush();
    if (group.empty()) group_key = std::move(key);
    group.push_back(item);
  }
  flush();
  return Value::list(std::move(out));
}

Value random(Interpreter&, const Value&, Args&) {
  fail_type("random is not supported: the same request must give the same prompt");
}

}  // namespace

const std::vector<FilterRow>& sequence_filters() {
  static const std::vector<FilterRow> rows = {
      {"first", first},   {"last", last},          {"length", length},     {"count", length},
      {"list", list},     {"reverse", reverse},    {"items", items},       {"sort", sort},
      {"unique", unique}, {"min", extreme<false>}, {"max", extreme<true>}, {"sum", sum},
      {"batch", batch},   {"slice", slice},        {"groupby", group_by},  {"dictsort", dict_sort},
      {"random", random},
  };
  return rows;
}

}  // namespace millrace::model::jinja
