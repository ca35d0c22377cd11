// Text of a model, cut anywhere, must split as it does in one piece, and nothing may be lost or made up.
// Input: a byte that chooses format and start, then per piece a length byte and the piece.
#include <cstdlib>

#include "engine/reasoning.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace millrace::engine;
  if (size == 0) return 0;
  static const ReasoningFormat kFormats[] = {
      {"<think>", "</think>"}, {"[unused16]", "[unused17]"}, {"a", "aabaa"}, {}};
  ReasoningFormat format = kFormats[data[0] & 3];
  format.start = static_cast<ReasoningFormat::Start>((data[0] >> 2) % 3);
  const std::string& marker = format.start == ReasoningFormat::Start::inside ? format.close : format.open;
  if (!marker.empty()) format.begun = marker.substr(0, (data[0] >> 4) % marker.size());
  ReasoningSplitter pieces(format), whole(format);
  ReplyParts by_pieces, by_whole;
  std::string text;
  std::string_view rest(reinterpret_cast<const char*>(data) + 1, size - 1);
  while (!rest.empty()) {
    const size_t length = static_cast<uint8_t>(rest[0]) % 32;
    const std::string_view piece = rest.substr(1, length);
    pieces.push(piece, by_pieces);
    text += piece;
    rest.remove_prefix(1 + piece.size());
  }
  pieces.finish(by_pieces);
  whole.push(text, by_whole);
  whole.finish(by_whole);
  if (by_pieces.reasoning != by_whole.reasoning || by_pieces.answer != by_whole.answer) std::abort();
  if (!text.ends_with(by_whole.answer)) std::abort();
  if (text.find(by_whole.reasoning) == text.npos) std::abort();
  if (!whole.opened() && by_whole.answer != text) std::abort();
  return 0;
}
