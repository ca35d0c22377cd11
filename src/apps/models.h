// `millrace pull | list | rm | pack`: models on this machine.
#pragma once
#include <string>
#include <vector>

#include "apps/flags.h"

namespace millrace::apps {

int run_pull(const std::string& model, bool if_missing);
int run_list(bool json);
int run_rm(const std::vector<std::string>& models);
struct PackFlags {
  ModelFlags model;
  std::string output;     // empty: the cache
  std::string calibrate;  // a file of text; empty: none
};
int run_pack(const PackFlags& flags);

}  // namespace millrace::apps
