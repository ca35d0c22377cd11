// Filters on text.
#include <fmt/core.h>

#include <algorithm>

#include "model/internal/jinja_interpreter.h"
#include "model/internal/jinja_text_ops.h"

namespace millrace::model::jinja {
namespace {

Value same_kind(const Value& like, Text text) { return Value::string(std::move(text), like.is_markup()); }

template <auto Function>
Value rewrite(Interpreter&, const Value& subject, Args& args) {
  const Bound bound("filter", args, {});
  return same_kind(subject, transform(to_text(subject), Function));
}

// Words begin after spaces and opening punctuation; unlike str.title, not after an apostrophe.
std::string title_words(std::string_view text) {
  std::string out;
  std::string word;
  auto flush = [&] {
    if (word.empty()) return;
    const size_t first = next_code_point(word, 0);
    append_with_case(out, code_point_at(word, 0), Case::upper);
    out += to_lower(std::string_view(word).substr(first));
    word.clear();
  };
  for (size_t i = 0; i < text.size();) {
    const size_t next = next_code_point(text, i);
    const char32_t c = code_point_at(text, i);
    const bool breaks = is_space(c) || c == '-' || c == '(' || c == '{' || c == '[' || c == '<';
    if (breaks) flush();
    (breaks ? out : word) += text.substr(i, next - i);
    i = next;
  }
  flush();
  return out;
}

Value trim(Interpreter&, const Value& subject, Args& args) {
  const Bound bound("trim", args, {"chars"});
  return same_kind(subject, strip(to_text(subject), Side::both,
                                  bound.present(0) ? std::optional(bound.string(0, "")) : std::nullopt));
}

Value replace_filter(Interpreter&, const Value& subject, Args& args) {
  const Bound bound("replace", args, {"old", "new", "count"}, 2);
  const Text old = to_text(bound[0]), with = to_text(bound[1]);
  const Int count = bound.present(2) ? bound.integer(2, -1) : -1;
  return Value::string(replace(to_text(subject), old.bytes(), with, count));
}

Value center(Interpreter&, const Value& subject, Args& args) {
  const Bound bound("center", args, {"width"});
  return same_kind(subject, pad(to_text(subject), bound.integer(0, 80), " ", Side::both));
}

const Text& text_of(const Value& v, std::string_view filter) {
  if (v.is(Kind::undefined)) fail_undefined(v);
  if (!v.is(Kind::string)) fail_type(fmt::format("{} needs a string, not {}", filter, v.type_name()));
  return v.text();
}

Value indent(Interpreter&, const Value& subject, Args& args) {
  const Bound bound("indent", args, {"width", "first", "blank"});
  Text indention;
  if (bound.has(0) && bound[0].is(Kind::string)) {
    indention = bound[0].text();
  } else {
    const Int width = std::max<Int>(bound.integer(0, 4), 0);
    spend_text(width);
    indention = Text(std::string(static_cast<size_t>(width), ' '));
  }
  const bool first = bound.flag(1, false), blank = bound.flag(2, false);
  Text source = text_of(subject, "indent");
  source.append("\n", false);
  const auto lines = split_lines(source, false);
  Text out;
  for (size_t i = 0; i < lines.size(); ++i) {
    spend_text_growth(out.size(), lines[i].size() + indention.size());
    if (i > 0) out.append("\n", false);
    if (i > 0 ? blank || !lines[i].empty() : first) out.append(indention);
    out.append(lines[i]);
  }
  return same_kind(subject, std::move(out));
}

Value truncate(Interpreter&, const Value& subject, Args& args) {
  const Bound bound("truncate", args, {"length", "killwords", "end", "leeway"});
  const Text& text = text_of(subject, "truncate");
  const Int length = bound.integer(0, 255);
  const Text end = bound.has(2) ? text_of(bound[2], "truncate") : Text("...");
  const Int leeway = bound.present(3) ? bound.integer(3, 5) : 5;
  const auto end_length = static_cast<Int>(end.length());
  if (length < end_length)
    fail_type(fmt::format("truncate: the length {} is less than that of the ending, {}", int_text(length),
                          int_text(end_length)));
  if (leeway < 0) fail_type("truncate: the leeway is negative");
  if (static_cast<Int>(text.length()) <= length + leeway) return subject;
  Text cut = text.slice(0, text.offset_of(static_cast<size_t>(length - end_length)));
  if (!bound.flag(1, false)) cut = split_right(cut, " ", 1).front();
  cut.append(end);
  return same_kind(subject, std::move(cut));
}

bool is_word(char32_t c) { return c == '_' || is_alpha(c) || is_decimal(c) || is_digit(c) || is_numeric(c); }

Value word_count(Interpreter&, const Value& subject, Args& args) {
  const Bound bound("wordcount", args, {});
  const Text text = to_text(subject);
  Int count = 0;
  bool inside = false;
  for (size_t i = 0; i < text.size(); i = next_code_point(text.bytes(), i)) {
    const bool word = is_word(code_point_at(text.bytes(), i));
    count += word && !inside;
    inside = word;
  }
  return Value::integer(count);
}

Value join_filter(Interpreter& interpreter, const Value& subject, Args& args) {
  const Bound bound("join", args, {"d", "attribute"});
  std::vector<Text> parts;
  for (const Value& item : items_of(subject))
    parts.push_back(to_text(bound.present(1) ? look_up_path(interpreter, item, bound[1], Value()) : item));
  return Value::string(join(bound.has(0) ? to_text(bound[0]) : Text(), parts));
}

Value string_filter(Interpreter&, const Value& subject, Args& args) {
  const Bound bound("string", args, {});
  return to_string_value(subject);
}

Value format_filter(Interpreter&, const Value& subject, Args& args) {
  const Value format = to_string_value(subject);
  if (!args.positional.empty() && !args.named.empty())
    fail_type("format takes either positional or keyword arguments");
  if (args.named.empty()) return percent_format(format, Value::tuple(args.positional));
  auto dict = std::make_shared<DictObject>();
  for (auto& [name, value] : args.named) dict->set(Value::string(name), value);
  return percent_format(format, Value::dict(std::move(dict)));
}

Value to_json_filter(Interpreter&, const Value& subject, Args& args) {
  const Bound bound("tojson", args, {"ensure_ascii", "indent", "separators", "sort_keys"});
  std::optional<std::string> indent;
  if (bound.present(1)) {
    if (bound[1].is(Kind::string)) {
      indent = std::string(bound[1].bytes());
    } else {
      const Int width = std::max<Int>(bound.integer(1, 0), 0);
      constexpr Int kMaxIndent = 256;
      if (width > kMaxIndent) fail_limit(fmt::format("tojson: an indent over {}", int_text(kMaxIndent)));
      indent = std::string(static_cast<size_t>(width), ' ');
    }
  }
  std::string item_separator = indent ? "," : ", ", key_separator = ": ";
  if (bound.present(2)) {
    const auto pair = items_of(bound[2]);
    if (pair.size() != 2 || !pair[0].is(Kind::string) || !pair[1].is(Kind::string))
      fail_type("tojson: separators must be two strings");
    item_separator = pair[0].bytes();
    key_separator = pair[1].bytes();
  }
  return Value::string(Text(
      to_json(subject, bound.flag(0, false), indent, item_separator, key_separator, bound.flag(3, false)),
      contains_marked(subject)));
}

}  // namespace

const std::vector<FilterRow>& text_filters() {
  static const std::vector<FilterRow> rows = {
      {"upper", rewrite<to_upper>},
      {"lower", rewrite<to_lower>},
      {"capitalize", rewrite<capitalize>},
      {"title", rewrite<title_words>},
      {"trim", trim},
      {"replace", replace_filter},
      {"center", center},
      {"indent", indent},
      {"truncate", truncate},
      {"wordwrap", word_wrap},
      {"wordcount", word_count},
      {"join", join_filter},
      {"string", string_filter},
      {"format", format_filter},
      {"tojson", to_json_filter},
  };
  return rows;
}

}  // namespace millrace::model::jinja
