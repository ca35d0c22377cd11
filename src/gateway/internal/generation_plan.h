// From the JSON of a request to what the engine is asked for: validation, defaults, templates. No sockets, no
// state: the same text gives the same plan (but for a drawn seed), which is what http_body_fuzz.cc runs.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "base/status.h"
#include "engine/request.h"
#include "gateway/http_server.h"

namespace millrace::gateway {

class Fields;

struct GenerationPlan {
  bool chat = false;
  std::string model;  // as the client named it, echoed
  bool stream = false;
  bool include_usage = false, continuous_usage = false;
  int n = 1;  // choices per prompt
  bool logprobs = false;
  int top_logprobs = 0;
  bool echo = false;                      // completions: the prompt goes before the reply
  bool include_reasoning = true;          // chat: false drops the thought from the reply
  bool drop_reply = false;                // max_tokens 0: only the prompt (with its logprobs) is wanted
  std::vector<std::string> prompt_texts;  // one per prompt, with echo
  size_t prompt_bytes = 0;                // of all requests' prompts
  std::vector<engine::GenerateRequest> requests;  // prompt-major: choice index = prompt * n + i
};

inline constexpr int kMaxChoicesPerPrompt = 128;
inline constexpr size_t kMaxPrompts = 256;                   // prompts of one completions request
inline constexpr size_t kMaxRequestChoices = 256;            // prompts * n
inline constexpr size_t kMaxPromptBytes = size_t{64} << 20;  // of all copies of the prompts in one request
inline constexpr size_t kMaxMessages = 16384;

Expected<GenerationPlan> plan_chat(const json::value& body, const ServedModel& model);
Expected<GenerationPlan> plan_completion(const json::value& body, const ServedModel& model);

struct TokenizeRequest {
  engine::Prompt prompt;
  bool return_token_strs = false;
};
Expected<TokenizeRequest> plan_tokenize(const json::value& body, const ServedModel& model);

// --- parts, shared by the above ---

Expected<const json::object*> body_object(const json::value& body);
// Checks the optional `model` field: the name to echo, or not_found.
Expected<std::string> requested_model(const Fields& fields, const ServedModel& model);
// Sampling, stop conditions, n, streaming and service_tier into the plan; `request` is the template of each
// choice.
Expected<void> plan_sampling(const Fields& fields, const ServedModel& model, GenerationPlan& plan,
                             engine::GenerateRequest& request);
// Adds n copies of request for one prompt. Choice 0 has the request's own seed, so n = 1 equals choice 0 of n
// = 2.
Expected<void> add_choices(engine::GenerateRequest request, GenerationPlan& plan);
uint64_t choice_seed(uint64_t seed, int choice);
// `messages` through the chat template. Template text may hold special tokens, the request's words may not
// (they are text), unless it sets parse_special_tokens. `reasoning`, if given, becomes the model's format
// with how this reply begins: whether the prompt has opened a thought.
Expected<std::vector<engine::TextSegment>> render_messages(const Fields& fields, const ServedModel& model,
                                                           engine::ReasoningFormat* reasoning = nullptr);

}  // namespace millrace::gateway
