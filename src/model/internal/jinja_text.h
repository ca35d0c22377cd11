// A string of the interpreter: UTF-8 bytes, each of them marked or not as the request's words.
//
// Marks follow the bytes through append and slice; whatever rewrites bytes in another way (upper-casing,
// quoting) marks the whole result if any of its input was marked. Indexes are byte offsets here; callers that
// speak of characters convert with offset_of().
#pragma once
#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace millrace::model::jinja {

class Text {
 public:
  Text() = default;
  explicit Text(std::string bytes, bool marked = false) : bytes_(std::move(bytes)), first_marked_(marked) {}

  const std::string& bytes() const { return bytes_; }
  size_t size() const { return bytes_.size(); }
  bool empty() const { return bytes_.empty(); }
  bool any_marked() const { return !bytes_.empty() && (first_marked_ || !switches_.empty()); }

  void append(std::string_view bytes, bool marked);
  void append(const Text& other);
  Text slice(size_t begin, size_t end) const;  // byte offsets, begin <= end <= size()

  // Calls f(bytes, marked) for each run of one kind, in order.
  template <class F>
  void for_each_run(F&& f) const {
    size_t begin = 0;
    bool marked = first_marked_;
    for (const size_t end : switches_) {
      f(std::string_view(bytes_).substr(begin, end - begin), marked);
      begin = end;
      marked = !marked;
    }
    if (begin < bytes_.size()) f(std::string_view(bytes_).substr(begin), marked);
  }

  size_t length() const;                      // in code points
  size_t offset_of(size_t code_point) const;  // byte offset of a code point; size() at and past the end
  size_t index_at(size_t byte_offset) const;  // code points before a byte offset
  bool ascii() const;

 private:
  bool last_marked() const { return first_marked_ != (switches_.size() % 2 == 1); }

  std::string bytes_;
  bool first_marked_ = false;
  std::vector<size_t> switches_;  // offsets, ascending and inside (0, size), at which the mark toggles
};

// Offset of the code point after the one at `offset`, and of the one before it. The text is valid UTF-8.
size_t next_code_point(std::string_view text, size_t offset);
size_t previous_code_point(std::string_view text, size_t offset);
char32_t code_point_at(std::string_view text, size_t offset);

// Character classes and case, as Python's str methods have them.
bool is_space(char32_t c);
bool is_printable(char32_t c);
bool is_upper(char32_t c);
bool is_lower(char32_t c);
bool is_title(char32_t c);
bool is_alpha(char32_t c);
bool is_decimal(char32_t c);
bool is_digit(char32_t c);
bool is_numeric(char32_t c);
bool is_identifier(std::string_view text);

enum class Case { lower, upper, title, fold };
void append_with_case(std::string& out, char32_t c, Case wanted);
std::string to_lower(std::string_view text);
std::string to_upper(std::string_view text);
std::string case_fold(std::string_view text);
std::string capitalize(std::string_view text);
std::string swap_case(std::string_view text);
std::string title_case(std::string_view text);
bool all_cased(std::string_view bytes, bool upper);  // str.isupper, str.islower

}  // namespace millrace::model::jinja
