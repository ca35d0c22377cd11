#include "base/utf8.h"

namespace millrace {
namespace {

struct Lead {
  uint32_t length, bits;
  uint8_t low, high;  // range allowed for the second byte: excludes overlong forms, surrogates and > U+10FFFF
};

Lead lead_of(uint8_t b) {
  if (b < 0x80) return {1, b, 0, 0};
  if (b >= 0xC2 && b <= 0xDF) return {2, b & 0x1Fu, 0x80, 0xBF};
  if (b == 0xE0) return {3, 0, 0xA0, 0xBF};
  if (b == 0xED) return {3, 0x0D, 0x80, 0x9F};
  if (b >= 0xE1 && b <= 0xEF) return {3, b & 0x0Fu, 0x80, 0xBF};
  if (b == 0xF0) return {4, 0, 0x90, 0xBF};
  if (b >= 0xF1 && b <= 0xF3) return {4, b & 0x07u, 0x80, 0xBF};
  if (b == 0xF4) return {4, 4, 0x80, 0x8F};
  return {0, 0, 0, 0};
}

}  // namespace

Utf8Step utf8_decode(std::string_view text, size_t position) {
  const Lead lead = lead_of(static_cast<uint8_t>(text[position]));
  if (lead.length == 1) return {lead.bits, 1, true};
  if (lead.length == 0) return {0xFFFD, 1, false};
  uint32_t code_point = lead.bits;
  for (uint32_t i = 1; i < lead.length; ++i) {
    if (position + i >= text.size()) return {0xFFFD, i, false};
    const auto b = static_cast<uint8_t>(text[position + i]);
    const uint8_t low = i == 1 ? lead.low : 0x80, high = i == 1 ? lead.high : 0xBF;
    if (b < low || b > high) return {0xFFFD, i, false};
    code_point = code_point << 6 | (b & 0x3Fu);
  }
  return {code_point, lead.length, true};
}

void utf8_append(std::string& out, uint32_t c) {
  if (c < 0x80) {
    out += static_cast<char>(c);
  } else if (c < 0x800) {
    out += static_cast<char>(0xC0 | c >> 6);
    out += static_cast<char>(0x80 | (c & 0x3F));
  } else if (c < 0x10000) {
    out += static_cast<char>(0xE0 | c >> 12);
    out += static_cast<char>(0x80 | (c >> 6 & 0x3F));
    out += static_cast<char>(0x80 | (c & 0x3F));
  } else {
    out += static_cast<char>(0xF0 | c >> 18);
    out += static_cast<char>(0x80 | (c >> 12 & 0x3F));
    out += static_cast<char>(0x80 | (c >> 6 & 0x3F));
    out += static_cast<char>(0x80 | (c & 0x3F));
  }
}

bool utf8_valid(std::string_view text) {
  for (size_t i = 0; i < text.size();) {
    const Utf8Step step = utf8_decode(text, i);
    if (!step.valid) return false;
    i += step.length;
  }
  return true;
}

std::string utf8_repair(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (size_t i = 0; i < text.size();) {
    const Utf8Step step = utf8_decode(text, i);
    if (step.valid) {
      out.append(text, i, step.length);
    } else {
      out += "\xEF\xBF\xBD";
    }
    i += step.length;
  }
  return out;
}

size_t utf8_complete_prefix(std::string_view text) {
  // Only the last three bytes can belong to an unfinished sequence.
  for (size_t back = 1; back <= 3 && back <= text.size(); ++back) {
    const size_t start = text.size() - back;
    const auto b = static_cast<uint8_t>(text[start]);
    if ((b & 0xC0) == 0x80) continue;
    const Lead lead = lead_of(b);
    if (lead.length <= back) return text.size();
    const Utf8Step step = utf8_decode(text, start);
    return step.length == back ? start : text.size();  // broken before the end: more bytes cannot mend it
  }
  return text.size();
}

}  // namespace millrace
