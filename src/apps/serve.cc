#include "apps/serve.h"

#include <fmt/core.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <memory>
#include <sstream>

#include "base/cpu.h"
#include "base/file.h"
#include "base/units.h"
#include "cluster/launch.h"
#include "cluster/supervisor.h"

namespace millrace::apps {
namespace {

// The system's limit for one variable of the environment, which is how the gateway gets the keys, is 128 KiB.
constexpr size_t kMaxKeysBytes = 120 * kKiB;

// The keys of --api-key and --api-key-file; blank lines and lines that begin with # are skipped, and white space
// around a key in the file.
Expected<std::vector<std::string>> collect_keys(const ServeFlags& flags) {
  std::vector<std::string> keys = flags.api_keys;
  if (!flags.api_key_file.empty()) {
    const auto content = MR_TRY(read_file(flags.api_key_file, kMiB));
    std::istringstream text(content);
    for (std::string line; std::getline(text, line);) {
      constexpr const char* kWhite = " \t\r";
      const size_t first = line.find_first_not_of(kWhite);
      if (first == std::string::npos || line[first] == '#') continue;
      keys.push_back(line.substr(first, line.find_last_not_of(kWhite) - first + 1));
    }
    if (keys.empty()) return invalid(fmt::format("{} holds no key", flags.api_key_file), "api-key-file");
  }
  size_t bytes = 0;
  for (const auto& key : keys) {
    bytes += key.size() + 1;
    // Anything else cannot be sent in an Authorization header, so nobody could use it.
    const bool sendable = std::ranges::all_of(key, [](char c) { return c > 0x20 && c < 0x7f; });
    if (key.empty() || !sendable)
      return invalid("an API key must have one or more visible ASCII characters and no spaces", "api-key");
  }
  if (bytes > kMaxKeysBytes)
    return invalid(fmt::format("the API keys have {} bytes together, the limit is {}", bytes, kMaxKeysBytes), "api-key");
  return keys;
}

std::string join(const std::vector<int>& numbers) {
  std::string text;
  for (const int number : numbers) text += (text.empty() ? "" : ",") + std::to_string(number);
  return text;
}

std::string join(const std::vector<std::string>& words) {
  std::string text;
  for (const auto& word : words) text += (text.empty() ? "" : "\n") + word;
  return text;
}

cluster::ChildSpec group_spec(const ServeFlags& flags, const std::string& packed, const cluster::RuntimeDirectory& folder,
                              int index, const std::vector<int>& cpus, std::shared_ptr<cluster::StatusPage> status) {
  cluster::ChildSpec spec;
  spec.name = fmt::format("group {}", index);
  spec.arguments = {"/proc/self/exe", "group-process",
                    "--packed", packed,
                    "--address", folder.group_socket(index),
                    "--status-page", folder.group_status_page(index),
                    "--id", std::to_string(index),
                    "--cpus=" + join(cpus),
                    "--max-model-len", std::to_string(flags.engine.max_model_len),
                    "--max-num-seqs", std::to_string(flags.engine.max_num_seqs),
                    "--max-num-batched-tokens", std::to_string(flags.engine.max_num_batched_tokens),
                    "--kv-cache-gib", fmt::format("{}", flags.engine.kv_cache_gib),
                    "--num-speculative-tokens", std::to_string(flags.engine.num_speculative_tokens),
                    "--weights", flags.engine.weights,
                    "--groups", std::to_string(flags.groups)};
  if (flags.engine.always_speculate) spec.arguments.push_back("--always-speculate");
  if (!flags.engine.speculate_from_text) spec.arguments.push_back("--no-speculate-from-text");
  if (!flags.engine.enable_prefix_caching) spec.arguments.push_back("--no-enable-prefix-caching");
  spec.stop_rank = 1;
  spec.status = std::move(status);
  return spec;
}

cluster::ChildSpec gateway_spec(const ServeFlags& flags, const std::string& packed, const std::vector<std::string>& keys,
                                const cluster::RuntimeDirectory& folder, const cluster::Listener& listener) {
  cluster::ChildSpec spec;
  spec.name = "gateway";
  std::vector<std::string> names = flags.served_model_names;
  if (names.empty()) names.push_back(flags.model.model);
  spec.arguments = {"/proc/self/exe", "gateway-process",
                    "--packed", packed,
                    "--listen-fd", std::to_string(listener.fd),
                    "--host", flags.host,
                    "--port", std::to_string(listener.port),
                    "--max-connections", std::to_string(flags.max_connections),
                    "--drain-timeout", fmt::format("{}", flags.drain_timeout_s)};
  for (int group = 0; group < flags.groups; ++group) {
    spec.arguments.push_back("--group");
    spec.arguments.push_back(folder.group_socket(group));
  }
  if (!flags.chat_template_file.empty()) {
    spec.arguments.push_back("--chat-template");
    spec.arguments.push_back(std::filesystem::absolute(flags.chat_template_file).string());
  }
  spec.arguments.push_back("--reasoning-parser");
  spec.arguments.push_back(flags.reasoning_parser);
  // Not as arguments: everybody on the machine can read those.
  spec.environment = {{"MILLRACE_CHILD_API_KEYS", join(keys)}, {"MILLRACE_CHILD_MODEL_NAMES", join(names)}};
  spec.inherited_fds = {listener.fd};
  spec.stop_rank = 0;
  spec.stop_timeout_s = flags.drain_timeout_s + 5;
  return spec;
}

Expected<int> supervise(const ServeFlags& flags) {
  const auto keys = MR_TRY(collect_keys(flags));
  // Before any work: a port that is taken is the likeliest mistake.
  const auto listener = MR_TRY(cluster::listen_tcp(flags.host, static_cast<uint16_t>(flags.port)));
  const std::string packed = MR_TRY(ensure_packed(flags.model));
  const auto folder = MR_TRY(cluster::RuntimeDirectory::create());
  GrantedCpus granted = granted_cpus();
  if (flags.engine.threads > 0 && flags.engine.threads < granted.threads()) {
    granted.cpus.resize(static_cast<size_t>(flags.engine.threads));
    granted.physical_cores = flags.engine.threads;
  }
  const auto shares = cluster::partition_cpus(granted, flags.groups);
  std::vector<cluster::ChildSpec> children;
  children.push_back(gateway_spec(flags, packed, keys, folder, listener));
  for (int group = 0; group < flags.groups; ++group) {
    auto status = MR_TRY(cluster::StatusPage::create(folder.group_status_page(group)));
    children.push_back(group_spec(flags, packed, folder, group, shares[static_cast<size_t>(group)], std::move(status)));
  }
  const auto supervisor = MR_TRY(cluster::Supervisor::create(std::move(children), {}));
  const int status = supervisor->run();
  ::close(listener.fd);
  return status;
}

}  // namespace

int run_serve(const ServeFlags& flags) {
  const auto status = supervise(flags);
  return status ? *status : report(status.error());
}

}  // namespace millrace::apps
