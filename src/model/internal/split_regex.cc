#include "model/internal/split_regex.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <fmt/core.h>
#include <pcre2.h>

#include <cctype>

#include "model/internal/unicode_tables.h"

namespace millrace::model::internal {
namespace {

constexpr size_t kMaxPatternBytes = 64 << 10;
// Backtracking steps of one match. The patterns of real tokenizers take about one a character; a megabyte of
// one class stays below, a catastrophic pattern is stopped within a second.
constexpr uint32_t kMatchLimit = 20'000'000;
constexpr size_t kJitStackBytes = size_t{4} << 20;

Status refuse(std::string_view pattern, size_t at, std::string_view what) {
  return Status{.code = Code::invalid_argument,
                .message = fmt::format("split pattern uses {} at byte {}, which is not supported: {}", what,
                                       at, pattern.substr(0, 200))};
}

bool is_hex(char c) { return std::isxdigit(static_cast<unsigned char>(c)) != 0; }

// Walks a pattern once, copying what both dialects read alike and rewriting or refusing the rest.
class Translator {
 public:
  explicit Translator(std::string_view in) : in_(in) {}

  Expected<std::string> run() {
    while (at_ < in_.size()) {
      const char c = in_[at_];
      if (c == '\\') {
        MR_TRY(escape(false));
      } else if (c == '[') {
        MR_TRY(character_class());
      } else if (c == '(' && in_.substr(at_, 2) == "(?") {
        MR_TRY(group());
      } else if (c == '(' && in_.substr(at_, 2) == "(*") {
        return std::unexpected(refuse(in_, at_, "(*"));
      } else if (c == '{') {
        MR_TRY(interval());
      } else {
        out_ += c;
        ++at_;
      }
    }
    return std::move(out_);
  }

 private:
  // {n}, {n,}, {n,m}, {,m}; anything else is a brace.
  Expected<void> interval() {
    size_t end = at_ + 1;
    bool comma = false, digit = false;
    while (end < in_.size() &&
           (std::isdigit(static_cast<unsigned char>(in_[end])) != 0 || (in_[end] == ',' && !comma))) {
      (in_[end] == ',' ? comma : digit) = true;
      ++end;
    }
    if (!digit || end >= in_.size() || in_[end] != '}') {
      out_ += "\\{";
      ++at_;
      return {};
    }
    const char behind = end + 1 < in_.size() ? in_[end + 1] : '\0';
    // Ruby reads {n,m}+ as a repeated interval and {n}? as an optional one; PCRE2 as possessive and lazy.
    if (behind == '+' || (behind == '?' && !comma))
      return std::unexpected(refuse(in_, at_, fmt::format("'{}'", in_.substr(at_, end + 2 - at_))));
    out_ += in_[at_ + 1] == ',' ? "{0" : "{";
    out_ += in_.substr(at_ + 1, end - at_);
    at_ = end + 1;
    return {};
  }

  Expected<void> group() {
    static constexpr std::string_view kSame[] = {"(?:", "(?=", "(?!", "(?<=", "(?<!", "(?>"};
    for (const std::string_view open : kSame) {
      if (in_.substr(at_, open.size()) == open) {
        out_ += open;
        at_ += open.size();
        return {};
      }
    }
    size_t end = at_ + 2;  // options: only i; m and s mean other things in Ruby's syntax
    while (end < in_.size() && (in_[end] == 'i' || in_[end] == '-')) ++end;
    if (end == at_ + 2 || end >= in_.size() || (in_[end] != ':' && in_[end] != ')'))
      return std::unexpected(refuse(in_, at_, fmt::format("the group '{}'", in_.substr(at_, 4))));
    out_ += in_.substr(at_, end + 1 - at_);
    at_ = end + 1;
    return {};
  }

  Expected<void> character_class() {
    out_ += in_[at_++];
    if (at_ < in_.size() && in_[at_] == '^') out_ += in_[at_++];
    bool first = true;
    while (true) {
      if (at_ >= in_.size()) return std::unexpected(refuse(in_, at_, "a character class without end"));
      const char c = in_[at_];
      if (c == ']') {
        if (first) return std::unexpected(refuse(in_, at_, "an empty character class"));
        out_ += c;
        ++at_;
        return {};
      }
      if (c == '[') return std::unexpected(refuse(in_, at_, "a class inside a class"));
      if (c == '&' && in_.substr(at_, 2) == "&&")
        return std::unexpected(refuse(in_, at_, "a class intersection"));
      if (c == '\\') {
        MR_TRY(escape(true));
      } else {
        out_ += c;
        ++at_;
      }
      first = false;
    }
  }

  Expected<void> escape(bool in_class) {
    if (at_ + 1 >= in_.size()) return std::unexpected(refuse(in_, at_, "a backslash at the end"));
    const char c = in_[at_ + 1];
    const std::string_view two = in_.substr(at_, 2);
    if (c == 's' || c == 'S') {
      out_ += c == 's' ? "\\p{White_Space}" : "\\P{White_Space}";
    } else if (c == 'd' || c == 'D') {
      out_ += c == 'd' ? "\\p{Nd}" : "\\P{Nd}";
    } else if (c == 'w' || (c == 'W' && !in_class)) {
      out_ += in_class   ? "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}"
              : c == 'w' ? "[\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}]"
                         : "[^\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}]";
    } else if (c == 'n' || c == 'r' || c == 't' || c == 'f' || c == 'a' || c == 'e') {
      out_ += two;
    } else if (c == 'v') {
      out_ += "\\x{B}";  // Oniguruma: the vertical tab; PCRE2: any vertical space
    } else if ((c == 'A' || c == 'z') && !in_class) {
      out_ += two;
    } else if (c == 'u' || c == 'x') {
      return code_point(c);
    } else if (c == 'p' || c == 'P') {
      return property(in_class);
    } else if (std::isalnum(static_cast<unsigned char>(c)) != 0) {
      return std::unexpected(refuse(in_, at_, fmt::format("the escape '{}'", two)));
    } else {
      out_ += two;  // punctuation, or the first byte of a longer character
    }
    at_ += 2;
    return {};
  }

  Expected<void> code_point(char kind) {
    size_t begin = at_ + 2, end = begin;
    bool braces = false;
    if (kind == 'x' && begin < in_.size() && in_[begin] == '{') {
      braces = true;
      end = ++begin;
    }
    const size_t most = braces ? 8 : kind == 'u' ? 4 : 2;
    while (end < in_.size() && end - begin < most && is_hex(in_[end])) ++end;
    const bool whole = end > begin && (kind != 'u' || end - begin == 4) &&
                       (!braces || (end < in_.size() && in_[end] == '}'));
    if (!whole) return std::unexpected(refuse(in_, at_, "a broken code point escape"));
    out_ += fmt::format("\\x{{{}}}", in_.substr(begin, end - begin));
    at_ = end + (braces ? 1 : 0);
    return {};
  }

  Expected<void> property(bool in_class) {
    const size_t open = at_ + 2;
    const size_t close = open < in_.size() && in_[open] == '{' ? in_.find('}', open) : std::string_view::npos;
    if (close == std::string_view::npos)
      return std::unexpected(refuse(in_, at_, "a property without braces"));
    std::string_view name = in_.substr(open + 1, close - open - 1);
    const bool negated = !name.empty() && name[0] == '^';
    if (negated) name.remove_prefix(1);
    const bool positive = (in_[at_ + 1] == 'p') != negated;
    const std::string newer = newer_members(name);
    if (newer.empty() || (in_class && !positive)) {
      out_ += fmt::format("\\{}{{{}}}", positive ? 'p' : 'P', name);
    } else if (in_class) {
      out_ += fmt::format("\\p{{{}}}{}", name, newer);
    } else {
      out_ += fmt::format("[{}\\p{{{}}}{}]", positive ? "" : "^", name, newer);
    }
    at_ = close + 1;
    return {};
  }

  static std::string newer_members(std::string_view category) {
    if (category == "L") return members_since_unicode_14(kLetter);
    if (category == "N") return members_since_unicode_14(kNumber);
    if (category == "M") return members_since_unicode_14(kMark);
    if (category == "P") return members_since_unicode_14(kPunctuation);
    if (category == "S") return members_since_unicode_14(kSymbol);
    return {};
  }

  std::string_view in_;
  size_t at_ = 0;
  std::string out_;
};

// What a match needs, once a thread.
struct MatchState {
  pcre2_match_data* data = pcre2_match_data_create(1, nullptr);
  pcre2_match_context* context = pcre2_match_context_create(nullptr);
  pcre2_jit_stack* stack = pcre2_jit_stack_create(32 << 10, kJitStackBytes, nullptr);
  MatchState() {
    pcre2_set_match_limit(context, kMatchLimit);
    pcre2_set_heap_limit(context, 64 << 10);  // KiB, for hosts without JIT
    pcre2_jit_stack_assign(context, nullptr, stack);
  }
  ~MatchState() {
    pcre2_jit_stack_free(stack);
    pcre2_match_context_free(context);
    pcre2_match_data_free(data);
  }
  MatchState(const MatchState&) = delete;
  MatchState& operator=(const MatchState&) = delete;
};

}  // namespace

Expected<std::string> translate_pattern(std::string_view oniguruma) { return Translator(oniguruma).run(); }

Expected<std::unique_ptr<const SplitRegex>> SplitRegex::compile(std::string_view oniguruma) {
  if (oniguruma.size() > kMaxPatternBytes)
    return invalid(
        fmt::format("split pattern of {} bytes is over the limit of {}", oniguruma.size(), kMaxPatternBytes));
  const std::string pattern = MR_TRY(translate_pattern(oniguruma));
  int error = 0;
  PCRE2_SIZE where = 0;
  pcre2_compile_context* context = pcre2_compile_context_create(nullptr);
  pcre2_set_newline(context, PCRE2_NEWLINE_LF);
  pcre2_set_parens_nest_limit(context, 100);
  // Ruby's ^ and $ are always those of lines.
  pcre2_code* code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(),
                                   PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C, &error,
                                   &where, context);
  pcre2_compile_context_free(context);
  if (code == nullptr) {
    PCRE2_UCHAR message[200] = {};
    pcre2_get_error_message(error, message, sizeof(message));
    return invalid(fmt::format("split pattern does not compile at byte {}: {}: {}", where,
                               reinterpret_cast<const char*>(message), oniguruma.substr(0, 200)));
  }
  pcre2_jit_compile(code, PCRE2_JIT_COMPLETE);  // without JIT the interpreter runs
  auto regex = std::unique_ptr<SplitRegex>(new SplitRegex);
  regex->code_ = code;
  return regex;
}

SplitRegex::~SplitRegex() { pcre2_code_free(static_cast<pcre2_code*>(code_)); }

Expected<void> SplitRegex::for_each_match(std::string_view text,
                                          FunctionRef<void(size_t, size_t)> emit) const {
  static thread_local MatchState state;
  const auto* code = static_cast<const pcre2_code*>(code_);
  size_t at = 0;
  while (at < text.size()) {
    const int found = pcre2_match(code, reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), at,
                                  PCRE2_NO_UTF_CHECK, state.data, state.context);
    if (found == PCRE2_ERROR_NOMATCH) return {};
    if (found < 0)
      return fail(
          Code::resource_exhausted,
          fmt::format("split pattern gave up on {} bytes of text (PCRE2 error {})", text.size(), found));
    const PCRE2_SIZE* ends = pcre2_get_ovector_pointer(state.data);
    if (ends[1] > ends[0] && ends[0] >= at) {
      emit(ends[0], ends[1]);
      at = ends[1];
    } else {  // an empty match: go on behind the next character
      at = std::max(at, ends[1]);
      if (at < text.size()) at += sequence_length(text[at]);
    }
  }
  return {};
}

}  // namespace millrace::model::internal
