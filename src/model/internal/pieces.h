// Small tools shared by the tokenizer's stages.
#pragma once
#include <cstdint>
#include <string_view>
#include <type_traits>

namespace millrace::model::internal {

// A callable by reference, for callbacks that do not outlive the call: one indirect call, no allocation.
template <class Signature>
class FunctionRef;
template <class Result, class... Args>
class FunctionRef<Result(Args...)> {
 public:
  template <class Callable>
  requires(!std::is_same_v<std::remove_cvref_t<Callable>, FunctionRef>) FunctionRef(Callable&& callable)
      : object_(const_cast<void*>(static_cast<const void*>(&callable))),
        call_([](void* object, Args... args) -> Result {
          return (*static_cast<std::remove_reference_t<Callable>*>(object))(args...);
        }) {}
  Result operator()(Args... args) const { return call_(object_, args...); }

 private:
  void* object_;
  Result (*call_)(void*, Args...);
};

// A piece of text on its way through the splits. at_start: it begins where the whole input begins.
struct Piece {
  std::string_view text;
  bool at_start = false;
};

// The code point at text[position], in text already known to be UTF-8; advances position behind it.
inline uint32_t next_code_point(std::string_view text, size_t& position) {
  const auto* p = reinterpret_cast<const uint8_t*>(text.data()) + position;
  if (p[0] < 0x80) {
    position += 1;
    return p[0];
  }
  if (p[0] < 0xE0) {
    position += 2;
    return (p[0] & 0x1Fu) << 6 | (p[1] & 0x3Fu);
  }
  if (p[0] < 0xF0) {
    position += 3;
    return (p[0] & 0x0Fu) << 12 | (p[1] & 0x3Fu) << 6 | (p[2] & 0x3Fu);
  }
  position += 4;
  return (p[0] & 0x07u) << 18 | (p[1] & 0x3Fu) << 12 | (p[2] & 0x3Fu) << 6 | (p[3] & 0x3Fu);
}

// Bytes of the UTF-8 sequence that starts with this byte.
inline size_t sequence_length(char lead) {
  const auto b = static_cast<uint8_t>(lead);
  return b < 0x80 ? 1 : b < 0xE0 ? 2 : b < 0xF0 ? 3 : 4;
}

}  // namespace millrace::model::internal
