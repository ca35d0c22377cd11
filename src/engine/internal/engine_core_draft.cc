// Guessing ahead, after a step: the MTP layer takes the states that the step left, and what it guesses runs
// in the next step beside the last token.
#include <algorithm>
#include <array>

#include "base/units.h"
#include "engine/internal/engine_core.h"

namespace millrace::engine {

// After a step and its guesses for the next one.
void EngineCore::begin_cycle(std::span<const ScheduledRows> plan, int64_t start_ns, int64_t draft_ns,
                             bool made_before) {
  cycle_ = {};
  // A step of prompts says nothing of others.
  if (making_ == 0 || making_ != std::ssize(plan) ||
      !std::ranges::all_of(plan, [](const ScheduledRows& rows) { return rows.rows - rows.drafts == 1; }))
    return;
  const double tokens = made_before && made_guesses_ ? 1 + static_cast<double>(guesses_right_) / making_ : 0;
  if (guesses_ran_ == 0) {
    cycle_ = {.start_ns = start_ns,
              .aside_ns = draft_ns,
              .priced = drafting_.priced(0, 0, making_),
              .tokens = tokens,
              .sequences = making_};
    return;
  }
  double priced = 0;
  int passes = 0;
  for (const auto& [sequence, rows, drafts] : plan) {
    priced += drafting_.priced(static_cast<size_t>(drafts), sequence->draft_passes, making_);
    passes += sequence->draft_passes;
  }
  if (passes > 0)
    cycle_ = {.start_ns = start_ns,
              .priced = priced / making_,
              .guessed = true,
              .tokens = tokens,
              .sequences = making_};
}

void EngineCore::end_cycle(int64_t now_ns) {
  const auto seconds = [&](int64_t less_ns) {
    return static_cast<double>(now_ns - cycle_.start_ns - less_ns) * 1e-9;
  };
  if (cycle_.sequences > 0)
    drafting_.note_cycle(seconds(cycle_.aside_ns), cycle_.priced, cycle_.guessed, cycle_.sequences);
  if (cycle_.tokens > 0) drafting_.note_whole(seconds(0), cycle_.tokens, cycle_.sequences);
  cycle_ = {};
}

void EngineCore::draft(std::span<const ScheduledRows> plan) {
  resting_ = drafting_.wants_plain(std::max(making_, 1));
  guesses_.clear();
  draft_rows_left_ = options_.scheduler.max_draft_rows;
  int row_begin = 0;
  for (size_t i = 0; i < plan.size(); ++i) {
    Guess guess;
    if (gather_guess(*plan[i].sequence, segments_[i].first_position, row_begin, guess))
      guesses_.push_back(guess);
    row_begin += plan[i].rows;
  }
  if (guesses_.empty()) return;
  draft_rows();
  for (int place = 1; !guessing_.empty() && place < drafting_.max_drafts(); ++place) draft_again(place);
}

// The positions of this step, from `first` on, whose state and next token are known.
bool EngineCore::gather_guess(Sequence& sequence, int64_t first, int row_begin, Guess& guess) const {
  if (!sequence.drafting || sequence.ended) return false;
  int64_t begin = first;
  if (sequence.draft_from < 0 || sequence.draft_done != first) {  // a gap: anew at a page's start
    begin = round_up(first, kernels::kPageTokens);
    if (begin >= sequence.computed) return false;
    sequence.draft_from = begin;
  }
  guess = {.sequence = &sequence,
           .first_position = begin,
           .rows = static_cast<int>(sequence.computed - begin),
           .state_row = row_begin + static_cast<int>(begin - first),
           .guesses = sequence.pending() == 1 && !resting_};
  sequence.draft_done = sequence.computed;
  return true;
}

// All rows of the step, and the first guess of each sequence that has its last token.
void EngineCore::draft_rows() {
  tokens_.clear();
  segments_.clear();
  states_.clear();
  guess_rows_.clear();
  guessing_.clear();
  for (const Guess& guess : guesses_) {
    Sequence& sequence = *guess.sequence;
    sequence.draft_passes = 0;
    const auto next = sequence.tokens.begin() + guess.first_position + 1;
    // Attention starts at draft_from: positions count from there, which rotary embeddings do not tell apart.
    segments_.push_back({sequence.pages.data() + sequence.draft_from / kernels::kPageTokens,
                         guess.first_position - sequence.draft_from, static_cast<int>(tokens_.size()),
                         guess.rows});
    tokens_.insert(tokens_.end(), next, next + guess.rows);
    for (int row = 0; row < guess.rows; ++row) states_.push_back(guess.state_row + row);
    // What the reply may still have after the token that the next step makes anyway.
    const int64_t room = sequence.prompt_size + sequence.room - sequence.size() - 1;
    if (!guess.guesses || room < 1 || scheduler_.crowded() || std::ssize(guess_rows_) == draft_rows_left_)
      continue;
    guess_rows_.push_back(static_cast<int32_t>(tokens_.size()) - 1);
    guessing_.push_back(guess);
  }
  model_.draft({.tokens = tokens_, .segments = segments_, .states = states_, .guess_rows = guess_rows_},
               pool_.base());
  made_guesses_ = !guessing_.empty();
  for (size_t i = 0; i < guessing_.size(); ++i) {
    Sequence& sequence = *guessing_[i].sequence;
    sequence.draft_reach = 1;
    take_guess(sequence, static_cast<int>(i));
  }
}

// A guess that is not worth its row ends the chain; where there is no row left for it, that says nothing of it.
void EngineCore::take_guess(Sequence& sequence, int index) {
  const DraftGuess guess{.token = model_.guess(index),
                         .probability = model_.guess_probability(index),
                         .greedy = sequence.request.sampling.temperature < kGreedyBelow};
  const int place = static_cast<int>(sequence.drafts.size()), making = std::max(making_, 1);
  ++sequence.draft_passes;
  sequence.draft_reach *= drafting_.chance(guess);
  if (!drafting_.runs(place, sequence.draft_reach, making)) return;
  if (draft_rows_left_ == 0) {
    if (place == 0) sequence.draft_passes = 0;
    return;
  }
  --draft_rows_left_;
  sequence.drafts.push_back(guess);
  if (options_.text_lookup) guess_from_text(sequence);
}

// What followed the last tokens and the guess where they stood before costs no pass of the layer. A chain
// that goes on so ends with it: the layer has no state of these guesses. Nor does it take others' share of rows.
void EngineCore::guess_from_text(Sequence& sequence) {
  std::array<TokenId, kMaxDrafts> chain{};
  size_t size = 0;
  for (const DraftGuess& guess : sequence.drafts) chain[size++] = guess.token;
  auto place = sequence.lookup.find(sequence.tokens, std::span(chain).first(size));
  if (place.last < 0) return;
  const int64_t room = sequence.prompt_size + sequence.room - sequence.size() - 1;
  const auto share = options_.scheduler.max_draft_rows / std::ssize(guessing_);
  const auto most =
      static_cast<size_t>(std::clamp<int64_t>(std::min(room, share), 0, drafting_.max_drafts()));
  const bool greedy = sequence.request.sampling.temperature < kGreedyBelow;
  for (; size < most && draft_rows_left_ > 0; ++size) {
    const DraftGuess guess{.token = TextLookup::at(sequence.tokens, chain, ++place.last),
                           .matched = place.matched,
                           .greedy = greedy};
    const double reach = sequence.draft_reach * drafting_.chance(guess);
    if (!drafting_.runs(static_cast<int>(size), reach, std::max(making_, 1))) return;
    sequence.draft_reach = reach;
    --draft_rows_left_;
    sequence.drafts.push_back(guess);
    chain[size] = guess.token;
    place.matched = std::min(place.matched + 1, TextLookup::kMatchedMax);
  }
}

// One guess more for sequences that want so many: from the MTP layer's own state, as if the guess before were
// right. Its keys and values stand where the next step's rows will put theirs.
void EngineCore::draft_again(int place) {
  tokens_.clear();
  segments_.clear();
  states_.clear();
  guess_rows_.clear();
  size_t kept = 0;
  for (size_t i = 0; i < guessing_.size(); ++i) {
    Sequence& sequence = *guessing_[i].sequence;
    const int64_t position = sequence.computed + place - 1;
    const int64_t room = sequence.prompt_size + sequence.room - sequence.size() - 1;
    if (std::ssize(sequence.drafts) != place || place >= room ||
        std::ssize(tokens_) >= draft_rows_left_ ||
        !drafting_.goes_on(place, sequence.draft_reach, std::max(making_, 1)) ||
        position >= std::ssize(sequence.pages) * kernels::kPageTokens)
      continue;
    const int row = static_cast<int>(tokens_.size());
    segments_.push_back({sequence.pages.data() + sequence.draft_from / kernels::kPageTokens,
                         position - sequence.draft_from, row, 1});
    tokens_.push_back(sequence.drafts.back().token);
    states_.push_back(static_cast<int32_t>(i));
    guess_rows_.push_back(row);
    guessing_[kept++] = guessing_[i];
  }
  guessing_.resize(kept);
  if (kept == 0) return;
  model_.draft(
      {.tokens = tokens_, .segments = segments_, .states = states_, .guess_rows = guess_rows_, .again = true},
      pool_.base());
  for (size_t i = 0; i < kept; ++i) take_guess(*guessing_[i].sequence, static_cast<int>(i));
}

}  // namespace millrace::engine
