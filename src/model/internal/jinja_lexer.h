// Template source to tokens, by jinja2's rules with trim_blocks and lstrip_blocks on and the last newline
// dropped.
#pragma once
#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"

namespace millrace::model::jinja {

// Thrown inside the interpreter only; ChatTemplate turns it into a Status.
struct TemplateError : std::runtime_error {
  TemplateError(Code c, int at_line, const std::string& message)
      : std::runtime_error(message), code(c), line(at_line) {}
  Code code;
  int line;  // 0: take the line of the node being evaluated; -1: no line belongs in front (raise_exception)
};
[[noreturn]] void fail_syntax(int line, const std::string& message);

enum class TokenKind : uint8_t {
  end,
  data,
  variable_begin,
  variable_end,
  block_begin,
  block_end,
  name,
  string,
  integer,
  real,
  symbol
};

struct Token {
  TokenKind kind = TokenKind::end;
  int line = 1;
  std::string text;  // data, name, string (unescaped), digits of a number, or the operator's characters
  bool is_symbol(std::string_view s) const { return kind == TokenKind::symbol && text == s; }
  bool is_name(std::string_view s) const { return kind == TokenKind::name && text == s; }
};

// The last token is `end`. Throws TemplateError. The source is valid UTF-8.
std::vector<Token> tokenize(std::string_view source);

std::string describe(const Token& token);

}  // namespace millrace::model::jinja
