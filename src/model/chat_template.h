// Chat templates: a complete, bounded Jinja interpreter, and what a template needs to know about its tokenizer.
//
// Renders like jinja2's ImmutableSandboxedEnvironment with trim_blocks, lstrip_blocks and loop controls, as
// transformers' apply_chat_template sets it up, byte for byte (tests/templates). As there, list.append, dict.update and
// their like are refused. Refused besides: include, import and extends where they are reached, autoescape, urlize,
// random, lipsum, bytes, and integers past 128 bits.
//
// Text that came from the request is marked, so the caller can encode special tokens from the template as tokens and
// the same characters from a user as text. Marks follow the bytes through concatenation, slices, strip, split, replace
// and join; whatever rewrites marked text (upper, format, tojson) gives marked text. A segment's
// edge is no token boundary: between two special tokens, encode the segments' text as one.
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
  // chat_template_kwargs. Every string is the request's words, but those under bos_token, eos_token, unk_token,
  // sep_token, pad_token, cls_token, mask_token and additional_special_tokens: the caller must not let a request's
  // kwargs set these names.
  // A template's raise_exception comes back as invalid_argument with the template's message.
  virtual Expected<std::vector<RenderedSegment>> render(const json::value& context) const = 0;
};

}  // namespace millrace::model
