// `millrace bench` and `millrace eval`: speed as shares of this machine's peak, and what INT8 costs.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "apps/flags.h"

namespace millrace::apps {

struct BenchFlags {
  ModelFlags model;
  EngineFlags engine;
  std::vector<int> prefill = {512, 2048};
  int decode = 128;
  std::vector<int> batch = {1, 8, 32};
  int repeat = 3;
  std::string speculation_text;  // a file
  bool json = false;
};
int run_bench_command(const BenchFlags& flags);

struct EvalFlags {
  ModelFlags model;
  EngineFlags engine;
  std::string text_file;
  std::string against = "float32";
  int window = 512;
  int64_t max_tokens = 0;  // 0: the whole file
  bool json = false;
};
int run_eval_command(const EvalFlags& flags);

}  // namespace millrace::apps
