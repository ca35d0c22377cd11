// The child processes of `millrace serve`. Their arguments come from serve.cc alone.
#include <fmt/core.h>
#include <signal.h>
#include <sys/resource.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cstdlib>
#include <sstream>
#include <thread>

#include "apps/flags.h"
#include "apps/serve.h"
#include "base/clock.h"
#include "base/cpu.h"
#include "base/file.h"
#include "base/log.h"
#include "base/units.h"
#include "cluster/group_server.h"
#include "engine/reasoning_detect.h"
#include "gateway/dispatcher.h"
#include "gateway/http_server.h"

namespace millrace::apps {
namespace {

struct GatewayArguments {
  std::string packed, host, chat_template, reasoning_parser = "auto";
  int listen_fd = -1, port = 0, max_connections = 4096;
  double drain_timeout_s = 30;
  std::vector<std::string> groups;
};

std::vector<std::string> lines_of(const char* variable) {
  std::vector<std::string> lines;
  if (const char* value = std::getenv(variable)) {
    std::istringstream text(value);
    for (std::string line; std::getline(text, line);) lines.push_back(line);
  }
  ::unsetenv(variable);
  return lines;
}

Expected<gateway::ServedModel> served_model(const GatewayArguments& arguments, const model::PackedModel& packed) {
  gateway::ServedModel served;
  served.names = lines_of("MILLRACE_CHILD_MODEL_NAMES");
  served.created_unix_s = unix_time_s();
  served.config = packed.config();
  served.tokenizer = MR_TRY(model::Tokenizer::create(packed.tokenizer_spec()));
  served.fingerprint = fmt::format("mr-{:016x}", packed.fingerprint());
  std::string source = packed.chat_template();
  if (!arguments.chat_template.empty()) source = MR_TRY(read_file(arguments.chat_template, kMiB));
  if (!source.empty()) {
    auto parsed = model::ChatTemplate::parse(source);
    if (!parsed && !arguments.chat_template.empty())
      return invalid(fmt::format("{}: {}", arguments.chat_template, parsed.error().message));
    if (!parsed) fmt::print(stderr, "millrace: the model's chat template is not usable: {}\n", parsed.error().message);
    if (parsed) {
      served.chat_template = *parsed;
      served.call_history = gateway::call_history_of(**parsed);
    }
  }
  served.reasoning = MR_TRY(engine::find_reasoning(arguments.reasoning_parser, source, *served.tokenizer));
  return served;
}

void greet(const GatewayArguments& arguments, const std::string& name, bool chat, bool keys) {
  const std::string host = arguments.host == "0.0.0.0" || arguments.host == "::" ? "127.0.0.1" : arguments.host;
  const std::string base = fmt::format("http://{}:{}", host.find(':') == std::string::npos ? host : "[" + host + "]", arguments.port);
  const char* key = keys ? " -H 'Authorization: Bearer YOUR_KEY'" : "";
  fmt::print("\n  Millrace serves {} on {}\n\n", name, base);
  if (chat) {
    fmt::print("  Try:    curl {}/v1/chat/completions -H 'Content-Type: application/json'{} \\\n"
               "            -d '{{\"model\": \"{}\", \"messages\": [{{\"role\": \"user\", \"content\": \"What is the capital of "
               "France?\"}}], \"temperature\": 0}}'\n",
               base, key, name);
  } else {
    fmt::print("  Try:    curl {}/v1/completions -H 'Content-Type: application/json'{} -d '{{\"model\": \"{}\", \"prompt\": "
               "\"Once upon a time\"}}'\n",
               base, key, name);
  }
  fmt::print("  Chat:   {}/      Metrics: {}/metrics      API: {}/openapi.json\n  Stop:   Ctrl-C\n\n", base, base, base);
  std::fflush(stdout);
}

Expected<void> gateway_process(const GatewayArguments& arguments) {
  const auto packed = MR_TRY(model::PackedModel::open(arguments.packed));
  auto served = MR_TRY(served_model(arguments, *packed));
  gateway::DispatcherOptions dispatch;
  dispatch.model_fingerprint = packed->fingerprint();
  for (size_t group = 0; group < arguments.groups.size(); ++group)
    dispatch.groups.push_back({GroupId(static_cast<uint32_t>(group)), arguments.groups[group]});
  std::shared_ptr<gateway::Dispatcher> dispatcher = MR_TRY(gateway::Dispatcher::create(dispatch));

  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  // The groups start beside us; what max_model_len is, the first of them says. The supervisor restarts or ends us if
  // none ever comes.
  while (!dispatcher->wait_ready(0.2)) {
    const timespec now{};
    if (sigtimedwait(&signals, nullptr, &now) > 0) return {};
  }
  served.max_model_len = dispatcher->group_info()->max_model_len;
  const std::string name = served.names.empty() ? "model" : served.names.front();
  const bool chat = served.chat_template != nullptr;

  gateway::HttpOptions http;
  http.host = arguments.host;
  http.port = static_cast<uint16_t>(arguments.port);
  http.listen_fd = arguments.listen_fd;
  http.api_keys = lines_of("MILLRACE_CHILD_API_KEYS");
  http.max_connections = arguments.max_connections;
  http.drain_timeout_s = arguments.drain_timeout_s;
  http.threads = granted_cpus().threads() >= 8 ? 2 : 1;
  const bool keys = !http.api_keys.empty();
  const auto server = MR_TRY(gateway::HttpServer::create(std::move(http), std::move(served), dispatcher));
  std::thread stopper([&] {
    int signal = 0;
    sigwait(&signals, &signal);
    dispatcher->set_draining(true);
    server->stop();
  });
  greet(arguments, name, chat, keys);
  server->run();
  ::kill(::getpid(), SIGTERM);  // if run() ended by itself, the stopper still waits
  stopper.join();
  return {};
}

// Many systems start processes with a soft limit of 1024 open files, far below --max-connections.
void allow_open_files(int connections) {
  constexpr rlim_t kOwnFiles = 256;  // groups' sockets, the model, the log
  const rlim_t wanted = static_cast<rlim_t>(connections) + kOwnFiles;
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur >= wanted) return;
  limit.rlim_cur = std::min(wanted, limit.rlim_max);
  if (::setrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur < wanted)
    log(LogLevel::warn, "gateway", "{} connections were asked for, but only {} open files are allowed: ulimit -Hn {}",
        connections, limit.rlim_cur, wanted);
}

int parse(CLI::App& app, int argc, char** argv) {
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    fmt::print(stderr, "millrace {}: {}\n", argv[0], error.what());
    return cluster::kExitConfiguration;
  }
  return 0;
}

}  // namespace

int run_gateway_child(int argc, char** argv) {
  sigset_t signals;  // before any thread exists, so that all inherit it
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  GatewayArguments arguments;
  CLI::App app("a child of millrace serve");
  app.add_option("--packed", arguments.packed)->required();
  app.add_option("--listen-fd", arguments.listen_fd)->required();
  app.add_option("--host", arguments.host)->required();
  app.add_option("--port", arguments.port)->required();
  app.add_option("--max-connections", arguments.max_connections);
  app.add_option("--drain-timeout", arguments.drain_timeout_s);
  app.add_option("--group", arguments.groups)->required();
  app.add_option("--chat-template", arguments.chat_template);
  app.add_option("--reasoning-parser", arguments.reasoning_parser);
  if (const int status = parse(app, argc, argv); status != 0) return status;
  allow_open_files(arguments.max_connections);
  const auto done = gateway_process(arguments);
  if (done) return 0;
  report(done.error());
  const bool permanent = done.error().code == Code::invalid_argument || done.error().code == Code::data_loss;
  return permanent ? cluster::kExitConfiguration : 1;
}

int run_group_child(int argc, char** argv) {
  cluster::GroupProcessOptions options;
  std::string packed, status_page;
  std::vector<int> cpus;
  EngineFlags flags;
  uint32_t id = 0;
  CLI::App app("a child of millrace serve");
  app.add_option("--packed", packed)->required();
  app.add_option("--address", options.address)->required();
  app.add_option("--status-page", status_page);
  app.add_option("--id", id);
  app.add_option("--cpus", cpus)->delimiter(',');
  app.add_option("--groups", options.engine.groups_on_host);
  add_engine_flags(app, flags);
  if (const int status = parse(app, argc, argv); status != 0) return status;
  options.packed_model = packed;
  options.status_page = status_page;
  options.id = GroupId(id);
  const int groups = options.engine.groups_on_host;
  options.engine = engine_options(flags);
  options.engine.groups_on_host = groups;
  if (!cpus.empty()) options.engine.cpus = cpus;
  return cluster::run_group_process(options);
}

}  // namespace millrace::apps
