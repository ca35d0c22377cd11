#include "gateway/internal/http_front.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <mutex>
#include <thread>

#include "base/log.h"
#include "gateway/internal/api_error.h"
#include "gateway/internal/http_connection.h"

namespace millrace::gateway {
namespace {

using boost::system::error_code;
constexpr int kTurnedAwayMax =
    64;  // connections over the limit that get a 503 at a time; the rest are just closed
constexpr auto kTurnedAwayLinger = std::chrono::milliseconds(500);
constexpr auto kAcceptRetryDelay = std::chrono::milliseconds(50);  // out of descriptors or memory

std::vector<std::shared_ptr<IoThread>> make_threads(const std::shared_ptr<FrontShared>& shared) {
  std::vector<std::shared_ptr<IoThread>> threads;
  for (int i = 0; i < std::max(1, shared->options.io_threads); ++i)
    threads.push_back(std::make_shared<IoThread>(shared));
  return threads;
}

std::shared_ptr<FrontShared> make_shared_state(HttpFrontOptions options, HttpFrontEvents events) {
  auto shared = std::make_shared<FrontShared>();
  shared->options = std::move(options);
  shared->events = std::move(events);
  shared->workers = std::make_unique<asio::thread_pool>(std::max(1, shared->options.worker_threads));
  return shared;
}

// Thread 0 also accepts. Every thread's context is kept running by a guard, released once a drain has closed
// the last connection.
class Front final : public HttpFront {
 public:
  Front(HttpFrontOptions options, HttpFrontEvents events)
      : shared_(make_shared_state(std::move(options), std::move(events))), threads_(make_threads(shared_)) {
    for (const auto& thread : threads_) guards_.push_back(asio::make_work_guard(thread->context));
    shared_->on_last_connection_closed = [this] { release_threads(); };
  }

  ~Front() override {
    stop();
    if (!ran_) run();  // nothing has been accepted: only cleans up
  }

  Expected<void> listen();

  void run() override {
    ran_ = true;
    std::vector<std::thread> others;
    for (size_t i = 1; i < threads_.size(); ++i)
      others.emplace_back([context = &threads_[i]->context] { context->run(); });
    threads_[0]->context.run();
    for (auto& thread : others) thread.join();
    shared_->workers->join();
    shared_->closed = true;
    for (const auto& thread : threads_) {  // what workers posted last, e.g. the cancellation of a late start
      thread->context.restart();
      thread->context.poll();
    }
  }

  void stop() override {
    if (shared_->draining.exchange(true)) return;
    asio::post(threads_[0]->context, [this] {
      error_code ignored;
      acceptor_.close(ignored);
      drain_deadline_.expires_after(
          std::chrono::milliseconds(static_cast<int64_t>(shared_->options.drain_timeout_s * 1e3)));
      drain_deadline_.async_wait([this](const error_code& error) {
        if (!error) for_each_connection(&Connection::abort);
      });
      for_each_connection(&Connection::drain);
      if (shared_->connections == 0) release_threads();
    });
  }

  bool draining() const override { return shared_->draining; }
  uint16_t port() const override { return port_; }

 private:
  asio::awaitable<void> accept_loop();
  asio::awaitable<void> turn_away(tcp::socket socket);
  void accepted(tcp::socket socket, const std::shared_ptr<IoThread>& thread);

  void for_each_connection(void (Connection::*action)()) {
    for (const auto& thread : threads_)
      asio::post(thread->context, [thread, action] {
        std::vector<std::shared_ptr<Connection>> all;
        for (Connection* connection : thread->connections) all.push_back(connection->shared_from_this());
        for (const auto& connection : all) ((*connection).*action)();
      });
  }

  void release_threads() {
    asio::post(threads_[0]->context, [this] {
      drain_deadline_.cancel();
      guards_.clear();
    });
  }

  asio::io_context& io() { return threads_[0]->context; }

  const std::shared_ptr<FrontShared> shared_;
  const std::vector<std::shared_ptr<IoThread>> threads_;
  std::vector<asio::executor_work_guard<asio::io_context::executor_type>> guards_;
  tcp::acceptor acceptor_{io()};
  asio::steady_timer drain_deadline_{io()}, accept_retry_{io()};
  int turned_away_ = 0;  // thread 0's
  size_t next_thread_ = 0;
  uint16_t port_ = 0;
  bool ran_ = false;
};

Expected<void> Front::listen() {
  const HttpFrontOptions& options = shared_->options;
  error_code error;
  if (options.listen_fd >= 0) {
    const int family = [&] {
      sockaddr_storage address{};
      socklen_t size = sizeof address;
      return getsockname(options.listen_fd, reinterpret_cast<sockaddr*>(&address), &size) == 0
                 ? address.ss_family
                 : 0;
    }();
    if (family != AF_INET && family != AF_INET6)
      return invalid(fmt::format("descriptor {} is not a listening TCP socket", options.listen_fd));
    acceptor_.assign(family == AF_INET6 ? tcp::v6() : tcp::v4(), options.listen_fd, error);
  } else {
    tcp::resolver resolver(io());
    const auto found = resolver.resolve(options.host, fmt::format("{}", options.port),
                                        tcp::resolver::passive | tcp::resolver::numeric_service, error);
    if (error || found.empty())
      return invalid(
          fmt::format("cannot resolve the host '{}' to listen on: {}", options.host, error.message()));
    const tcp::endpoint endpoint = *found.begin();
    acceptor_.open(endpoint.protocol(), error);
    if (!error) acceptor_.set_option(tcp::acceptor::reuse_address(true), error);
    if (!error) acceptor_.bind(endpoint, error);
    if (!error) acceptor_.listen(asio::socket_base::max_listen_connections, error);
  }
  if (error) {
    return fail(error == asio::error::address_in_use ? Code::already_exists : Code::unavailable,
                fmt::format("cannot listen on {}:{}: {}", options.host, options.port, error.message()));
  }
  port_ = acceptor_.local_endpoint(error).port();
  asio::co_spawn(
      io(), [this]() -> asio::awaitable<void> { co_await accept_loop(); }, asio::detached);
  return {};
}

asio::awaitable<void> Front::accept_loop() {
  while (acceptor_.is_open()) {
    const std::shared_ptr<IoThread> thread = threads_[next_thread_++ % threads_.size()];
    error_code error;
    tcp::socket socket(thread->context);
    co_await acceptor_.async_accept(socket, asio::redirect_error(asio::use_awaitable, error));
    if (shared_->draining) break;
    if (error) {
      log(LogLevel::warn, "gateway", "cannot accept a connection: {}", error.message());
      shared_->refused("accept_failed");
      accept_retry_.expires_after(kAcceptRetryDelay);
      co_await accept_retry_.async_wait(asio::redirect_error(asio::use_awaitable, error));
      continue;
    }
    if (shared_->connections >= shared_->options.max_connections) {
      shared_->refused("max_connections");
      if (turned_away_ >= kTurnedAwayMax) continue;
      ++turned_away_;
      asio::co_spawn(
          io(),
          [this, s = std::make_shared<tcp::socket>(std::move(socket))]() -> asio::awaitable<void> {
            co_await turn_away(std::move(*s));
            --turned_away_;
          },
          asio::detached);
      continue;
    }
    accepted(std::move(socket), thread);
  }
}

void Front::accepted(tcp::socket socket, const std::shared_ptr<IoThread>& thread) {
  ++shared_->connections;
  if (shared_->events.on_connections) shared_->events.on_connections(+1);
  const auto connection = std::make_shared<Connection>(std::move(socket), thread);
  asio::post(thread->context, [connection] { connection->start(); });
}

// A short answer for a client over the connection limit, then a moment to read it.
asio::awaitable<void> Front::turn_away(tcp::socket socket) {
  Status full{.code = Code::unavailable,
              .message = fmt::format("All {} connections are in use", shared_->options.max_connections)};
  full.retry_after_s = 1;
  const HttpResponse response = error_response(full);
  std::string text = fmt::format("HTTP/1.1 503 {}\r\nContent-Type: application/json\r\n", reason_phrase(503));
  for (const auto& [name, value] : response.headers) text += fmt::format("{}: {}\r\n", name, value);
  text +=
      fmt::format("Content-Length: {}\r\nConnection: close\r\n\r\n{}", response.body.size(), response.body);
  error_code error;
  socket.non_blocking(true, error);
  socket.write_some(asio::buffer(text), error);  // fits an empty send buffer
  socket.shutdown(tcp::socket::shutdown_send, error);
  asio::steady_timer linger(co_await asio::this_coro::executor, kTurnedAwayLinger);
  co_await linger.async_wait(asio::redirect_error(asio::use_awaitable, error));
  char unread[4096];
  while (!error && socket.read_some(asio::buffer(unread), error) > 0) {
  }
}

}  // namespace

Expected<std::unique_ptr<HttpFront>> HttpFront::create(HttpFrontOptions options, HttpFrontEvents events) {
  try {
    auto front = std::make_unique<Front>(std::move(options), std::move(events));
    MR_TRY(front->listen());
    return front;
  } catch (const std::exception& e) {
    return fail(Code::unavailable, fmt::format("cannot start the HTTP server: {}", e.what()));
  }
}

}  // namespace millrace::gateway
