#include "model/internal/normalizer.h"

#include <fmt/core.h>
#include <utf8proc.h>

#include <algorithm>
#include <vector>

#include "base/utf8.h"
#include "model/internal/pieces.h"
#include "model/internal/unicode_tables.h"

namespace millrace::model::internal {
namespace {

// Composes one span: a starter (or nothing) and the canonical characters behind it. utf8proc's own loop sorts
// marks by insertion, quadratic in a run of marks that a hostile text can make a megabyte long; hence the
// sort here.
void compose_span(std::string_view span, std::vector<utf8proc_int32_t>& points, std::string& out) {
  points.clear();
  for (size_t at = 0; at < span.size();) {
    const uint32_t c = next_code_point(span, at);
    utf8proc_int32_t parts[32];
    int boundary = 0;
    const utf8proc_ssize_t count = utf8proc_decompose_char(
        static_cast<utf8proc_int32_t>(c), parts, 32,
        static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_DECOMPOSE), &boundary);
    if (count < 0 || count > 32) {
      points.push_back(static_cast<utf8proc_int32_t>(c));
    } else {
      points.insert(points.end(), parts, parts + count);
    }
  }
  const auto combining = [](utf8proc_int32_t c) { return utf8proc_get_property(c)->combining_class; };
  for (auto begin = points.begin(); begin != points.end();) {
    if (combining(*begin) == 0) {
      ++begin;
      continue;
    }
    const auto end = std::find_if(begin, points.end(), [&](utf8proc_int32_t c) { return combining(c) == 0; });
    std::stable_sort(begin, end,
                     [&](utf8proc_int32_t a, utf8proc_int32_t b) { return combining(a) < combining(b); });
    begin = end;
  }
  const utf8proc_ssize_t count =
      utf8proc_normalize_utf32(points.data(), static_cast<utf8proc_ssize_t>(points.size()),
                               static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
  for (utf8proc_ssize_t i = 0; i < count; ++i)
    utf8_append(out, static_cast<uint32_t>(points[static_cast<size_t>(i)]));
}

// Stops early, over the limit, where the result would be longer than `limit`.
void replace_all(std::string_view text, std::string_view pattern, std::string_view content, size_t limit,
                 std::string& out) {
  size_t from = 0;
  while (out.size() <= limit) {
    const size_t found = text.find(pattern, from);
    out.append(text.substr(from, found - from));
    if (found == std::string_view::npos) return;
    out.append(content);
    from = found + pattern.size();
  }
}

}  // namespace

bool is_nfc_quick(std::string_view text) {
  const UnicodeTables& tables = UnicodeTables::get();
  size_t at = 0;
  while (at < text.size()) {
    if (static_cast<uint8_t>(text[at]) < 0xCC) {  // below U+0300 nothing composes
      at += static_cast<uint8_t>(text[at]) < 0x80 ? 1 : 2;
      continue;
    }
    if ((tables.classes(next_code_point(text, at)) & kCanonical) != 0) return false;
  }
  return true;
}

std::string to_nfc(std::string_view text) {
  const UnicodeTables& tables = UnicodeTables::get();
  std::string out;
  out.reserve(text.size());
  std::vector<utf8proc_int32_t> points;
  size_t copied = 0;    // everything before is in out
  size_t previous = 0;  // start of the last character that a following one may compose with
  for (size_t at = 0; at < text.size();) {
    const size_t start = at;
    const uint8_t classes = tables.classes(next_code_point(text, at));
    if ((classes & kCanonical) == 0) {
      previous = (classes & kNfcBarrier) != 0 ? at : start;
      continue;
    }
    while (at < text.size()) {
      size_t after = at;
      if ((tables.classes(next_code_point(text, after)) & kCanonical) == 0) break;
      at = after;
    }
    out.append(text.substr(copied, previous - copied));
    compose_span(text.substr(previous, at - previous), points, out);
    copied = previous = at;
  }
  out.append(text.substr(copied));
  return out;
}

Expected<std::string_view> normalize(std::span<const NormalizerStep> steps, std::string_view text,
                                     std::string& storage) {
  const size_t limit = text.size() * 16 + (size_t{1} << 20);
  std::string_view now = text;
  for (const NormalizerStep& step : steps) {
    std::string next;
    switch (step.kind) {
      case NormalizerStep::Kind::nfc:
        if (is_nfc_quick(now)) continue;
        next = to_nfc(now);
        break;
      case NormalizerStep::Kind::prepend:
        if (now.empty()) continue;
        next.reserve(step.content.size() + now.size());
        next.append(step.content).append(now);
        break;
      case NormalizerStep::Kind::replace:
        if (step.pattern.empty() || now.find(step.pattern) == std::string_view::npos) continue;
        replace_all(now, step.pattern, step.content, limit, next);
        break;
    }
    if (next.size() > limit)
      return fail(
          Code::resource_exhausted,
          fmt::format("normalising turns {} bytes into more than the limit of {}", text.size(), limit));
    storage = std::move(next);
    now = storage;
  }
  return now;
}

}  // namespace millrace::model::internal
