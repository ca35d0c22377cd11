// Private to http_front.cc, http_connection.cc and http_exchange.cc: the only files that include Asio and
// Beast.
#pragma once
#include <atomic>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/cancellation_signal.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/thread_pool.hpp>
#include <memory>
#include <unordered_set>

#include "gateway/internal/http_front.h"

namespace millrace::gateway {

namespace asio = boost::asio;
using tcp = asio::ip::tcp;

class Connection;

// What connections share. Immutable or atomic after construction.
struct FrontShared {
  HttpFrontOptions options;
  HttpFrontEvents events;
  std::atomic<bool> draining{false};
  std::atomic<bool> closed{false};  // the io threads have ended: nothing posted will run
  std::atomic<int> connections{0};
  std::atomic<size_t> body_bytes{0};
  std::function<void()> on_last_connection_closed;  // from an io thread, while draining
  std::unique_ptr<asio::thread_pool> workers;

  void refused(const char* reason) const {
    if (events.on_refusal) events.on_refusal(reason);
  }
};

struct IoThread {
  explicit IoThread(std::shared_ptr<FrontShared> s)
      : shared(std::move(s)), scratch(new char[kScratchBytes]) {}
  static constexpr size_t kScratchBytes = size_t{64} << 10;
  std::shared_ptr<FrontShared> shared;
  asio::io_context context{1};
  std::unordered_set<Connection*> connections;  // the live ones; belongs to the thread
  std::unique_ptr<char[]> scratch;              // read buffer for all its connections: idle ones hold none
};

// Bytes of one body, counted against all bodies together until destroyed.
class BodyAccount {
 public:
  explicit BodyAccount(FrontShared& shared) : shared_(shared) {}
  BodyAccount(const BodyAccount&) = delete;
  BodyAccount& operator=(const BodyAccount&) = delete;
  ~BodyAccount() { shared_.body_bytes -= held_; }
  bool grow_to(size_t bytes) {  // false: over the limit of all bodies
    const size_t more = bytes > held_ ? bytes - held_ : 0;
    held_ += more;
    return shared_.body_bytes.fetch_add(more) + more <= shared_.options.max_bodies_bytes;
  }

 private:
  FrontShared& shared_;
  size_t held_ = 0;
};

// The Exchange of a Connection. Members belong to the io thread.
class ConnectionExchange final : public Exchange, public std::enable_shared_from_this<ConnectionExchange> {
 public:
  ConnectionExchange(Connection* connection, std::shared_ptr<IoThread> thread, HttpRequest request)
      : thread_(std::move(thread)), request_(std::move(request)), connection_(connection) {}

  const HttpRequest& request() const override { return request_; }
  void post(std::function<void()> f) override;
  void offload(std::function<void()> f) override;
  void respond(HttpResponse response) override;
  void begin_stream(HttpResponse head) override;
  void write(std::string_view bytes) override;
  void end_stream() override;
  size_t buffered_bytes() const override { return out_.size() + writing_bytes_; }
  void on_disconnect(std::function<void()> f) override;
  void on_drained(std::function<void()> f) override;
  void call_after(double seconds, std::function<void()> f) override;

 private:
  friend class Connection;
  void respond_here(const HttpResponse& response);
  void detach();  // the connection is done with it

  const std::shared_ptr<IoThread> thread_;
  const HttpRequest request_;
  Connection* connection_;  // null once detached
  std::string out_;         // to be written
  size_t writing_bytes_ = 0;
  bool begun_ = false, ended_ = false, chunked_ = false;
  std::function<void()> disconnected_, drained_, timer_;
};

// One client socket. All members belong to the io thread.
class Connection : public std::enable_shared_from_this<Connection> {
 public:
  Connection(tcp::socket socket, std::shared_ptr<IoThread> thread);
  void start();  // begins serving; keeps itself alive until closed
  void drain();  // close if idle, else after the current answer
  void abort();  // close now

 private:
  friend class ConnectionExchange;
  enum class Read { ok, closed, timed_out };

  asio::awaitable<void> serve();
  asio::awaitable<bool> serve_one();  // false: close
  asio::awaitable<bool> read_header(struct RequestParser& parser, HttpRequest& request);
  asio::awaitable<bool> read_body(struct RequestParser& parser, BodyAccount& account, HttpRequest& request);
  asio::awaitable<Read> read_more();
  asio::awaitable<void> write_all(std::string& text, size_t* remaining);
  asio::awaitable<void> answer();
  asio::awaitable<void> refuse(const HttpRequest& request, const HttpResponse& response, const char* reason);
  asio::awaitable<void> wait_signal();

  void arm(double seconds);  // deadline for the socket operations that follow
  void disarm() { ++deadline_generation_; }
  void wake() { signal_.cancel(); }  // lets answer() look again
  void watch();                      // notices a client that goes while an answer is being made
  void watch_by_polling();
  void gone();  // the client is gone: tell the exchange, cancel everything
  std::string head_text(const HttpRequest& request, const HttpResponse& response, bool stream);

  const std::shared_ptr<IoThread> thread_;
  FrontShared& shared_;
  tcp::socket socket_;
  asio::steady_timer deadline_, signal_, exchange_timer_, watch_timer_;
  asio::cancellation_signal watch_cancel_;
  std::string in_;                                // received and not yet parsed
  std::optional<HttpResponse> early_;             // refusal made from the header alone
  std::shared_ptr<ConnectionExchange> exchange_;  // while one is being answered
  uint64_t deadline_generation_ = 0;
  bool timed_out_ = false, gone_ = false, idle_ = false, watching_ = false, stop_watch_ = false;
  bool keep_alive_ = true, http10_ = false;
};

}  // namespace millrace::gateway
