#include "model/internal/pretokenizer.h"

#include <fmt/core.h>

#include <string>

#include "model/internal/unicode_tables.h"

namespace millrace::model::internal {
namespace {

constexpr size_t kMaxSteps = 16;
constexpr std::string_view kMetaspace = "\xE2\x96\x81";  // U+2581, in place of a space

}  // namespace

struct PreTokenizer::Run {
  FunctionRef<bool(std::string_view)> emit;
  bool stopped = false;
};

Expected<PreTokenizer> PreTokenizer::create(std::span<const SplitStep> steps) {
  if (steps.size() > kMaxSteps)
    return invalid(fmt::format("pre_tokenizer has {} steps, over the limit of {}", steps.size(), kMaxSteps));
  PreTokenizer result;
  for (const SplitStep& spec : steps) {
    Step step{.spec = spec};
    if (spec.kind == SplitStep::Kind::digits) step.scanner = scan_numeric;
    if (spec.kind == SplitStep::Kind::regex) {
      step.scanner = find_scanner(spec.pattern);
      if (step.scanner == nullptr) step.regex = MR_TRY(SplitRegex::compile(spec.pattern));
    }
    result.steps_.push_back(std::move(step));
  }
  return result;
}

Expected<void> PreTokenizer::run(Piece text, FunctionRef<bool(std::string_view)> emit) const {
  Run run{.emit = emit};
  return run_step(0, text, run);
}

Expected<void> PreTokenizer::run_step(size_t index, Piece text, Run& run) const {
  if (run.stopped || text.text.empty()) return {};
  if (index == steps_.size()) {
    run.stopped = !run.emit(text.text);
    return {};
  }
  const Step& step = steps_[index];
  switch (step.spec.kind) {
    case SplitStep::Kind::regex:
    case SplitStep::Kind::digits:
      if (step.scanner != nullptr && step.spec.behavior == SplitStep::Behavior::isolated && !step.spec.invert)
        return split_known(step, index, text, run);
      return split(step, index, text, run);
    case SplitStep::Kind::prefix_space: {
      if (text.text.starts_with(' ')) return run_step(index + 1, text, run);
      const std::string spaced = " " + std::string(text.text);
      return run_step(index + 1, {spaced, text.at_start}, run);
    }
    case SplitStep::Kind::metaspace:
      return metaspace(step, index, text, run);
  }
  return {};
}

// The common case without a list of cuts: matches and gaps are pieces as they come.
Expected<void> PreTokenizer::split_known(const Step& step, size_t index, Piece text, Run& run) const {
  const std::string_view all = text.text;
  for (size_t at = 0; at < all.size() && !run.stopped;) {
    const Match match = step.scanner(all, at);
    if (match.begin > at)
      MR_TRY(run_step(index + 1, {all.substr(at, match.begin - at), text.at_start && at == 0}, run));
    if (match.begin >= all.size()) return {};
    MR_TRY(run_step(index + 1,
                    {all.substr(match.begin, match.end - match.begin), text.at_start && match.begin == 0},
                    run));
    at = match.end;
  }
  return {};
}

// Any behaviour: the text as alternating gaps and matches, joined as the behaviour says.
Expected<void> PreTokenizer::split(const Step& step, size_t index, Piece text, Run& run) const {
  struct Cut {
    size_t begin, end;
    bool match;
  };
  const std::string_view all = text.text;
  std::vector<Cut> cuts;
  size_t covered = 0;
  const auto add = [&](size_t begin, size_t end) {
    if (begin > covered) cuts.push_back({covered, begin, step.spec.invert});
    cuts.push_back({begin, end, !step.spec.invert});
    covered = end;
  };
  if (step.scanner != nullptr) {
    for (Match m = step.scanner(all, 0); m.begin < all.size(); m = step.scanner(all, m.end))
      add(m.begin, m.end);
  } else {
    MR_TRY(step.regex->for_each_match(all, add));
  }
  if (covered < all.size()) cuts.push_back({covered, all.size(), step.spec.invert});

  std::vector<Cut> joined;
  bool previous_match = false;
  using Behavior = SplitStep::Behavior;
  switch (step.spec.behavior) {
    case Behavior::isolated:
      joined = std::move(cuts);
      break;
    case Behavior::removed:
      for (const Cut& cut : cuts)
        if (!cut.match) joined.push_back(cut);
      break;
    case Behavior::contiguous:
      for (const Cut& cut : cuts) {
        if (!joined.empty() && cut.match == previous_match)
          joined.back().end = cut.end;
        else
          joined.push_back(cut);
        previous_match = cut.match;
      }
      break;
    case Behavior::merged_with_previous:
      for (const Cut& cut : cuts) {
        if (cut.match && !previous_match && !joined.empty())
          joined.back().end = cut.end;
        else
          joined.push_back(cut);
        previous_match = cut.match;
      }
      break;
    case Behavior::merged_with_next:
      for (auto cut = cuts.rbegin(); cut != cuts.rend(); ++cut) {
        if (cut->match && !previous_match && !joined.empty())
          joined.back().begin = cut->begin;
        else
          joined.push_back(*cut);
        previous_match = cut->match;
      }
      std::reverse(joined.begin(), joined.end());
      break;
  }
  for (const Cut& cut : joined) {
    if (run.stopped) return {};
    MR_TRY(run_step(index + 1, {all.substr(cut.begin, cut.end - cut.begin), text.at_start && cut.begin == 0},
                    run));
  }
  return {};
}

Expected<void> PreTokenizer::metaspace(const Step& step, size_t index, Piece text, Run& run) const {
  std::string out;
  out.reserve(text.text.size() + 16);
  const SplitStep::Prepend prepend = step.spec.prepend;
  const bool wanted =
      prepend == SplitStep::Prepend::always || (prepend == SplitStep::Prepend::first && text.at_start);
  if (wanted && !text.text.starts_with(' ') && !text.text.starts_with(kMetaspace)) out += kMetaspace;
  for (const char c : text.text) {
    if (c == ' ')
      out += kMetaspace;
    else
      out += c;
  }
  if (!step.spec.split_words) return run_step(index + 1, {out, text.at_start}, run);
  for (size_t at = 0; at < out.size() && !run.stopped;) {
    const size_t next = std::min(out.find(kMetaspace, at + 1), out.size());
    MR_TRY(run_step(index + 1, {std::string_view(out).substr(at, next - at), text.at_start && at == 0}, run));
    at = next;
  }
  return {};
}

}  // namespace millrace::model::internal
