#include "model/internal/jinja_text.h"

#include <algorithm>

#include "base/utf8.h"

namespace millrace::model::jinja {

void Text::append(std::string_view bytes, bool marked) {
  if (bytes.empty()) return;
  if (bytes_.empty()) {
    first_marked_ = marked;
    switches_.clear();
  } else if (marked != last_marked()) {
    switches_.push_back(bytes_.size());
  }
  bytes_.append(bytes);
}

void Text::append(const Text& other) {
  if (bytes_.empty()) {
    *this = other;
    return;
  }
  other.for_each_run([this](std::string_view run, bool marked) { append(run, marked); });
}

Text Text::slice(size_t begin, size_t end) const {
  if (begin == 0 && end == bytes_.size()) return *this;
  Text out;
  if (begin >= end) return out;
  if (switches_.empty()) return Text(bytes_.substr(begin, end - begin), first_marked_);
  out.bytes_ = bytes_.substr(begin, end - begin);
  const auto first = std::upper_bound(switches_.begin(), switches_.end(), begin);
  out.first_marked_ = first_marked_ != ((first - switches_.begin()) % 2 == 1);
  for (auto it = first; it != switches_.end() && *it < end; ++it) out.switches_.push_back(*it - begin);
  return out;
}

size_t Text::length() const { return index_at(bytes_.size()); }

size_t Text::index_at(size_t byte_offset) const {
  size_t count = 0;
  for (size_t i = 0; i < byte_offset; ++i) count += (static_cast<unsigned char>(bytes_[i]) & 0xC0) != 0x80;
  return count;
}

size_t Text::offset_of(size_t code_point) const {
  size_t offset = 0;
  for (; code_point > 0 && offset < bytes_.size(); --code_point) offset = next_code_point(bytes_, offset);
  return offset;
}

bool Text::ascii() const {
  return std::all_of(bytes_.begin(), bytes_.end(),
                     [](char c) { return static_cast<unsigned char>(c) < 0x80; });
}

size_t next_code_point(std::string_view text, size_t offset) {
  ++offset;
  while (offset < text.size() && (static_cast<unsigned char>(text[offset]) & 0xC0) == 0x80) ++offset;
  return offset;
}

size_t previous_code_point(std::string_view text, size_t offset) {
  --offset;
  while (offset > 0 && (static_cast<unsigned char>(text[offset]) & 0xC0) == 0x80) --offset;
  return offset;
}

char32_t code_point_at(std::string_view text, size_t offset) {
  const auto byte = static_cast<unsigned char>(text[offset]);
  if (byte < 0x80) return byte;
  return utf8_decode(text, offset).code_point;
}

}  // namespace millrace::model::jinja
