#include "model/internal/unicode_tables.h"

#include <fmt/core.h>

#include <algorithm>
#include <map>

namespace millrace::model::internal {
namespace {

struct Range {
  uint32_t first, last;
  uint8_t classes;
};
constexpr Range kRanges[] = {
#include "model/internal/unicode_tables.inc"
};
constexpr Range kSince14[] = {
#include "model/internal/unicode_since_14.inc"
};

}  // namespace

std::string members_since_unicode_14(CharacterClass wanted) {
  std::string out;
  for (const Range& range : kSince14)
    if (range.classes == wanted) out += fmt::format("\\x{{{:X}}}-\\x{{{:X}}}", range.first, range.last);
  return out;
}

const UnicodeTables& UnicodeTables::get() {
  static const UnicodeTables tables;
  return tables;
}

UnicodeTables::UnicodeTables() {
  std::map<std::array<uint8_t, 256>, uint16_t> seen;
  const Range* range = std::begin(kRanges);
  for (uint32_t page = 0; page < page_of_.size(); ++page) {
    std::array<uint8_t, 256> content{};
    const uint32_t low = page << 8, high = low + 255;
    while (range != std::end(kRanges) && range->last < low) ++range;
    for (const Range* r = range; r != std::end(kRanges) && r->first <= high; ++r)
      std::fill(content.begin() + (std::max(r->first, low) - low),
                content.begin() + (std::min(r->last, high) - low + 1), r->classes);
    const auto [where, fresh] = seen.try_emplace(content, static_cast<uint16_t>(pages_.size()));
    if (fresh) pages_.push_back(content);
    page_of_[page] = where->second;
  }
}

}  // namespace millrace::model::internal
