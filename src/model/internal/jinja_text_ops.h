// Python's str methods that cut and join, on texts with marks. Shared by the methods and the filters.
#pragma once
#include <optional>
#include <string_view>
#include <vector>

#include "model/internal/jinja_value.h"

namespace millrace::model::jinja {

enum class Side { left, right, both };

Text strip(const Text& text, Side side, std::optional<std::string_view> characters);
std::vector<Text> split_space(const Text& text, Int max_splits);
std::vector<Text> split_space_right(const Text& text, Int max_splits);
std::vector<Text> split(const Text& text, std::string_view separator, Int max_splits);  // separator not empty
std::vector<Text> split_right(const Text& text, std::string_view separator, Int max_splits);
std::vector<Text> split_lines(const Text& text, bool keep_ends);
Text replace(const Text& text, std::string_view old, const Text& with, Int count);  // count < 0: all
Text pad(const Text& text, Int width, std::string_view fill,
         Side side);  // side the text keeps to; both = centre
Text join(const Text& separator, const std::vector<Text>& parts);
// The whole rewritten by f; marked if any of it was.
template <class F>
Text transform(const Text& text, F&& f) {
  spend_text(static_cast<Int>(text.size()));
  return Text(f(text.bytes()), text.any_marked());
}

}  // namespace millrace::model::jinja
