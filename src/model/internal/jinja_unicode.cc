// Character classes and case of Python's str, over utf8proc and a small generated table of what it lacks.
#include <utf8proc.h>

#include <algorithm>
#include <iterator>

#include "base/utf8.h"
#include "model/internal/jinja_text.h"

namespace millrace::model::jinja {
namespace {

struct LongCase {
  char32_t from;
  const char* to;
};
struct CodePointRange {
  char32_t first, last;
};
#include "model/internal/jinja_unicode_tables.inc"

template <size_t N>
bool in_ranges(const CodePointRange (&ranges)[N], char32_t c) {
  const auto* it = std::upper_bound(std::begin(ranges), std::end(ranges), c,
                                    [](char32_t value, const CodePointRange& r) { return value < r.first; });
  return it != std::begin(ranges) && c <= std::prev(it)->last;
}

template <size_t N>
const char* long_case(const LongCase (&table)[N], char32_t c) {
  const auto* it = std::lower_bound(std::begin(table), std::end(table), c,
                                    [](const LongCase& row, char32_t value) { return row.from < value; });
  return it != std::end(table) && it->from == c ? it->to : nullptr;
}

utf8proc_category_t category(char32_t c) { return utf8proc_category(static_cast<utf8proc_int32_t>(c)); }

bool is_cased(char32_t c) { return is_upper(c) || is_lower(c) || is_title(c); }

bool is_case_ignorable(char32_t c) {
  const auto k = category(c);
  return k == UTF8PROC_CATEGORY_MN || k == UTF8PROC_CATEGORY_ME || k == UTF8PROC_CATEGORY_CF ||
         k == UTF8PROC_CATEGORY_LM || k == UTF8PROC_CATEGORY_SK || c == '\'' || c == '.' || c == ':' ||
         c == 0xB7 || c == 0x2018 || c == 0x2019;
}

// Greek capital sigma is written differently at a word's end (Unicode, SpecialCasing.txt, Final_Sigma).
bool is_final_sigma(std::string_view text, size_t offset) {
  bool cased_before = false;
  for (size_t i = offset; i > 0;) {
    i = previous_code_point(text, i);
    const char32_t c = code_point_at(text, i);
    if (is_case_ignorable(c)) continue;
    cased_before = is_cased(c);
    break;
  }
  if (!cased_before) return false;
  for (size_t i = next_code_point(text, offset); i < text.size(); i = next_code_point(text, i)) {
    const char32_t c = code_point_at(text, i);
    if (is_case_ignorable(c)) continue;
    return !is_cased(c);
  }
  return true;
}

void append_lower_at(std::string& out, std::string_view text, size_t offset, char32_t c) {
  if (c == 0x3A3 && is_final_sigma(text, offset))
    utf8_append(out, 0x3C2);
  else
    append_with_case(out, c, Case::lower);
}

template <class F>
std::string map_characters(std::string_view text, F&& f) {
  std::string out;
  out.reserve(text.size());
  for (size_t i = 0; i < text.size(); i = next_code_point(text, i)) f(out, i, code_point_at(text, i));
  return out;
}

}  // namespace

bool is_space(char32_t c) {
  if (c < 0x80) return (c >= 0x09 && c <= 0x0D) || (c >= 0x1C && c <= 0x20);
  return c == 0x85 || c == 0xA0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 ||
         c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

bool is_printable(char32_t c) {
  if (c < 0x7F) return c >= 0x20;
  switch (category(c)) {
    case UTF8PROC_CATEGORY_CN:
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CS:
    case UTF8PROC_CATEGORY_CO:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP:
    case UTF8PROC_CATEGORY_ZS:
      return false;
    default:
      return true;
  }
}

bool is_upper(char32_t c) { return category(c) == UTF8PROC_CATEGORY_LU || in_ranges(kUpperNotLu, c); }
bool is_lower(char32_t c) { return category(c) == UTF8PROC_CATEGORY_LL || in_ranges(kLowerNotLl, c); }
bool is_title(char32_t c) { return category(c) == UTF8PROC_CATEGORY_LT; }
bool is_alpha(char32_t c) {
  const auto k = category(c);
  return k >= UTF8PROC_CATEGORY_LU && k <= UTF8PROC_CATEGORY_LO;
}
bool is_decimal(char32_t c) { return category(c) == UTF8PROC_CATEGORY_ND; }
bool is_digit(char32_t c) { return is_decimal(c) || in_ranges(kDigitNotDecimal, c); }
bool is_numeric(char32_t c) {
  const auto k = category(c);
  const bool number = k == UTF8PROC_CATEGORY_ND || k == UTF8PROC_CATEGORY_NL || k == UTF8PROC_CATEGORY_NO;
  return number ? !in_ranges(kNumbersNotNumeric, c) : in_ranges(kNumericLetters, c);
}

bool is_identifier(std::string_view text) {
  if (text.empty()) return false;
  for (size_t i = 0; i < text.size(); i = next_code_point(text, i)) {
    const char32_t c = code_point_at(text, i);
    const auto k = category(c);
    const bool start = c == '_' || is_alpha(c) || k == UTF8PROC_CATEGORY_NL;
    const bool inside = start || is_decimal(c) || k == UTF8PROC_CATEGORY_MN || k == UTF8PROC_CATEGORY_MC ||
                        k == UTF8PROC_CATEGORY_PC;
    if (i == 0 ? !start : !inside) return false;
  }
  return true;
}

void append_with_case(std::string& out, char32_t c, Case wanted) {
  if (c < 0x80) {
    const bool upper = c >= 'A' && c <= 'Z';
    const bool lower = c >= 'a' && c <= 'z';
    const bool raise = wanted == Case::upper || wanted == Case::title;
    out += static_cast<char>(raise && lower ? c - 32 : !raise && upper ? c + 32 : c);
    return;
  }
  const auto code = static_cast<utf8proc_int32_t>(c);
  switch (wanted) {
    case Case::lower:
      if (c == 0x130)  // the one letter whose lower case is two characters
        out += "i\xCC\x87";
      else
        utf8_append(out, static_cast<uint32_t>(utf8proc_tolower(code)));
      return;
    case Case::upper:
      if (const char* text = long_case(kLongUpper, c))
        out += text;
      else
        utf8_append(out, static_cast<uint32_t>(utf8proc_toupper(code)));
      return;
    case Case::title:
      if (const char* text = long_case(kLongTitle, c))
        out += text;
      else
        utf8_append(out, static_cast<uint32_t>(utf8proc_totitle(code)));
      return;
    case Case::fold: {
      utf8proc_int32_t folded[8];
      int boundary = 0;
      const auto count = utf8proc_decompose_char(code, folded, 8, UTF8PROC_CASEFOLD, &boundary);
      if (count <= 0 || count > 8) return utf8_append(out, c);
      for (utf8proc_ssize_t i = 0; i < count; ++i) utf8_append(out, static_cast<uint32_t>(folded[i]));
      return;
    }
  }
}

std::string to_lower(std::string_view text) {
  return map_characters(text,
                        [&](std::string& out, size_t i, char32_t c) { append_lower_at(out, text, i, c); });
}
std::string to_upper(std::string_view text) {
  return map_characters(text,
                        [](std::string& out, size_t, char32_t c) { append_with_case(out, c, Case::upper); });
}
std::string case_fold(std::string_view text) {
  return map_characters(text,
                        [](std::string& out, size_t, char32_t c) { append_with_case(out, c, Case::fold); });
}
std::string capitalize(std::string_view text) {
  return map_characters(text, [&](std::string& out, size_t i, char32_t c) {
    if (i == 0)
      append_with_case(out, c, Case::title);
    else
      append_lower_at(out, text, i, c);
  });
}
std::string swap_case(std::string_view text) {
  return map_characters(text, [&](std::string& out, size_t i, char32_t c) {
    if (is_upper(c))
      append_lower_at(out, text, i, c);
    else if (is_lower(c))
      append_with_case(out, c, Case::upper);
    else
      utf8_append(out, c);
  });
}
std::string title_case(std::string_view text) {
  bool previous_cased = false;
  return map_characters(text, [&](std::string& out, size_t i, char32_t c) {
    if (previous_cased)
      append_lower_at(out, text, i, c);
    else
      append_with_case(out, c, Case::title);
    previous_cased = is_cased(c);
  });
}

}  // namespace millrace::model::jinja
