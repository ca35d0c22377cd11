#include "engine/reasoning.h"

#include <algorithm>

namespace millrace::engine {
namespace {

bool line_end(char byte) { return byte == '\n' || byte == '\r'; }
bool blank(char byte) { return byte == ' ' || byte == '\t' || line_end(byte); }

}  // namespace

ReasoningSplitter::ReasoningSplitter(const ReasoningFormat& format)
    : open_(format.open), close_(format.close), fallback_(format.close.size() + 1, 0) {
  const bool inside = format.start == ReasoningFormat::Start::inside;
  state_ = !format.used() || format.start == ReasoningFormat::Start::answer ? State::answer
           : inside                                                         ? State::inside
                                                                            : State::before;
  opened_ = state_ == State::inside;
  size_t border = 0;
  for (size_t i = 1; i < close_.size(); ++i) {
    while (border > 0 && close_[i] != close_[border]) border = fallback_[border];
    if (close_[i] == close_[border]) ++border;
    fallback_[i + 1] = static_cast<uint8_t>(border);
  }
  ReplyParts said;
  push(format.begun, said);
  begun_ = state_ == State::before ? held_.size() : matched_;
}

std::string_view ReasoningSplitter::begun() const {
  if (state_ == State::before) return std::string_view(held_).substr(blank_);
  return state_ == State::inside ? std::string_view(close_).substr(0, matched_) : std::string_view();
}

void ReasoningSplitter::push(std::string_view piece, ReplyParts& out) {
  while (!piece.empty() && state_ != State::answer) {
    const char byte = piece.front();
    piece.remove_prefix(1);
    if (state_ == State::before) {
      before(byte, out);
    } else if (state_ == State::inside) {
      inside(byte, out);
    } else if (!line_end(byte)) {
      state_ = State::answer;
      out.answer += byte;
    }
  }
  out.answer += piece;
}

void ReasoningSplitter::before(char byte, ReplyParts& out) {
  held_ += byte;
  if (held_.size() - blank_ == 1 && blank(byte)) {
    ++blank_;
    return;
  }
  const size_t seen = held_.size() - blank_;
  if (byte != open_[seen - 1]) {
    state_ = State::answer;
    out.answer.append(held_, begun_);
    held_.clear();
  } else if (seen == open_.size()) {
    state_ = State::inside;
    opened_ = true;
    held_.clear();
    begun_ = 0;
  }
}

// Knuth, Morris and Pratt 1977: what falls out of the match is thought.
void ReasoningSplitter::inside(char byte, ReplyParts& out) {
  while (matched_ > 0 && close_[matched_] != byte) {
    const size_t shorter = fallback_[matched_];
    unmatch(matched_ - shorter, out);
    matched_ = shorter;
  }
  if (close_[matched_] != byte) return think(byte, out);
  if (++matched_ < close_.size()) return;
  state_ = State::after;
  held_.clear();
}

void ReasoningSplitter::unmatch(size_t count, ReplyParts& out) {
  const size_t said = std::min(begun_, count);
  begun_ -= said;
  for (size_t i = said; i < count; ++i) think(close_[i], out);
}

void ReasoningSplitter::think(char byte, ReplyParts& out) {
  if (line_end(byte)) {
    if (said_) held_ += byte;
    return;
  }
  out.reasoning += held_;
  out.reasoning += byte;
  held_.clear();
  said_ = true;
}

void ReasoningSplitter::finish(ReplyParts& out) {
  if (state_ == State::before) out.answer.append(held_, begun_);
  if (state_ == State::inside) {
    unmatch(matched_, out);
    out.reasoning += held_;
  }
  held_.clear();
  matched_ = 0;
  if (state_ == State::before) state_ = State::answer;
}

}  // namespace millrace::engine
