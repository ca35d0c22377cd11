// HTML escaping and URL quoting. Prompts are not HTML, but templates may call these.
#include <fmt/core.h>

#include "base/utf8.h"
#include "model/internal/jinja_interpreter.h"
#include "model/internal/jinja_text_ops.h"

namespace millrace::model::jinja {

Text escape_html(const Text& text) {
  Text out;
  text.for_each_run([&](std::string_view run, bool marked) {
    std::string escaped;
    for (const char c : run) {
      switch (c) {
        case '&':
          escaped += "&amp;";
          break;
        case '<':
          escaped += "&lt;";
          break;
        case '>':
          escaped += "&gt;";
          break;
        case '"':
          escaped += "&#34;";
          break;
        case '\'':
          escaped += "&#39;";
          break;
        default:
          escaped += c;
      }
    }
    spend_text_growth(out.size(), escaped.size());
    out.append(escaped, marked);
  });
  return out;
}

namespace {

Value escape(Interpreter&, const Value& subject, Args& args) {
  const Bound bound("escape", args, {});
  return subject.is_markup() ? subject : Value::string(escape_html(to_text(subject)), true);
}

Value force_escape(Interpreter&, const Value& subject, Args& args) {
  const Bound bound("forceescape", args, {});
  return Value::string(escape_html(to_text(subject)), true);
}

Value safe(Interpreter&, const Value& subject, Args& args) {
  const Bound bound("safe", args, {});
  return Value::string(to_text(subject), true);
}

// The entities that HTML escaping makes, and numbers; others stay as they are.
std::string unescape_html(std::string_view text) {
  constexpr std::pair<std::string_view, std::string_view> kNamed[] = {
      {"&amp;", "&"},   {"&lt;", "<"},   {"&gt;", ">"},
      {"&quot;", "\""}, {"&apos;", "'"}, {"&nbsp;", "\xC2\xA0"}};
  std::string out;
  for (size_t i = 0; i < text.size();) {
    if (text[i] != '&') {
      out += text[i++];
      continue;
    }
    bool done = false;
    for (const auto& [entity, character] : kNamed)
      if (text.substr(i).starts_with(entity)) {
        out += character;
        i += entity.size();
        done = true;
        break;
      }
    if (done) continue;
    const size_t end = text.substr(i, 12).find(';');
    if (end != std::string_view::npos && text[i + 1] == '#') {
      const bool hex = text[i + 2] == 'x' || text[i + 2] == 'X';
      const std::string_view digits = text.substr(i + (hex ? 3 : 2), end - (hex ? 3 : 2));
      const std::string_view set = hex ? "0123456789abcdefABCDEF" : "0123456789";
      if (!digits.empty() && digits.find_first_not_of(set) == std::string_view::npos) {
        const Int code = parse_int(digits, hex ? 16 : 10).value_or(0xFFFD);
        const bool valid = code > 0 && code <= 0x10FFFF && !(code >= 0xD800 && code <= 0xDFFF);
        utf8_append(out, valid ? static_cast<uint32_t>(code) : 0xFFFD);
        i += end + 1;
        continue;
      }
    }
    out += text[i++];
  }
  return out;
}

Value strip_tags(Interpreter&, const Value& subject, Args& args) {
  const Bound bound("striptags", args, {});
  const Text source = to_text(subject);
  std::string text = source.bytes();
  auto cut = [&text](std::string_view open, std::string_view close) {
    std::string out;
    size_t begin = 0;
    while (true) {
      const size_t at = text.find(open, begin);
      const size_t end = at == std::string::npos ? at : text.find(close, at);
      if (end == std::string::npos) break;
      out += text.substr(begin, at - begin);
      begin = end + close.size();
    }
    text = out + text.substr(begin);
  };
  cut("<!--", "-->");
  cut("<", ">");
  const auto words = split_space(Text(text), -1);
  return Value::string(Text(unescape_html(join(Text(" "), words).bytes()), source.any_marked()));
}

std::string url_quote(std::string_view text, bool query) {
  std::string out;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (std::isalnum(byte) || c == '_' || c == '.' || c == '-' || c == '~' || (c == '/' && !query))
      out += c;
    else if (c == ' ' && query)
      out += '+';
    else
      out += fmt::format("%{:02X}", byte);
  }
  return out;
}

Value url_encode(Interpreter&, const Value& subject, Args& args) {
  const Bound bound("urlencode", args, {});
  if (subject.is(Kind::string) || subject.is_number() || subject.is(Kind::none))
    return Value::string(Text(url_quote(to_text(subject).bytes(), false), contains_marked(subject)));
  std::string out;
  const auto pairs = items_of(subject.is(Kind::dict) ? Value::view(subject, 2) : subject);
  for (const Value& pair : pairs) {
    const auto two = items_of(pair);
    if (two.size() != 2) fail_type("urlencode needs pairs");
    if (!out.empty()) out += '&';
    out += url_quote(to_text(two[0]).bytes(), true) + "=" + url_quote(to_text(two[1]).bytes(), true);
    spend_text(static_cast<Int>(out.size()));
  }
  return Value::string(Text(std::move(out), contains_marked(subject)));
}

Value xml_attributes(Interpreter&, const Value& subject, Args& args) {
  const Bound bound("xmlattr", args, {"autospace"});
  if (subject.is(Kind::undefined)) fail_undefined(subject);
  if (!subject.is(Kind::dict)) fail_type(fmt::format("xmlattr needs a mapping, not {}", subject.type_name()));
  Text out;
  for (const auto& [key, value] : subject.dict().items) {
    if (value.is(Kind::none) || value.is(Kind::undefined)) continue;
    if (!key.is(Kind::string)) fail_type("xmlattr: a key is not a string");
    if (key.bytes().find_first_of(" \t\n\r\f\v/>=") != std::string_view::npos)
      fail_type(fmt::format("invalid character in attribute name: {}", repr(key)));
    if (!out.empty() || bound.flag(0, true)) out.append(" ", false);
    out.append(escape_html(key.text()));
    out.append("=\"", false);
    out.append(value.is_markup() ? value.text() : escape_html(to_text(value)));
    out.append("\"", false);
    spend_text_growth(out.size(), 0);
  }
  return Value::string(std::move(out));
}

Value urlize(Interpreter&, const Value&, Args&) { fail_type("urlize makes HTML links and is not supported"); }

}  // namespace

const std::vector<FilterRow>& markup_filters() {
  static const std::vector<FilterRow> rows = {
      {"escape", escape},
      {"e", escape},
      {"forceescape", force_escape},
      {"safe", safe},
      {"striptags", strip_tags},
      {"urlencode", url_encode},
      {"xmlattr", xml_attributes},
      {"urlize", urlize},
      {"pprint", pretty_print},
  };
  return rows;
}

}  // namespace millrace::model::jinja
