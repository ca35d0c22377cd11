// Methods of str.
#include <fmt/core.h>

#include <algorithm>

#include "base/utf8.h"
#include "model/internal/jinja_interpreter.h"
#include "model/internal/jinja_text_ops.h"

namespace millrace::model::jinja {
namespace {

Value same_kind(const Value& self, Text text) { return Value::string(std::move(text), self.is_markup()); }

Value texts_to_list(const Value& self, const std::vector<Text>& parts) {
  std::vector<Value> out;
  out.reserve(parts.size());
  for (const Text& part : parts) out.push_back(same_kind(self, part));
  return Value::list(std::move(out));
}

template <auto Function>
Value rewrite(Interpreter&, const Value& self, Args& args) {
  const Bound bound("str method", args, {});
  return same_kind(self, transform(self.text(), Function));
}

template <auto Predicate, bool EmptyIs>
Value all_characters(Interpreter&, const Value& self, Args& args) {
  const Bound bound("str method", args, {});
  const std::string_view bytes = self.bytes();
  spend(bytes.size() / 32);
  if (bytes.empty()) return Value::boolean(EmptyIs);
  for (size_t i = 0; i < bytes.size(); i = next_code_point(bytes, i))
    if (!Predicate(code_point_at(bytes, i))) return Value::boolean(false);
  return Value::boolean(true);
}

bool is_alnum(char32_t c) { return is_alpha(c) || is_decimal(c) || is_digit(c) || is_numeric(c); }
bool is_ascii(char32_t c) { return c < 0x80; }

// islower, isupper: at least one cased character and none of the other case.
template <bool Upper>
Value is_cased_as(Interpreter&, const Value& self, Args& args) {
  const Bound bound("str method", args, {});
  return Value::boolean(all_cased(self.bytes(), Upper));
}

Value is_title_text(Interpreter&, const Value& self, Args& args) {
  const Bound bound("istitle", args, {});
  bool cased = false, previous_cased = false;
  const std::string_view bytes = self.bytes();
  for (size_t i = 0; i < bytes.size(); i = next_code_point(bytes, i)) {
    const char32_t c = code_point_at(bytes, i);
    if (is_upper(c) || is_title(c)) {
      if (previous_cased) return Value::boolean(false);
      previous_cased = cased = true;
    } else if (is_lower(c)) {
      if (!previous_cased) return Value::boolean(false);
      cased = true;
    } else {
      previous_cased = false;
    }
  }
  return Value::boolean(cased);
}

Value is_identifier_text(Interpreter&, const Value& self, Args& args) {
  const Bound bound("isidentifier", args, {});
  return Value::boolean(is_identifier(self.bytes()));
}

template <Side side>
Value strip_method(Interpreter&, const Value& self, Args& args) {
  const Bound bound("strip", args, {"chars"});
  return same_kind(
      self, strip(self.text(), side, bound.present(0) ? std::optional(bound.string(0, "")) : std::nullopt));
}

template <bool Right>
Value split_method(Interpreter&, const Value& self, Args& args) {
  const Bound bound("split", args, {"sep", "maxsplit"});
  const Int max_splits = bound.integer(1, -1);
  if (!bound.present(0))
    return texts_to_list(
        self, Right ? split_space_right(self.text(), max_splits) : split_space(self.text(), max_splits));
  const std::string_view separator = bound.string(0, "");
  if (separator.empty()) fail_type("empty separator");
  return texts_to_list(self, Right ? split_right(self.text(), separator, max_splits)
                                   : split(self.text(), separator, max_splits));
}

Value split_lines_method(Interpreter&, const Value& self, Args& args) {
  const Bound bound("splitlines", args, {"keepends"});
  return texts_to_list(self, split_lines(self.text(), bound.flag(0, false)));
}

template <bool Right>
Value partition_method(Interpreter&, const Value& self, Args& args) {
  const Bound bound("partition", args, {"sep"}, 1);
  const std::string_view separator = bound.string(0, "");
  if (separator.empty()) fail_type("empty separator");
  const Text& text = self.text();
  const size_t at = Right ? text.bytes().rfind(separator) : text.bytes().find(separator);
  const Value empty = same_kind(self, Text());
  if (at == std::string::npos)
    return Right ? Value::tuple({empty, empty, self}) : Value::tuple({self, empty, empty});
  return Value::tuple({same_kind(self, text.slice(0, at)),
                       same_kind(self, text.slice(at, at + separator.size())),
                       same_kind(self, text.slice(at + separator.size(), text.size()))});
}

// The part of self that start and stop select, as find, count, startswith have it.
struct Window {
  Text text;
  size_t begin_code_point = 0;
  bool valid = true;  // false: start is past the end, where not even "" is found
};
Window window(const Value& self, const Bound& bound, size_t start_at) {
  const auto length = static_cast<Int>(self.text().length());
  auto edge = [&](size_t i, Int otherwise) {
    Int v = bound.present(i) ? bound.integer(i, 0) : otherwise;
    if (v < 0) v = std::max<Int>(v + length, 0);
    return v;
  };
  const Int start = edge(start_at, 0), stop = std::min(edge(start_at + 1, length), length);
  if (start > length || start > stop) return {Text(), 0, start <= stop};
  const Text& text = self.text();
  return {text.slice(text.offset_of(static_cast<size_t>(start)), text.offset_of(static_cast<size_t>(stop))),
          static_cast<size_t>(start), true};
}

template <bool Right, bool Raise>
Value find_method_text(Interpreter&, const Value& self, Args& args) {
  const Bound bound("find", args, {"sub", "start", "end"}, 1);
  const std::string_view wanted = bound.string(0, "");
  const Window w = window(self, bound, 1);
  spend(w.text.size() / 32);
  const size_t at = !w.valid ? std::string::npos
                    : Right  ? w.text.bytes().rfind(wanted)
                             : w.text.bytes().find(wanted);
  if (at != std::string::npos)
    return Value::integer(static_cast<Int>(w.begin_code_point + w.text.index_at(at)));
  if (Raise) fail_type("substring not found");
  return Value::integer(-1);
}

Value count_method(Interpreter&, const Value& self, Args& args) {
  const Bound bound("count", args, {"sub", "start", "end"}, 1);
  const std::string_view wanted = bound.string(0, "");
  const Window w = window(self, bound, 1);
  spend(w.text.size() / 32);
  if (!w.valid) return Value::integer(0);
  if (wanted.empty()) return Value::integer(static_cast<Int>(w.text.length()) + 1);
  Int count = 0;
  for (size_t i = w.text.bytes().find(wanted); i != std::string::npos;
       i = w.text.bytes().find(wanted, i + wanted.size()))
    ++count;
  return Value::integer(count);
}

template <bool End>
Value starts_or_ends(Interpreter&, const Value& self, Args& args) {
  const Bound bound("startswith", args, {"prefix", "start", "end"}, 1);
  const Window w = window(self, bound, 1);
  auto matches = [&](const Value& wanted) {
    if (!wanted.is(Kind::string))
      fail_type(
          fmt::format("startswith and endswith need a str or a tuple of str, not {}", wanted.type_name()));
    return w.valid &&
           (End ? w.text.bytes().ends_with(wanted.bytes()) : w.text.bytes().starts_with(wanted.bytes()));
  };
  if (bound[0].is(Kind::undefined)) fail_undefined(bound[0]);
  if (!bound[0].is(Kind::tuple)) return Value::boolean(matches(bound[0]));
  for (const Value& wanted : bound[0].items())
    if (matches(wanted)) return Value::boolean(true);
  return Value::boolean(false);
}

Value replace_method(Interpreter&, const Value& self, Args& args) {
  const Bound bound("replace", args, {"old", "new", "count"}, 2);
  bound.string(0, "");
  bound.string(1, "");
  const Text with =
      self.is_markup() && !bound[1].is_markup() ? escape_html(bound[1].text()) : bound[1].text();
  return same_kind(self, replace(self.text(), bound[0].bytes(), with, bound.integer(2, -1)));
}

Value join_method(Interpreter&, const Value& self, Args& args) {
  const Bound bound("join", args, {"iterable"}, 1);
  std::vector<Text> parts;
  for (const Value& item : items_of(bound[0])) {
    if (item.is(Kind::undefined)) fail_undefined(item);
    if (!item.is(Kind::string)) fail_type(fmt::format("join() needs strings, found {}", item.type_name()));
    parts.push_back(self.is_markup() && !item.is_markup() ? escape_html(item.text()) : item.text());
  }
  return same_kind(self, join(self.text(), parts));
}

template <Side side>
Value pad_method(Interpreter&, const Value& self, Args& args) {
  const Bound bound("center", args, {"width", "fillchar"}, 1);
  const std::string_view fill = bound.string(1, " ");
  if (fill.empty() || next_code_point(fill, 0) != fill.size())
    fail_type("the fill character must be exactly one character long");
  return same_kind(self, pad(self.text(), bound.integer(0, 0), fill, side));
}

Value zfill_method(Interpreter&, const Value& self, Args& args) {
  const Bound bound("zfill", args, {"width"}, 1);
  const Text& text = self.text();
  const bool sign = !text.empty() && (text.bytes()[0] == '+' || text.bytes()[0] == '-');
  const Int width = bound.integer(0, 0);
  if (!sign) return same_kind(self, pad(text, width, "0", Side::right));
  Text out = text.slice(0, 1);
  out.append(pad(text.slice(1, text.size()), width - 1, "0", Side::right));
  return same_kind(self, std::move(out));
}

template <bool Prefix>
Value remove_affix(Interpreter&, const Value& self, Args& args) {
  const Bound bound("removeprefix", args, {"prefix"}, 1);
  const std::string_view affix = bound.string(0, "");
  const Text& text = self.text();
  if (Prefix && text.bytes().starts_with(affix))
    return same_kind(self, text.slice(affix.size(), text.size()));
  if (!Prefix && text.bytes().ends_with(affix))
    return same_kind(self, text.slice(0, text.size() - affix.size()));
  return self;
}

Value expand_tabs(Interpreter&, const Value& self, Args& args) {
  const Bound bound("expandtabs", args, {"tabsize"});
  const Int size = bound.integer(0, 8);
  Text out;
  Int column = 0;
  for (size_t i = 0; i < self.text().size();) {
    const size_t next = next_code_point(self.bytes(), i);
    const char c = self.bytes()[i];
    if (c == '\t') {
      const Int gap = size > 0 ? size - column % size : 0;
      spend_text(static_cast<Int>(out.size()) + gap);
      out.append(std::string(static_cast<size_t>(gap), ' '), false);
      column += gap;
    } else {
      out.append(self.text().slice(i, next));
      column = c == '\n' || c == '\r' ? 0 : column + 1;
    }
    i = next;
  }
  return same_kind(self, std::move(out));
}

Value format_method(Interpreter& interpreter, const Value& self, Args& args) {
  return brace_format(interpreter, self, args);
}

Value encode_method(Interpreter&, const Value&, Args&) {
  fail_type("bytes are not supported in chat templates");
}

constexpr MethodRow kMethods[] = {
    {"capitalize", rewrite<capitalize>},
    {"casefold", rewrite<case_fold>},
    {"center", pad_method<Side::both>},
    {"count", count_method},
    {"encode", encode_method},
    {"endswith", starts_or_ends<true>},
    {"expandtabs", expand_tabs},
    {"find", find_method_text<false, false>},
    {"format", format_method},
    {"index", find_method_text<false, true>},
    {"isalnum", all_characters<is_alnum, false>},
    {"isalpha", all_characters<is_alpha, false>},
    {"isascii", all_characters<is_ascii, true>},
    {"isdecimal", all_characters<is_decimal, false>},
    {"isdigit", all_characters<is_digit, false>},
    {"isidentifier", is_identifier_text},
    {"islower", is_cased_as<false>},
    {"isnumeric", all_characters<is_numeric, false>},
    {"isprintable", all_characters<is_printable, true>},
    {"isspace", all_characters<is_space, false>},
    {"istitle", is_title_text},
    {"isupper", is_cased_as<true>},
    {"join", join_method},
    {"ljust", pad_method<Side::left>},
    {"lower", rewrite<to_lower>},
    {"lstrip", strip_method<Side::left>},
    {"partition", partition_method<false>},
    {"removeprefix", remove_affix<true>},
    {"removesuffix", remove_affix<false>},
    {"replace", replace_method},
    {"rfind", find_method_text<true, false>},
    {"rindex", find_method_text<true, true>},
    {"rjust", pad_method<Side::right>},
    {"rpartition", partition_method<true>},
    {"rsplit", split_method<true>},
    {"rstrip", strip_method<Side::right>},
    {"split", split_method<false>},
    {"splitlines", split_lines_method},
    {"startswith", starts_or_ends<false>},
    {"strip", strip_method<Side::both>},
    {"swapcase", rewrite<swap_case>},
    {"title", rewrite<title_case>},
    {"upper", rewrite<to_upper>},
    {"zfill", zfill_method},
};

}  // namespace

bool all_cased(std::string_view bytes, bool upper) {
  bool cased = false;
  for (size_t i = 0; i < bytes.size(); i = next_code_point(bytes, i)) {
    const char32_t c = code_point_at(bytes, i);
    if (is_title(c) || (upper ? is_lower(c) : is_upper(c))) return false;
    cased = cased || (upper ? is_upper(c) : is_lower(c));
  }
  return cased;
}

Method find_text_method(std::string_view name) {
  for (const auto& [known, method] : kMethods)
    if (known == name) return method;
  return nullptr;
}

}  // namespace millrace::model::jinja
