// Split patterns through PCRE2 with JIT: the general path, for patterns that split_scanners.h does not know.
//
// tokenizer.json's patterns are in Oniguruma's dialect (Ruby syntax). They are translated; a construct that
// would mean something else in PCRE2 is refused by name. \p{L}, \p{N}, \p{M}, \p{P} and \p{S} are completed
// to the Unicode version of unicode_tables.h; other properties, and \P{..} inside a class, follow PCRE2's (14
// in Debian 12).
#pragma once
#include <memory>
#include <string>
#include <string_view>

#include "base/status.h"
#include "model/internal/pieces.h"

namespace millrace::model::internal {

// The same pattern for PCRE2; invalid_argument names the construct it cannot carry over.
Expected<std::string> translate_pattern(std::string_view oniguruma);

class SplitRegex {
 public:
  static Expected<std::unique_ptr<const SplitRegex>> compile(std::string_view oniguruma);
  ~SplitRegex();
  SplitRegex(const SplitRegex&) = delete;
  SplitRegex& operator=(const SplitRegex&) = delete;

  // Calls emit(from, to) for each match that is not empty, left to right. Thread-safe. Fails with
  // resource_exhausted when a match backtracks beyond the limit.
  Expected<void> for_each_match(std::string_view text, FunctionRef<void(size_t, size_t)> emit) const;

 private:
  SplitRegex() = default;
  void* code_ = nullptr;  // pcre2_code
};

}  // namespace millrace::model::internal
