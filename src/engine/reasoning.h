// A model's thought and its answer, told apart in the text it generates: `<think>..</think>` of DeepSeek,
// Qwen and Kimi, `[unused16]..[unused17]` of openPangu. Pure: the same text gives the same parts, however it
// is cut into pieces.
//
// A reply has at most one thought, and it comes first: a marker after other words is part of the answer.
// Whether the prompt has opened the thought already (DeepSeek R1's does), or closed it (a thinking switch
// that is off), only who made the prompt knows: ReasoningFormat::start. White space before the opening marker
// goes with it, and line ends inside the two markers and after the closing one (templates strip and add them)
// are no part of either text.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace millrace::engine {

inline constexpr size_t kMaxMarkerBytes = 64;

struct ReasoningFormat {
  enum class Start : int {
    may_open = 0,  // the model may begin with a thought
    inside = 1,    // the prompt ends with the opening marker
    answer = 2,    // the prompt has closed the thought: all is the answer
  };
  std::string open, close;  // both empty: the model does not think, and all is the answer
  Start start = Start::may_open;
  // The prompt ends within a marker (a message that is continued): with these first bytes of it. They decide
  // with the reply what it is, but are no part of it.
  std::string begun{};

  bool used() const { return !open.empty(); }
  bool operator==(const ReasoningFormat&) const = default;
};

struct ReplyParts {
  std::string reasoning, answer;
};

// Splits a reply that comes in pieces. What could still be part of a marker is held back, so the sum of what
// push() and finish() gave is the same for any pieces. Work is linear in the text.
class ReasoningSplitter {
 public:
  explicit ReasoningSplitter(const ReasoningFormat& format);

  void push(std::string_view piece, ReplyParts& out);  // appends to out
  void finish(ReplyParts& out);                        // the reply has ended: gives out what is held back

  bool inside() const { return state_ == State::inside; }  // the thought has begun, and its end was not seen
  size_t undecided() const {
    return state_ == State::before ? held_.size() - begun_ : 0;
  }                                        // bytes: thought or answer?
  bool opened() const { return opened_; }  // there was a thought, be it empty
  std::string_view begun() const;          // how much of a marker ends the text so far

 private:
  enum class State { before, inside, after, answer };
  void before(char byte, ReplyParts& out);
  void inside(char byte, ReplyParts& out);
  void think(char byte, ReplyParts& out);
  void unmatch(size_t count, ReplyParts& out);  // the first of what was matched are thought

  std::string open_, close_;
  std::vector<uint8_t>
      fallback_;  // of close_: [i] is the length of the longest proper border of its first i bytes
  State state_;
  bool opened_ = false, said_ = false;  // said_: some of the thought was given out
  std::string held_;                    // before: white space and the beginning of open_; inside: line ends
  size_t blank_ = 0;                    // before: how much of held_ is white space
  size_t matched_ = 0;                  // inside: how much of close_ ends the text so far
  size_t begun_ = 0;                    // how much of held_ or of what is matched the prompt said
};

}  // namespace millrace::engine
