#include "model/internal/jinja_lexer.h"

#include <fmt/core.h>

#include <algorithm>

#include "base/utf8.h"
#include "model/internal/jinja_text.h"

namespace millrace::model::jinja {
namespace {

bool is_ascii_digit(char c) { return c >= '0' && c <= '9'; }

std::string normalize_newlines(std::string_view source) {
  std::string out;
  out.reserve(source.size());
  for (size_t i = 0; i < source.size(); ++i) {
    if (source[i] == '\r') {
      out += '\n';
      if (i + 1 < source.size() && source[i + 1] == '\n') ++i;
    } else {
      out += source[i];
    }
  }
  if (!out.empty() && out.back() == '\n') out.pop_back();
  return out;
}

class Lexer {
 public:
  explicit Lexer(std::string_view source) : source_(normalize_newlines(source)) {}

  std::vector<Token> run() {
    while (position_ < source_.size()) root();
    add(TokenKind::end, "");
    return std::move(tokens_);
  }

 private:
  std::string_view rest() const { return std::string_view(source_).substr(position_); }
  bool at(std::string_view s) const { return rest().starts_with(s); }
  void add(TokenKind kind, std::string text) { tokens_.push_back({kind, line_, std::move(text)}); }

  // Moves on, counting lines, and remembers whether the match ended a line (lstrip_blocks asks).
  void advance(size_t end) {
    line_ += static_cast<int>(std::count(source_.begin() + static_cast<ptrdiff_t>(position_),
                                         source_.begin() + static_cast<ptrdiff_t>(end), '\n'));
    position_ = end;
    line_starting_ = end > 0 && source_[end - 1] == '\n';
  }

  size_t skip_space(size_t i) const {
    while (i < source_.size() && is_space(code_point_at(source_, i))) i = next_code_point(source_, i);
    return i;
  }

  // The text before a tag: what '-' strips, what lstrip_blocks strips.
  void add_data(size_t begin, size_t end, char sign, bool variable) {
    std::string_view text = std::string_view(source_).substr(begin, end - begin);
    if (sign == '-') {
      while (!text.empty()) {
        const size_t last = previous_code_point(text, text.size());
        if (!is_space(code_point_at(text, last))) break;
        text = text.substr(0, last);
      }
    } else if (sign != '+' && !variable) {
      const size_t newline = text.rfind('\n');
      const size_t line_begin = newline == std::string_view::npos ? 0 : newline + 1;
      if (line_begin > 0 || line_starting_) {
        size_t i = line_begin;
        while (i < text.size() && is_space(code_point_at(text, i))) i = next_code_point(text, i);
        if (i == text.size()) text = text.substr(0, line_begin);
      }
    }
    if (!text.empty()) add(TokenKind::data, std::string(text));
  }

  char sign_at(size_t i) const {
    return i < source_.size() && (source_[i] == '-' || source_[i] == '+') ? source_[i] : 0;
  }

  // After "{%": the end of a raw tag's opening, or npos if this is another tag.
  size_t raw_begin(size_t i) const {
    if (sign_at(i)) ++i;
    i = skip_space(i);
    if (source_.compare(i, 3, "raw") != 0) return std::string::npos;
    i = skip_space(i + 3);
    if (source_.compare(i, 3, "-%}") == 0) return skip_space(i + 3);
    if (source_.compare(i, 2, "%}") == 0) return i + 2;
    return std::string::npos;
  }

  void root() {
    size_t tag = position_;
    while (true) {
      tag = source_.find('{', tag);
      if (tag == std::string::npos || tag + 1 >= source_.size()) {
        add(TokenKind::data, source_.substr(position_));
        return advance(source_.size());
      }
      const char c = source_[tag + 1];
      if (c == '%' || c == '{' || c == '#') break;
      ++tag;
    }
    const char kind = source_[tag + 1];
    const size_t begin = position_;
    const char sign = sign_at(tag + 2);
    const bool variable = kind == '{';
    const size_t raw = kind == '%' ? raw_begin(tag + 2) : std::string::npos;
    add_data(begin, tag, sign, variable);
    if (raw != std::string::npos) {
      advance(raw);
      return raw_block();
    }
    advance(tag + 2 + (sign ? 1 : 0));
    if (kind == '#') return comment();
    add(variable ? TokenKind::variable_begin : TokenKind::block_begin, "");
    expression(variable);
  }

  // The end of a tag at i (its sign included), with what trim_blocks and '-' take after it; npos if none is
  // here.
  size_t tag_end(size_t i, std::string_view close) const {
    const char sign = sign_at(i);
    if (sign) ++i;
    if (source_.compare(i, close.size(), close) != 0) return std::string::npos;
    i += close.size();
    if (sign == '-') return skip_space(i);
    if (sign == '+') return i;
    return i < source_.size() && source_[i] == '\n' ? i + 1 : i;
  }

  void comment() {
    const size_t close = source_.find("#}", position_);
    if (close == std::string::npos) fail_syntax(line_, "the comment is not closed with '#}'");
    const bool sign = close > position_ && sign_at(close - 1);
    advance(tag_end(sign ? close - 1 : close, "#}"));
  }

  void raw_block() {
    size_t i = position_;
    while ((i = source_.find("{%", i)) != std::string::npos) {
      const char sign = sign_at(i + 2);
      size_t j = skip_space(i + 2 + (sign ? 1 : 0));
      if (source_.compare(j, 6, "endraw") == 0) {
        const size_t end = tag_end(skip_space(j + 6), "%}");
        if (end != std::string::npos) {
          add_data(position_, i, sign, false);
          return advance(end);
        }
      }
      ++i;
    }
    fail_syntax(line_, "the raw block is not closed with '{% endraw %}'");
  }

  void expression(bool variable) {
    std::string closers;
    while (true) {
      const size_t i = skip_space(position_);
      if (i > position_) advance(i);
      if (position_ >= source_.size()) fail_syntax(line_, "the template ends inside a tag");
      if (closers.empty()) {
        const size_t end = variable ? variable_end() : tag_end(position_, "%}");
        if (end != std::string::npos) {
          add(variable ? TokenKind::variable_end : TokenKind::block_end, "");
          return advance(end);
        }
      }
      token(closers);
    }
  }

  size_t variable_end() const {
    if (at("-}}")) return skip_space(position_ + 3);
    return at("}}") ? position_ + 2 : std::string::npos;
  }

  void token(std::string& closers) {
    const char c = source_[position_];
    if (is_ascii_digit(c)) return number();
    if (c == '"' || c == '\'') return string(c);
    const char32_t code = code_point_at(source_, position_);
    if (code == '_' || is_alpha(code) || code >= 0x80) return name();
    for (const std::string_view two : {"//", "**", "==", "!=", ">=", "<="})
      if (at(two)) {
        add(TokenKind::symbol, std::string(two));
        return advance(position_ + 2);
      }
    if (std::string_view("+-/*%~[](){}<>=.:|,;").find(c) == std::string_view::npos)
      fail_syntax(line_, fmt::format("unexpected character '{}'", c));
    balance(closers, c);
    add(TokenKind::symbol, std::string(1, c));
    advance(position_ + 1);
  }

  void balance(std::string& closers, char c) const {
    if (c == '{') closers += '}';
    if (c == '(') closers += ')';
    if (c == '[') closers += ']';
    if (c != '}' && c != ')' && c != ']') return;
    if (closers.empty()) fail_syntax(line_, fmt::format("unexpected '{}'", c));
    if (closers.back() != c)
      fail_syntax(line_, fmt::format("unexpected '{}', expected '{}'", c, closers.back()));
    closers.pop_back();
  }

  void name() {
    size_t i = position_;
    while (i < source_.size()) {
      const char32_t c = code_point_at(source_, i);
      if (c < 0x80 ? !(c == '_' || is_alpha(c) || is_ascii_digit(static_cast<char>(c)))
                   : !is_identifier("a" + source_.substr(i, next_code_point(source_, i) - i)))
        break;
      i = next_code_point(source_, i);
    }
    std::string text = source_.substr(position_, i - position_);
    if (!is_identifier(text)) fail_syntax(line_, "invalid character in a tag");
    add(TokenKind::name, std::move(text));
    advance(i);
  }

  // Digits with single underscores between them, from i; npos if there is none.
  template <class IsDigit>
  size_t digits(size_t i, IsDigit&& is_digit_here) const {
    if (i >= source_.size() || !is_digit_here(source_[i])) return std::string::npos;
    while (i < source_.size()) {
      if (is_digit_here(source_[i]))
        ++i;
      else if (source_[i] == '_' && i + 1 < source_.size() && is_digit_here(source_[i + 1]))
        i += 2;
      else
        break;
    }
    return i;
  }

  size_t exponent(size_t i) const {
    if (i >= source_.size() || (source_[i] != 'e' && source_[i] != 'E')) return std::string::npos;
    return digits(i + 1 + (sign_at(i + 1) ? 1 : 0), is_ascii_digit);
  }

  void number() {
    const bool after_dot = position_ > 0 && source_[position_ - 1] == '.';
    const size_t whole = digits(position_, is_ascii_digit);
    size_t end = std::string::npos;
    if (!after_dot) {  // "a.1.2" is two subscripts, not a float
      const size_t fraction = whole < source_.size() && source_[whole] == '.'
                                  ? digits(whole + 1, is_ascii_digit)
                                  : std::string::npos;
      const size_t mantissa = fraction == std::string::npos ? whole : fraction;
      end = exponent(mantissa);
      if (end == std::string::npos) end = fraction;
    }
    if (end != std::string::npos) return add_number(TokenKind::real, end);
    if (source_[position_] == '0') return add_number(TokenKind::integer, zero_number_end());
    add_number(TokenKind::integer, whole);
  }

  size_t zero_number_end() const {
    const char base = position_ + 1 < source_.size() ? static_cast<char>(source_[position_ + 1] | 0x20) : 0;
    auto prefixed = [&](auto&& is_digit_here) {
      size_t i = position_ + 2;
      if (i < source_.size() && source_[i] == '_') ++i;
      return digits(i, is_digit_here);
    };
    size_t end = std::string::npos;
    if (base == 'x')
      end = prefixed([](char c) { return is_ascii_digit(c) || ((c | 0x20) >= 'a' && (c | 0x20) <= 'f'); });
    if (base == 'o') end = prefixed([](char c) { return c >= '0' && c <= '7'; });
    if (base == 'b') end = prefixed([](char c) { return c == '0' || c == '1'; });
    if (end != std::string::npos) return end;
    return digits(position_, [](char c) { return c == '0'; });
  }

  void add_number(TokenKind kind, size_t end) {
    std::string text = source_.substr(position_, end - position_);
    std::erase(text, '_');
    add(kind, std::move(text));
    advance(end);
  }

  void string(char quote) {
    size_t i = position_ + 1;
    while (i < source_.size() && source_[i] != quote) i += source_[i] == '\\' ? 2 : 1;
    if (i >= source_.size()) fail_syntax(line_, "the string is not closed");
    add(TokenKind::string, unescape(std::string_view(source_).substr(position_ + 1, i - position_ - 1)));
    advance(i + 1);
  }

  std::string unescape(std::string_view text) const {
    std::string out;
    out.reserve(text.size());
    for (size_t i = 0; i < text.size(); ++i) {
      if (text[i] != '\\') {
        out += text[i];
        continue;
      }
      const char c = text[++i];
      constexpr std::string_view kFrom = "abfnrtv\\'\"", kTo = "\a\b\f\n\r\t\v\\'\"";
      if (const size_t k = kFrom.find(c); k != std::string_view::npos)
        out += kTo[k];
      else if (c == '\n')
        continue;
      else if (c == 'x' || c == 'u' || c == 'U')
        i = hex_escape(text, i, out);
      else if (c >= '0' && c <= '7')
        i = octal_escape(text, i, out);
      else if (c == 'N')
        fail_syntax(line_, "\\N{...} escapes are not supported");
      else
        (out += '\\') += c;
    }
    return out;
  }

  size_t hex_escape(std::string_view text, size_t i, std::string& out) const {
    const size_t count = text[i] == 'x' ? 2 : text[i] == 'u' ? 4 : 8;
    uint32_t code = 0;
    for (size_t k = 1; k <= count; ++k) {
      const char c = i + k < text.size() ? text[i + k] : '?';
      const int low = c | 0x20;
      if (!is_ascii_digit(c) && !(low >= 'a' && low <= 'f'))
        fail_syntax(line_, fmt::format("the escape \\{} needs {} hexadecimal digits", text[i], count));
      code = code * 16 + static_cast<uint32_t>(is_ascii_digit(c) ? c - '0' : low - 'a' + 10);
    }
    if (code > 0x10FFFF || (code >= 0xD800 && code <= 0xDFFF))
      fail_syntax(line_, fmt::format("the escape U+{:04X} is not a character", code));
    utf8_append(out, code);
    return i + count;
  }

  static size_t octal_escape(std::string_view text, size_t i, std::string& out) {
    uint32_t code = 0;
    size_t k = 0;
    for (; k < 3 && i + k < text.size() && text[i + k] >= '0' && text[i + k] <= '7'; ++k)
      code = code * 8 + static_cast<uint32_t>(text[i + k] - '0');
    utf8_append(out, code);
    return i + k - 1;
  }

  const std::string source_;
  size_t position_ = 0;
  int line_ = 1;
  bool line_starting_ = true;
  std::vector<Token> tokens_;
};

}  // namespace

void fail_syntax(int line, const std::string& message) {
  throw TemplateError(Code::invalid_argument, line, message);
}

std::vector<Token> tokenize(std::string_view source) { return Lexer(source).run(); }

std::string describe(const Token& token) {
  switch (token.kind) {
    case TokenKind::end:
      return "the end of the template";
    case TokenKind::data:
      return "text";
    case TokenKind::variable_begin:
      return "'{{'";
    case TokenKind::variable_end:
      return "'}}'";
    case TokenKind::block_begin:
      return "'{%'";
    case TokenKind::block_end:
      return "'%}'";
    case TokenKind::string:
      return "a string";
    default:
      return "'" + token.text + "'";
  }
}

}  // namespace millrace::model::jinja
