// Sockets in, Exchanges out: HTTP/1.0 and 1.1 against a hostile network. Everything above this header is free
// of Asio.
//
// Bounded: header bytes (431), body bytes (413) and all bodies together (503), time to send a header, a body,
// to take what we write, and to stay idle (408 or a plain close), pipelined bytes, connections (503, then
// closed). One thread per io thread; a connection stays on one. Bodies are handled on worker threads
// (Exchange::offload).
//
// A client that shuts down its sending side counts as gone: what it asked for is cancelled.
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "base/status.h"
#include "gateway/internal/http_message.h"

namespace millrace::gateway {

struct HttpFrontOptions {
  std::string host;
  uint16_t port = 0;
  int listen_fd = -1;
  int io_threads = 1;
  int worker_threads = 1;
  int max_connections = 4096;
  size_t max_header_bytes = size_t{32} << 10;
  size_t max_body_bytes = size_t{16} << 20;
  size_t max_bodies_bytes = size_t{256} << 20;  // bodies being read or handled, all connections together
  double header_timeout_s = 15, body_timeout_s = 60, idle_timeout_s = 120, write_timeout_s = 60;
  double drain_timeout_s = 30;
  int send_buffer_bytes = 256 << 10;  // the kernel's, per socket: bounds what a slow reader costs there
};

// What the front tells of itself: all from the io threads.
struct HttpFrontEvents {
  // A header is complete: an answer here refuses the request before its body is read.
  std::function<std::optional<HttpResponse>(const HttpRequest&)> on_header;
  // A request is complete.
  std::function<void(std::shared_ptr<Exchange>)> on_request;
  // An answer has been handed over for writing. For errors of the protocol itself the request may be empty.
  std::function<void(const HttpRequest&, int status)> on_response;
  std::function<void(int change)> on_connections;  // +1 or -1
  std::function<void(const char* reason)>
      on_refusal;  // a connection or request refused, or dropped for a timeout
  // Adds headers to every answer (CORS).
  std::function<void(const HttpRequest&, Headers&)> add_headers;
};

class HttpFront {
 public:
  static Expected<std::unique_ptr<HttpFront>> create(HttpFrontOptions options, HttpFrontEvents events);
  virtual ~HttpFront() = default;
  virtual void run() = 0;   // blocks until a stop() has drained
  virtual void stop() = 0;  // any thread; idempotent
  virtual bool draining() const = 0;
  virtual uint16_t port() const = 0;
};

}  // namespace millrace::gateway
