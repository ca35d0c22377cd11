// The splits of a tokenizer: from a text to the pieces that merges do not cross.
#pragma once
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "model/internal/pieces.h"
#include "model/internal/split_regex.h"
#include "model/internal/split_scanners.h"
#include "model/tokenizer.h"

namespace millrace::model::internal {

class PreTokenizer {
 public:
  static Expected<PreTokenizer> create(std::span<const SplitStep> steps);

  // Calls emit for each piece, in order. Thread-safe. Views are valid during the call only. emit returns
  // false to stop.
  Expected<void> run(Piece text, FunctionRef<bool(std::string_view)> emit) const;

 private:
  struct Step {
    SplitStep spec;
    Scanner scanner = nullptr;  // set for known patterns; otherwise
    std::shared_ptr<const SplitRegex> regex;
  };
  struct Run;  // one call's state
  Expected<void> run_step(size_t index, Piece text, Run& run) const;
  Expected<void> split(const Step& step, size_t index, Piece text, Run& run) const;
  Expected<void> split_known(const Step& step, size_t index, Piece text, Run& run) const;
  Expected<void> metaspace(const Step& step, size_t index, Piece text, Run& run) const;

  std::vector<Step> steps_;
};

}  // namespace millrace::model::internal
