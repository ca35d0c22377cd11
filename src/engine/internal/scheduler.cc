#include "engine/internal/scheduler.h"

#include <algorithm>

namespace millrace::engine {

void Scheduler::add(Sequence& sequence) {
  sequence.state = Sequence::State::waiting;
  waiting_.insert(&sequence);
}

void Scheduler::remove(Sequence& sequence) {
  pool_.release_all(sequence.pages);
  sequence.published = sequence.computed = 0;
  sequence.drafts.clear();
  sequence.draft_passes = 0;
  if (sequence.state == Sequence::State::waiting) {
    waiting_.erase(&sequence);
  } else {
    std::erase(running_, &sequence);
  }
}

std::span<const ScheduledRows> Scheduler::plan() {
  plan_.clear();
  rows_left_ = limits_.max_rows;
  prompt_logit_rows_left_ = limits_.max_prompt_logit_rows;
  preempted_ = false;
  plan_running(true);
  plan_running(false);
  plan_waiting();
  plan_guesses();
  return plan_;
}

int64_t Scheduler::rows_for(const Sequence& sequence) const {
  int64_t rows = std::min(sequence.pending(), rows_left_);
  if (sequence.wants_prompt_logprobs()) rows = std::min(rows, prompt_logit_rows_left_);
  return rows;
}

void Scheduler::schedule(Sequence& sequence, int64_t rows) {
  plan_.push_back({&sequence, static_cast<int>(rows)});
  rows_left_ -= rows;
  if (sequence.wants_prompt_logprobs()) prompt_logit_rows_left_ -= rows;
}

void Scheduler::plan_running(bool decodes) {
  // Taking pages may preempt (erase) sequences from the end of running_, the current one included.
  for (size_t i = 0; i < running_.size(); ++i) {
    Sequence& sequence = *running_[i];
    if ((sequence.pending() == 1) != decodes) continue;
    const int64_t rows = rows_for(sequence);
    if (rows > 0 && take_pages(sequence, sequence.computed + rows)) schedule(sequence, rows);
  }
}

// Guesses take pages only where some are free, one of them ahead for guesses after these.
void Scheduler::plan_guesses() {
  int64_t draft_rows_left = limits_.max_draft_rows;
  const bool prompts = std::ranges::any_of(
      plan_, [](const ScheduledRows& planned) { return planned.sequence->pending() > 1; });
  crowded_ = prompts && rows_left_ == 0;
  for (ScheduledRows& planned : plan_) {
    Sequence& sequence = *planned.sequence;
    if (sequence.pending() != 1) continue;
    const int64_t made = std::ssize(sequence.drafts);
    int64_t drafts = std::min({made, rows_left_, draft_rows_left});
    if (prompts && rows_left_ < made) sequence.draft_passes = 0;  // a prompt in the way says nothing of them
    if (sequence.drafting || drafts > 0) {
      const int64_t wanted = Sequence::pages_for(sequence.computed + 1 + drafts + kMaxDrafts);
      while (std::ssize(sequence.pages) < wanted && pool_.pages_free() > running()) {
        const int32_t page = pool_.allocate();
        if (page < 0) break;
        sequence.pages.push_back(page);
      }
    }
    drafts = std::min(drafts, std::ssize(sequence.pages) * kernels::kPageTokens - sequence.computed - 1);
    sequence.drafts.resize(static_cast<size_t>(drafts));
    planned.drafts = static_cast<int>(drafts);
    planned.rows += planned.drafts;
    rows_left_ -= drafts;
    draft_rows_left -= drafts;
  }
}

// Pages for the first `tokens` tokens; false if the sequence itself had to give way.
bool Scheduler::take_pages(Sequence& sequence, int64_t tokens) {
  while (static_cast<int64_t>(sequence.pages.size()) < Sequence::pages_for(tokens)) {
    if (const int32_t page = pool_.allocate(); page >= 0) {
      sequence.pages.push_back(page);
      continue;
    }
    Sequence& last = *running_.back();
    MR_CHECK(&last != &sequence || running_.size() > 1, "a sequence is longer than the whole KV pool");
    preempt(last);
    if (&last == &sequence) return false;
  }
  return true;
}

void Scheduler::preempt(Sequence& sequence) {
  if (const auto planned = std::ranges::find(plan_, &sequence, &ScheduledRows::sequence);
      planned != plan_.end()) {
    rows_left_ += planned->rows;
    if (sequence.wants_prompt_logprobs()) prompt_logit_rows_left_ += planned->rows;
    plan_.erase(planned);
  }
  remove(sequence);
  add(sequence);
  ++preemptions_;
  preempted_ = true;
}

// Pages that running sequences will still take for tokens they already have.
int64_t Scheduler::promised_pages() const {
  int64_t pages = 0;
  for (const Sequence* sequence : running_)
    pages += std::max<int64_t>(
        0, Sequence::pages_for(sequence->size()) - static_cast<int64_t>(sequence->pages.size()));
  return pages;
}

void Scheduler::plan_waiting() {
  // A sequence that has just lost its pages would take them back: wait for the next step.
  if (preempted_) return;
  while (!waiting_.empty() && rows_left_ > 0) {
    Sequence& first = **waiting_.begin();
    const auto makes_way = [&] {  // the last running one, if it must yield to `first`
      if (running_.empty() || running_.back()->request.priority <= first.request.priority) return false;
      preempt(*running_.back());
      return true;
    };
    if (running() >= limits_.max_sequences && !makes_way()) return;
    if (first.wants_prompt_logprobs() && prompt_logit_rows_left_ <= 0) return;
    while (!admit(first))
      if (!makes_way()) return;
    const int64_t rows = rows_for(first);
    if (rows > 0 && take_pages(first, first.computed + rows)) schedule(first, rows);
    if (preempted_ && waiting_.contains(&first)) return;
  }
}

// Moves a waiting sequence to the running ones, with what the prefix cache has of it, if its known tokens
// will fit beside what is promised to others. One spare page for each of those keeps a fresh admission from
// being preempted by the others' very next pages.
bool Scheduler::admit(Sequence& sequence) {
  MR_CHECK(sequence.pages.empty() && sequence.computed == 0, "a waiting sequence holds no pages");
  if (limits_.prefix_caching && !sequence.wants_prompt_logprobs()) {
    // The last token is always computed: its logits are needed.
    const int64_t pages_at_most = (sequence.size() - 1) / kernels::kPageTokens;
    sequence.published =
        pool_.match(sequence.request.cache_salt, sequence.tokens, pages_at_most, sequence.pages);
  }
  const int64_t needed = Sequence::pages_for(sequence.size()) - sequence.published;
  const int64_t spare = running_.empty() ? 0 : promised_pages() + running();
  if (pool_.pages_free() < needed + spare && !running_.empty()) {
    pool_.release_all(sequence.pages);
    sequence.published = 0;
    return false;
  }
  sequence.computed = sequence.draft_done = sequence.published * kernels::kPageTokens;
  int64_t undrafted = sequence.published;  // guesses attend to the pages after the last one without
  while (undrafted > 0 && pool_.drafted(sequence.pages[static_cast<size_t>(undrafted - 1)])) --undrafted;
  sequence.draft_from = undrafted * kernels::kPageTokens;
  if (!sequence.admitted_before) {
    sequence.admitted_before = true;
    ++admissions_;
    sequence.cached_tokens = std::min(sequence.computed, sequence.prompt_size);
    cached_tokens_ += static_cast<uint64_t>(sequence.cached_tokens);
  }
  waiting_.erase(&sequence);
  sequence.state = Sequence::State::running;
  running_.insert(std::ranges::upper_bound(running_, &sequence, Before{}), &sequence);
  return true;
}

void Scheduler::publish(Sequence& sequence) {
  if (!limits_.prefix_caching) return;
  for (; (sequence.published + 1) * kernels::kPageTokens <= sequence.computed; ++sequence.published) {
    const auto index = static_cast<size_t>(sequence.published);
    const PageTokens tokens = std::span<const TokenId>(sequence.tokens)
                                  .subspan(index * kernels::kPageTokens)
                                  .first<kernels::kPageTokens>();
    const int32_t parent = index == 0 ? -1 : sequence.pages[index - 1];
    const int64_t begin = sequence.published * kernels::kPageTokens, end = begin + kernels::kPageTokens;
    const bool drafted =
        sequence.draft_from >= 0 && sequence.draft_from <= begin && sequence.draft_done >= end;
    const int32_t own = sequence.pages[index];
    const int32_t page = pool_.publish(sequence.request.cache_salt, parent, tokens, own);
    sequence.pages[index] = page;
    if (page == own && drafted) pool_.set_drafted(page);
    if (!pool_.drafted(page)) sequence.draft_from = end;
  }
}

}  // namespace millrace::engine
