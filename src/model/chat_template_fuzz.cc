// Chat templates are files from strangers: whatever their bytes, parsing and rendering end with text or an
// error.
#include <boost/json.hpp>
#include <cstddef>
#include <cstdint>

#include "model/chat_template.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace millrace::model;
  TemplateLimits limits;
  limits.max_steps = 20'000;  // so that one input takes milliseconds
  limits.max_output_bytes = size_t{1} << 16;
  const auto parsed = ChatTemplate::parse({reinterpret_cast<const char*>(data), size}, limits);
  if (!parsed) return 0;
  static const boost::json::value context = boost::json::parse(R"({
    "messages": [{"role": "user", "content": " hé <b> "}, {"role": "assistant", "content": null,
                  "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": {"a": [1, 2.5, "x"]}}}]}],
    "s": "Hello, World", "u": "ß 日本 ǅ", "n": 7, "f": -2.5, "t": true, "l": [3, 1, 2], "d": {"b": 1, "a": 2},
    "bos_token": "<s>", "add_generation_prompt": true})");
  const auto segments = (*parsed)->render(context);
  if (!segments && segments.error().message.empty()) __builtin_trap();
  if (segments)
    for (size_t i = 0; i < segments->size(); ++i)
      if ((*segments)[i].text.empty() ||
          (i > 0 && (*segments)[i].from_request == (*segments)[i - 1].from_request))
        __builtin_trap();
  return 0;
}
