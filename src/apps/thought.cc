#include "apps/thought.h"

namespace millrace::apps {

ThoughtView::Shown ThoughtView::push(std::string_view piece) {
  engine::ReplyParts parts;
  splitter_.push(piece, parts);
  return show(std::move(parts), false);
}

ThoughtView::Shown ThoughtView::finish() {
  engine::ReplyParts parts;
  splitter_.finish(parts);
  return show(std::move(parts), true);
}

ThoughtView::Shown ThoughtView::show(engine::ReplyParts parts, bool last) {
  Shown out;
  if (!parts.reasoning.empty()) {
    if (!thinking_) out.thought += dimmed("Thinking...\n");
    out.thought += dimmed(parts.reasoning);
    thinking_ = true;
  }
  if (thinking_ && (last || !splitter_.inside())) {
    out.thought += dimmed("\n...done thinking.\n\n");
    thinking_ = false;
  }
  said_.reasoning += parts.reasoning;
  said_.answer += parts.answer;
  out.answer = std::move(parts.answer);
  return out;
}

// Each piece by itself: whatever ends the program between two leaves a plain terminal behind.
std::string ThoughtView::dimmed(std::string_view text) const {
  return dim_ ? "\x1b[2m" + std::string(text) + "\x1b[0m" : std::string(text);
}

}  // namespace millrace::apps
