// What a reply looks like in a terminal: a model's thought dimmed and between two lines of its own, the answer plain. Pure.
#pragma once
#include <string>
#include <string_view>

#include "engine/reasoning.h"

namespace millrace::apps {

class ThoughtView {
 public:
  // `dim`: the thought goes to a terminal, which knows escape codes. Elsewhere the two lines alone mark it.
  ThoughtView(const engine::ReasoningFormat& format, bool dim) : splitter_(format), dim_(dim) {}

  // What to print of a piece of the reply, the thought first; they may go to different places.
  struct Shown {
    std::string thought, answer;
  };
  Shown push(std::string_view piece);
  Shown finish();  // the reply has ended, within the thought or behind it

  // What was said so far, without the markers: the next turn's history.
  const engine::ReplyParts& said() const { return said_; }

 private:
  Shown show(engine::ReplyParts parts, bool last);
  std::string dimmed(std::string_view text) const;

  engine::ReasoningSplitter splitter_;
  const bool dim_;
  bool thinking_ = false;  // the first line was shown and the last was not
  engine::ReplyParts said_;
};

}  // namespace millrace::apps
