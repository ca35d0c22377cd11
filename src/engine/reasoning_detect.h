// Which markers a model puts around its thought, and how a reply to a rendered prompt begins.
#pragma once
#include <span>
#include <string>
#include <string_view>

#include "base/status.h"
#include "engine/reasoning.h"
#include "model/chat_template.h"
#include "model/tokenizer.h"

namespace millrace::engine {

// `parser` is "auto" (what the chat template's source or the vocabulary names), "none", or the name of a
// family's parser, vLLM's names among them: deepseek_r1, deepseek_v3, qwen3, kimi_k2, think; pangu. The
// result is unused() for a model that does not think. Invalid: an unknown name; the message lists the known
// ones.
Expected<ReasoningFormat> find_reasoning(std::string_view parser, std::string_view chat_template,
                                         const model::Tokenizer& tokenizer);
Expected<void> check_reasoning_parser(std::string_view parser);  // without a model: is the name known?

// How a reply begins behind this prompt: what the template wrote last decides. Markers in a user's words do
// not count.
ReasoningFormat::Start reply_start(const ReasoningFormat& format,
                                   std::span<const model::RenderedSegment> prompt);
// The format of a reply that goes on after these words of the assistant (continue_final_message), which the
// prompt ends with but for white space: how it begins, and what of a marker is said already.
ReasoningFormat continued_format(const ReasoningFormat& format, std::string_view words);

}  // namespace millrace::engine
