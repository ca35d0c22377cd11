#include <fmt/core.h>
#include <pthread.h>
#include <signal.h>

#include <cstdio>

#include "base/clock.h"
#include "base/log.h"
#include "cluster/group_server.h"

namespace millrace::cluster {
namespace {

// Errors that the same start will meet again. Others (a busy address, no memory just now) are worth a
// restart.
bool is_permanent(Code code) {
  switch (code) {
    case Code::invalid_argument:
    case Code::not_found:
    case Code::permission_denied:
    case Code::failed_precondition:
    case Code::out_of_range:
    case Code::unimplemented:
    case Code::data_loss:
      return true;
    default:
      return false;
  }
}

int give_up(const Status& status, const GroupProcessOptions& options, StatusPage* page) {
  const std::string message = fmt::format("group {}: {}", options.id.value, status.message);
  std::fprintf(stderr, "millrace: %s\n", message.c_str());
  if (!is_permanent(status.code)) return 1;
  if (page != nullptr) page->set_message(message);
  return kExitConfiguration;
}

}  // namespace

int run_group_process(const GroupProcessOptions& options) {
  sigset_t stop_signals;
  sigemptyset(&stop_signals);
  sigaddset(&stop_signals, SIGTERM);
  sigaddset(&stop_signals, SIGINT);
  pthread_sigmask(SIG_BLOCK, &stop_signals, nullptr);
  ::signal(SIGPIPE, SIG_IGN);

  std::shared_ptr<StatusPage> page;
  if (!options.status_page.empty()) {
    auto opened = StatusPage::open(options.status_page);
    if (!opened) return give_up(opened.error(), options, nullptr);
    page = *opened;
  }
  const double start_s = monotonic_s();
  auto model = model::PackedModel::open(options.packed_model);
  if (!model) return give_up(model.error(), options, page.get());

  const GroupServerOptions server_options{.address = options.address,
                                          .id = options.id,
                                          .model_fingerprint = (*model)->fingerprint(),
                                          .status = page};
  auto server = GroupServer::start(server_options, [&](engine::EventSink sink) {
    return engine::Engine::create(*model, options.engine, std::move(sink));
  });
  if (!server) return give_up(server.error(), options, page.get());
  log(LogLevel::info, "cluster", "group {} ready on {} after {:.2f} s", options.id.value, options.address,
      monotonic_s() - start_s);

  int signal = 0;
  sigwait(&stop_signals, &signal);
  log(LogLevel::info, "cluster", "group {} stops on signal {}", options.id.value, signal);
  server->reset();
  return 0;
}

}  // namespace millrace::cluster
