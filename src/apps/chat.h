// `millrace run`: a conversation in the terminal, on an engine in this process.
#pragma once
#include <string>

#include "apps/flags.h"

namespace millrace::apps {

struct ChatOptions {
  ModelFlags model;
  EngineFlags engine{.max_num_seqs = 1};  // one conversation: the KV cache holds its context and no more
  std::string prompt;        // answer this and leave; empty: converse (or, if standard input is a pipe, read it all)
  std::string system;        // system message
  double temperature = -1;   // below 0: the model's recommendation
  int64_t max_tokens = 0;    // 0: what the context allows
  uint64_t seed = 0;
  bool seed_given = false;
  bool verbose = false;      // tokens/s and time to first token after each reply
};
int run_chat(const ChatOptions& options);

}  // namespace millrace::apps
