// Filters that lay text out in lines: wordwrap (Python's textwrap) and pprint.
#include <fmt/core.h>

#include <algorithm>

#include "model/internal/jinja_interpreter.h"
#include "model/internal/jinja_text_ops.h"

namespace millrace::model::jinja {
namespace {

bool is_wrap_space(char32_t c) { return c == ' ' || (c >= 0x09 && c <= 0x0D); }
bool is_word(char32_t c) { return c == '_' || is_alpha(c) || is_decimal(c) || is_digit(c) || is_numeric(c); }
bool is_letter(char32_t c) { return is_word(c) && !is_decimal(c); }
bool is_word_or_mark(char32_t c) {
  return is_word(c) || c == '!' || c == '"' || c == '\'' || c == '&' || c == '.' || c == ',' || c == '?';
}

// Cuts a line into spaces, words and the parts of hyphenated words, where textwrap may break it.
class Chunks {
 public:
  Chunks(const Text& line, bool hyphens) : line_(line), hyphens_(hyphens) {
    for (size_t i = 0; i < line.size(); i = next_code_point(line.bytes(), i)) {
      offsets_.push_back(i);
      code_.push_back(code_point_at(line.bytes(), i));
    }
    offsets_.push_back(line.size());
  }

  std::vector<Text> run() {
    std::vector<Text> out;
    for (size_t i = 0; i < code_.size();) {
      const size_t end = chunk_end(i);
      out.push_back(line_.slice(offsets_[i], offsets_[end]));
      i = end;
    }
    return out;
  }

 private:
  char32_t at(size_t i) const { return i < code_.size() ? code_[i] : 0; }

  size_t chunk_end(size_t begin) const {
    size_t i = begin;
    if (is_wrap_space(code_[i])) {
      while (i < code_.size() && is_wrap_space(code_[i])) ++i;
      return i;
    }
    if (!hyphens_) {
      while (i < code_.size() && !is_wrap_space(code_[i])) ++i;
      return i;
    }
    if (dashes(begin) >= 2 && begin > 0 && is_word_or_mark(code_[begin - 1]) &&
        is_word(at(begin + dashes(begin))))
      return begin + dashes(begin);
    for (i = begin + 1;; ++i) {
      if (i >= code_.size() || is_wrap_space(code_[i])) return i;
      if (code_[i] == '-' && breaks_after_hyphen(i)) return i + 1;
      if (is_word_or_mark(code_[i - 1]) && dashes(i) >= 2 && is_word(at(i + dashes(i)))) return i;
    }
  }

  size_t dashes(size_t i) const {
    size_t n = 0;
    while (at(i + n) == '-') ++n;
    return n;
  }

  // "ab-cd" breaks after its hyphen, and so does "a-b-cd"; a lone letter before it does not.
  bool breaks_after_hyphen(size_t i) const {
    const bool two_letters = i >= 2 && is_letter(code_[i - 1]) && is_letter(code_[i - 2]);
    const bool short_part =
        i >= 3 && is_word_or_mark(code_[i - 1]) && code_[i - 2] == '-' && is_letter(code_[i - 3]);
    if (!two_letters && !short_part) return false;
    return is_letter(at(i + 1)) && (is_letter(at(i + 2)) || (at(i + 2) == '-' && is_letter(at(i + 3))));
  }

  const Text& line_;
  const bool hyphens_;
  std::vector<size_t> offsets_;
  std::vector<char32_t> code_;
};

bool blank(const Text& text) { return strip(text, Side::both, std::nullopt).empty(); }

std::vector<Text> wrap_line(const Text& line, size_t width, bool break_words, bool hyphens) {
  std::vector<Text> chunks = Chunks(line, hyphens).run(), lines;
  std::reverse(chunks.begin(), chunks.end());
  while (!chunks.empty()) {
    spend(1);
    std::vector<Text> current;
    size_t length = 0;
    if (blank(chunks.back()) && !lines.empty()) chunks.pop_back();
    while (!chunks.empty()) {
      const size_t size = chunks.back().length();
      if (length + size > width) break;
      current.push_back(std::move(chunks.back()));
      chunks.pop_back();
      length += size;
    }
    if (!chunks.empty() && chunks.back().length() > width) {
      const size_t room = width < 1 ? 1 : width - length;
      if (break_words) {
        Text& last = chunks.back();
        size_t end = std::min(room, last.length());
        if (hyphens && last.length() > room) {
          const Text head = last.slice(0, last.offset_of(room));
          const size_t hyphen = head.bytes().rfind('-');
          if (hyphen != std::string::npos && hyphen > 0 && head.bytes().find_first_not_of('-') < hyphen)
            end = head.index_at(hyphen) + 1;
        }
        const size_t cut = last.offset_of(end);
        current.push_back(last.slice(0, cut));
        last = last.slice(cut, last.size());
      } else if (current.empty()) {
        current.push_back(std::move(chunks.back()));
        chunks.pop_back();
      }
    }
    if (!current.empty() && blank(current.back())) current.pop_back();
    if (!current.empty()) lines.push_back(join(Text(), current));
  }
  return lines;
}

// Python's pprint at width 80: what fits stays on one line, containers open one item a line. Long strings
// stay whole.
class PrettyPrinter {
 public:
  std::string run(const Value& v) {
    write(v, 0, 0);
    return std::move(out_);
  }

 private:
  static constexpr size_t kWidth = 80;

  // repr with dict keys sorted, as pprint shows them.
  static std::string flat(const Value& v) {
    spend(1);
    std::string out;
    auto separated = [&](const std::string& part) { out += (out.size() > 1 ? ", " : "") + part; };
    switch (v.kind()) {
      case Kind::dict:
        out = "{";
        for (const auto& [key, value] : sorted_items(v.dict())) separated(flat(key) + ": " + flat(value));
        return out + "}";
      case Kind::list:
      case Kind::tuple:
        out = v.is(Kind::list) ? "[" : "(";
        for (const Value& item : v.items()) separated(flat(item));
        return out + (v.is(Kind::list) ? "]" : v.items().size() == 1 ? ",)" : ")");
      default:
        return repr(v);
    }
  }

  static std::vector<std::pair<Value, Value>> sorted_items(const DictObject& dict) {
    auto items = dict.items;
    std::stable_sort(items.begin(), items.end(), [](const auto& a, const auto& b) {
      if (a.first.is(Kind::string) && b.first.is(Kind::string)) return a.first.bytes() < b.first.bytes();
      if (a.first.is_number() && b.first.is_number()) return compare(a.first, b.first, "<") < 0;
      return a.first.type_name() < b.first.type_name();
    });
    return items;
  }

  void write(const Value& v, size_t indent, size_t allowance) {
    const std::string line = flat(v);
    spend_text_growth(out_.size(), line.size());
    const bool container = v.is(Kind::dict) || v.is(Kind::list) || v.is(Kind::tuple);
    if (!container || Text(line).length() <= kWidth - std::min(kWidth, indent + allowance)) {
      out_ += line;
      return;
    }
    const char close = v.is(Kind::dict) ? '}' : v.is(Kind::list) ? ']' : ')';
    out_ += v.is(Kind::dict) ? '{' : v.is(Kind::list) ? '[' : '(';
    const std::string gap = ",\n" + std::string(indent + 1, ' ');
    if (v.is(Kind::dict)) {
      const auto items = sorted_items(v.dict());
      for (size_t i = 0; i < items.size(); ++i) {
        if (i > 0) out_ += gap;
        const std::string key = flat(items[i].first) + ": ";
        out_ += key;
        write(items[i].second, indent + 1 + Text(key).length(), i + 1 == items.size() ? allowance + 1 : 1);
      }
    } else {
      for (size_t i = 0; i < v.items().size(); ++i) {
        if (i > 0) out_ += gap;
        write(v.items()[i], indent + 1, i + 1 == v.items().size() ? allowance + 1 : 1);
      }
      if (v.is(Kind::tuple) && v.items().size() == 1) out_ += ',';
    }
    out_ += close;
  }

  std::string out_;
};

}  // namespace

Value word_wrap(Interpreter&, const Value& subject, Args& args) {
  const Bound bound("wordwrap", args, {"width", "break_long_words", "wrapstring", "break_on_hyphens"});
  if (subject.is(Kind::undefined)) fail_undefined(subject);
  if (!subject.is(Kind::string))
    fail_type(fmt::format("wordwrap needs a string, not {}", subject.type_name()));
  const Int width = bound.integer(0, 79);
  if (width <= 0) fail_type(fmt::format("invalid width {} (must be > 0)", int_text(width)));
  const Text separator = bound.present(2) ? to_text(bound[2]) : Text("\n");
  std::vector<Text> lines;
  for (const Text& line : split_lines(subject.text(), false)) {
    const auto wrapped = wrap_line(line, static_cast<size_t>(std::min<Int>(width, INT32_MAX)),
                                   bound.flag(1, true), bound.flag(3, true));
    lines.push_back(join(separator, wrapped));
  }
  return Value::string(join(separator, lines));
}

Value pretty_print(Interpreter&, const Value& subject, Args& args) {
  const Bound bound("pprint", args, {});
  return Value::string(Text(PrettyPrinter().run(subject), contains_marked(subject)));
}

}  // namespace millrace::model::jinja
