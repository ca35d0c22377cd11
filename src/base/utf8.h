// UTF-8: strict decoding, and repair of broken input the way Python's errors="replace" does it (one U+FFFD for each
// maximal subpart; Unicode 15, section 3.9, table 3-8).
#pragma once
#include <cstdint>
#include <string>
#include <string_view>

namespace millrace {

struct Utf8Step {
  uint32_t code_point;  // 0xFFFD when broken
  uint32_t length;      // bytes consumed, at least 1
  bool valid;
};
// The code point at text[position]; position < text.size().
Utf8Step utf8_decode(std::string_view text, size_t position);

void utf8_append(std::string& out, uint32_t code_point);
bool utf8_valid(std::string_view text);
std::string utf8_repair(std::string_view text);
// Length of the longest prefix that does not end inside a sequence which more bytes could still complete.
size_t utf8_complete_prefix(std::string_view text);

}  // namespace millrace
