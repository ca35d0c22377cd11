// The JSON of answers, exactly OpenAI's shapes plus vLLM's additions (stop_reason). Pure functions of their
// arguments.
#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/request.h"
#include "gateway/internal/json_writer.h"
#include "model/tokenizer.h"

namespace millrace::gateway {

struct ReplyHead {  // the same in every chunk of a reply
  bool chat = false;
  std::string id;  // chatcmpl-... or cmpl-...
  int64_t created_unix_s = 0;
  std::string model;
  std::string fingerprint;  // "": null
};

struct Usage {
  int64_t prompt_tokens = 0, cached_tokens = 0, completion_tokens = 0;
  int64_t reasoning_tokens =
      -1;  // of the thought, without its markers where each is a token; -1: not a model that thinks
};

// How a choice ended; empty finish_reason: it has not.
struct Ending {
  std::string finish_reason;  // "stop", "length"
  std::string stop_string;
  TokenId stop_token = -1;  // only one of the request's stop_token_ids
};

struct LegacyLogprobs {  // completions: columns
  std::vector<std::string> tokens;
  std::vector<engine::TokenOut> values;
  std::vector<bool> known;       // false: no logprob (the first token of a prompt)
  std::vector<int64_t> offsets;  // in characters of the choice's text
};

// The text of a token: its bytes as UTF-8, repaired.
std::string token_text(const model::Tokenizer& tokenizer, TokenId id);

void write_usage(JsonWriter& w, const Usage& usage);
// {"content":[{"token","logprob","bytes","top_logprobs":[...]}],"refusal":null}
void write_chat_logprobs(JsonWriter& w, const model::Tokenizer& tokenizer,
                         std::span<const engine::TokenOut> tokens, int top);
// {"tokens":[],"token_logprobs":[],"top_logprobs":[],"text_offset":[]}
void write_legacy_logprobs(JsonWriter& w, const model::Tokenizer& tokenizer, const LegacyLogprobs& columns,
                           int top);
// Appends tokens to the columns; *offset is the next token's place and moves on.
void add_legacy_tokens(const model::Tokenizer& tokenizer, std::span<const engine::TokenOut> tokens,
                       bool first_known, int64_t* offset, LegacyLogprobs& columns);
void write_ending(JsonWriter& w, const Ending& ending);  // "finish_reason":...,"stop_reason":...

// Opens the object of a reply (or of a chunk of a stream) up to and including "choices":[ ; the caller adds
// choices and closes with end_array(), usage, end_object().
void begin_reply(JsonWriter& w, const ReplyHead& head, bool chunk);

}  // namespace millrace::gateway
