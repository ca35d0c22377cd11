#include "model/internal/jinja_text_ops.h"

#include <algorithm>

namespace millrace::model::jinja {
namespace {

bool in_set(std::string_view set, std::string_view character) {
  for (size_t i = 0; i < set.size(); i = next_code_point(set, i))
    if (set.substr(i, next_code_point(set, i) - i) == character) return true;
  return false;
}

bool is_line_end(char32_t c) {
  return (c >= 0x0A && c <= 0x0D) || (c >= 0x1C && c <= 0x1E) || c == 0x85 || c == 0x2028 || c == 0x2029;
}

}  // namespace

Text strip(const Text& text, Side side, std::optional<std::string_view> characters) {
  const std::string_view bytes = text.bytes();
  auto strips = [&](size_t i, size_t next) {
    if (!characters) return is_space(code_point_at(bytes, i));
    spend(characters->size() / 32);
    return in_set(*characters, bytes.substr(i, next - i));
  };
  size_t begin = 0, end = bytes.size();
  while (side != Side::right && begin < end && strips(begin, next_code_point(bytes, begin)))
    begin = next_code_point(bytes, begin);
  while (side != Side::left && end > begin && strips(previous_code_point(bytes, end), end))
    end = previous_code_point(bytes, end);
  return text.slice(begin, end);
}

std::vector<Text> split_space(const Text& text, Int max_splits) {
  std::vector<Text> out;
  const std::string_view bytes = text.bytes();
  size_t i = 0;
  while (true) {
    while (i < bytes.size() && is_space(code_point_at(bytes, i))) i = next_code_point(bytes, i);
    if (i >= bytes.size()) return out;
    size_t end = i;
    if (max_splits >= 0 && static_cast<Int>(out.size()) >= max_splits) {
      out.push_back(text.slice(i, bytes.size()));
      return out;
    }
    while (end < bytes.size() && !is_space(code_point_at(bytes, end))) end = next_code_point(bytes, end);
    out.push_back(text.slice(i, end));
    i = end;
  }
}

std::vector<Text> split_space_right(const Text& text, Int max_splits) {
  std::vector<Text> out;
  const std::string_view bytes = text.bytes();
  size_t end = bytes.size();
  while (true) {
    while (end > 0 && is_space(code_point_at(bytes, previous_code_point(bytes, end))))
      end = previous_code_point(bytes, end);
    if (end == 0) break;
    if (max_splits >= 0 && static_cast<Int>(out.size()) >= max_splits) {
      out.push_back(text.slice(0, end));
      break;
    }
    size_t begin = end;
    while (begin > 0 && !is_space(code_point_at(bytes, previous_code_point(bytes, begin))))
      begin = previous_code_point(bytes, begin);
    out.push_back(text.slice(begin, end));
    end = begin;
  }
  std::reverse(out.begin(), out.end());
  return out;
}

std::vector<Text> split(const Text& text, std::string_view separator, Int max_splits) {
  std::vector<Text> out;
  size_t begin = 0;
  while (max_splits < 0 || static_cast<Int>(out.size()) < max_splits) {
    const size_t at = text.bytes().find(separator, begin);
    if (at == std::string::npos) break;
    out.push_back(text.slice(begin, at));
    begin = at + separator.size();
  }
  out.push_back(text.slice(begin, text.size()));
  return out;
}

std::vector<Text> split_right(const Text& text, std::string_view separator, Int max_splits) {
  std::vector<Text> out;
  size_t end = text.size();
  while ((max_splits < 0 || static_cast<Int>(out.size()) < max_splits) && end >= separator.size()) {
    const size_t at = text.bytes().rfind(separator, end - separator.size());
    if (at == std::string::npos) break;
    out.push_back(text.slice(at + separator.size(), end));
    end = at;
  }
  out.push_back(text.slice(0, end));
  std::reverse(out.begin(), out.end());
  return out;
}

std::vector<Text> split_lines(const Text& text, bool keep_ends) {
  std::vector<Text> out;
  const std::string_view bytes = text.bytes();
  size_t begin = 0;
  for (size_t i = 0; i < bytes.size();) {
    const char32_t c = code_point_at(bytes, i);
    size_t next = next_code_point(bytes, i);
    if (is_line_end(c)) {
      if (c == '\r' && next < bytes.size() && bytes[next] == '\n') ++next;
      out.push_back(text.slice(begin, keep_ends ? next : i));
      begin = next;
    }
    i = next;
  }
  if (begin < bytes.size()) out.push_back(text.slice(begin, bytes.size()));
  return out;
}

Text replace(const Text& text, std::string_view old, const Text& with, Int count) {
  Text out;
  Int done = 0;
  const std::string_view bytes = text.bytes();
  auto put = [&](const Text& piece) {
    spend_text_growth(out.size(), piece.size());
    out.append(piece);
  };
  if (old.empty()) {  // Python puts `with` before every character and at the end
    size_t i = 0;
    while (true) {
      if (count >= 0 && done >= count) break;
      put(with);
      ++done;
      if (i >= bytes.size()) return out;
      const size_t next = next_code_point(bytes, i);
      put(text.slice(i, next));
      i = next;
    }
    put(text.slice(i, bytes.size()));
    return out;
  }
  size_t begin = 0;
  while (count < 0 || done < count) {
    const size_t at = bytes.find(old, begin);
    if (at == std::string_view::npos) break;
    put(text.slice(begin, at));
    put(with);
    begin = at + old.size();
    ++done;
  }
  put(text.slice(begin, bytes.size()));
  return out;
}

Text pad(const Text& text, Int width, std::string_view fill, Side side) {
  const auto length = static_cast<Int>(text.length());
  if (width <= length) return text;
  const Int missing = width - length;
  spend_text(static_cast<Int>(text.size()) + missing * static_cast<Int>(fill.size()));
  // Python's centre puts the odd one to the left exactly when both the gap and the width are odd.
  const Int left = side == Side::left    ? 0
                   : side == Side::right ? missing
                                         : missing / 2 + (missing & width & 1);
  Text out;
  std::string gap;
  for (Int i = 0; i < left; ++i) gap += fill;
  out.append(gap, false);
  out.append(text);
  gap.clear();
  for (Int i = left; i < missing; ++i) gap += fill;
  out.append(gap, false);
  return out;
}

Text join(const Text& separator, const std::vector<Text>& parts) {
  Int total = 0;
  for (const Text& part : parts) total += static_cast<Int>(part.size() + separator.size());
  spend_text(total);
  Text out;
  for (size_t i = 0; i < parts.size(); ++i) {
    if (i > 0) out.append(separator);
    out.append(parts[i]);
  }
  return out;
}

}  // namespace millrace::model::jinja
