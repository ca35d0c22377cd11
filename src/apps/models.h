// `millrace pull | list | rm | pack`: models on this machine.
#pragma once
#include <string>
#include <vector>

#include "apps/flags.h"

namespace millrace::apps {

int run_pull(const std::string& model, bool if_missing);
int run_list(bool json);
int run_rm(const std::vector<std::string>& models);
int run_pack(const ModelFlags& flags, const std::string& output);

}  // namespace millrace::apps
