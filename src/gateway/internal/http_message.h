// One HTTP request and its answer, free of any network library: what the endpoints see.
//
// An Exchange belongs to one connection's thread. post() and offload() and respond() may be called from any
// thread; the stream calls and the callbacks' registration only from the connection's thread (inside post(),
// or in the handler that was given the exchange). Nothing is sent after the client has gone; calls are then
// silently ignored.
#pragma once
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace millrace::gateway {

using Headers = std::vector<std::pair<std::string, std::string>>;

struct HttpRequest {
  std::string method;       // as sent, e.g. "POST"
  std::string path;         // percent-decoded, without the query
  std::string query;        // after '?', not decoded
  Headers headers;          // names in lower case, in order
  std::string body;         // empty while only the header has been read
  bool has_body = false;    // the header announces a body
  std::string id;           // the client's x-request-id, or ours
  int64_t received_ns = 0;  // monotonic: when the header was complete

  std::string_view header(std::string_view lower_case_name) const;  // the first of that name, or ""
};

struct HttpResponse {
  int status = 200;
  std::string body;
  std::string content_type = "application/json";
  Headers headers;  // besides Content-Type, Content-Length, Date, Connection and x-request-id
};

std::string_view reason_phrase(int status);
// Decodes %XX; false if a '%' is not followed by two hexadecimal digits or the result holds a NUL.
bool percent_decode(std::string_view text, std::string& out);

class Exchange {
 public:
  virtual ~Exchange() = default;
  virtual const HttpRequest& request() const = 0;

  // Runs f on the connection's thread, soon. Keeps the server alive until it has run.
  virtual void post(std::function<void()> f) = 0;
  // Runs f on a worker thread: for parsing, templates and tokenizing, which must not hold up other
  // connections.
  virtual void offload(std::function<void()> f) = 0;

  // The whole answer at once. The first answer wins; later ones are ignored.
  virtual void respond(HttpResponse response) = 0;

  // An answer in pieces (its head's body must be empty): begin, write..., end.
  virtual void begin_stream(HttpResponse head) = 0;
  virtual void write(std::string_view bytes) = 0;
  virtual void end_stream() = 0;
  // Bytes accepted by write() that the kernel has not taken: what a slow reader makes grow. Writers stop
  // formatting above kStreamHighWaterBytes and go on when on_drained is called.
  virtual size_t buffered_bytes() const = 0;

  // At most one of each; replaced by a later call, dropped when the exchange ends (so they may own what owns
  // the exchange).
  virtual void on_disconnect(
      std::function<void()> f) = 0;  // the client has gone (called at once if it already has)
  virtual void on_drained(
      std::function<void()> f) = 0;  // each time the kernel has taken all that was written
  // Calls f on the connection's thread after seconds, unless the exchange has ended. One timer: a later call
  // replaces it.
  virtual void call_after(double seconds, std::function<void()> f) = 0;
};

inline constexpr size_t kStreamHighWaterBytes = size_t{64} << 10;

}  // namespace millrace::gateway
