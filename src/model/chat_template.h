// Chat templates: a complete, bounded Jinja interpreter, and what a template needs to know about its tokenizer.
//
// Renders like jinja2 with trim_blocks and lstrip_blocks on and loop controls, as transformers' apply_chat_template
// does. Text that came from the request (messages, tools, kwargs) is marked, so the caller can encode special tokens
// from the template as tokens and the same characters from a user as text.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "base/status.h"

namespace millrace::model {

struct TemplateLimits {
  size_t max_source_bytes = size_t{1} << 20;
  size_t max_output_bytes = size_t{16} << 20;
  size_t max_steps = 10'000'000;  // nodes evaluated
  int max_depth = 200;            // nesting of expressions, blocks and macro calls
};

struct RenderedSegment {
  std::string text;
  bool from_request = false;  // true: a user's words, to be encoded without parsing special tokens
};

class ChatTemplate {
 public:
  // Parses once; errors carry the line. Immutable and thread-safe afterwards.
  static Expected<std::shared_ptr<const ChatTemplate>> parse(std::string_view source, const TemplateLimits& limits);
  static Expected<std::shared_ptr<const ChatTemplate>> parse(std::string_view source) {
    return parse(source, TemplateLimits{});
  }
  virtual ~ChatTemplate() = default;

  // `context` is a JSON object: messages, tools, documents, add_generation_prompt, bos_token, eos_token and any
  // chat_template_kwargs. Strings under messages, tools and documents are the request's words.
  // A template's raise_exception comes back as invalid_argument with the template's message.
  virtual Expected<std::vector<RenderedSegment>> render(const json::value& context) const = 0;
};

}  // namespace millrace::model
