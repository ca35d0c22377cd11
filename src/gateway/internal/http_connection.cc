#include "gateway/internal/http_connection.h"

#include <fmt/format.h>
#include <poll.h>

#include <boost/asio/bind_cancellation_slot.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/string_body.hpp>
#include <ctime>

#include "base/clock.h"
#include "base/log.h"
#include "base/random.h"
#include "gateway/internal/api_error.h"

namespace millrace::gateway {

namespace http = boost::beast::http;
using boost::system::error_code;

struct RequestParser : http::request_parser<http::string_body> {};

namespace {

constexpr size_t kPipelinedBytesMax = size_t{64} << 10;  // read ahead while an answer is being made
constexpr double kLingerSeconds = 2;  // after a refusal: let the client read it before the socket resets
constexpr double kWatchPollSeconds = 0.25;  // once the read-ahead is full
constexpr size_t kRequestIdBytesMax = 128;

std::string request_id_of(std::string_view given) {
  bool usable = !given.empty() && given.size() <= kRequestIdBytesMax;
  for (const char c : given) usable = usable && c > 0x20 && c < 0x7f;
  if (usable) return std::string(given);
  return fmt::format("{:016x}{:016x}", random_seed(), random_seed());
}

const std::string& date_now() {
  thread_local std::time_t cached_at = 0;
  thread_local std::string cached;
  const std::time_t now = std::time(nullptr);
  if (now != cached_at) {
    std::tm tm{};
    gmtime_r(&now, &tm);
    char text[40];
    cached.assign(text, std::strftime(text, sizeof text, "%a, %d %b %Y %H:%M:%S GMT", &tm));
    cached_at = now;
  }
  return cached;
}

HttpResponse parse_error_response(const error_code& error, const HttpFrontOptions& options) {
  if (error == http::error::body_limit)
    return error_response(
        413, fmt::format("The request body is over the limit of {} bytes", options.max_body_bytes),
        "request_too_large");
  if (error == http::error::header_limit)
    return error_response(
        431, fmt::format("The request header is over the limit of {} bytes", options.max_header_bytes),
        "header_too_large");
  if (error == http::error::bad_version)
    return error_response(505, "Only HTTP/1.0 and HTTP/1.1 are spoken here", "http_version_not_supported");
  return error_response(400, fmt::format("Malformed HTTP request: {}", error.message()), "malformed_request");
}

// Fills the request from a parsed header; an answer if it breaks a rule of HTTP that Beast leaves to us.
std::optional<HttpResponse> take_header(const RequestParser& parser, HttpRequest& request) {
  const auto& message = parser.get();
  request.method = std::string(message.method_string());
  int hosts = 0;
  bool coded = false;  // a Transfer-Encoding that is not plain "chunked"
  for (const auto& field : message) {
    std::string name(field.name_string());
    for (char& c : name) c = static_cast<char>(c >= 'A' && c <= 'Z' ? c + 32 : c);
    hosts += name == "host";
    coded = coded || (name == "transfer-encoding" &&
                      (message.version() < 11 || !boost::beast::iequals(field.value(), "chunked")));
    request.headers.emplace_back(std::move(name), std::string(field.value()));
  }
  request.id = request_id_of(request.header("x-request-id"));
  request.received_ns = monotonic_ns();
  request.has_body = parser.chunked() || parser.content_length().value_or(0) > 0;
  // Beast takes a request with an encoding that it does not know for one without a body. A proxy that knows
  // it sees another end of the request than we do, and what lies between is somebody's smuggled request (RFC
  // 9112, 6.1).
  if (coded)
    return error_response(501, "The only Transfer-Encoding that is understood here is 'chunked', in HTTP/1.1",
                          "transfer_encoding_not_supported");
  if (hosts > 1 || (hosts == 0 && message.version() >= 11))
    return error_response(400, "An HTTP/1.1 request needs exactly one Host header", "malformed_request");
  std::string_view target(message.target().data(), message.target().size());
  if (const size_t scheme = target.find("://");
      scheme != target.npos && scheme < target.find_first_of("/?")) {
    const size_t path = target.find('/', scheme + 3);  // absolute form: http://host/path
    target = path == target.npos ? std::string_view("/") : target.substr(path);
  }
  const size_t question = target.find('?');
  if (question != target.npos) request.query = std::string(target.substr(question + 1));
  if (!percent_decode(target.substr(0, question), request.path))
    return error_response(400, "The path of the request is not properly percent-encoded",
                          "malformed_request");
  return std::nullopt;
}

}  // namespace

Connection::Connection(tcp::socket socket, std::shared_ptr<IoThread> thread)
    : thread_(std::move(thread)),
      shared_(*thread_->shared),
      socket_(std::move(socket)),
      deadline_(thread_->context),
      signal_(thread_->context),
      exchange_timer_(thread_->context),
      watch_timer_(thread_->context) {}

void Connection::start() {
  error_code ignored;
  socket_.non_blocking(true, ignored);
  socket_.set_option(tcp::no_delay(true), ignored);
  if (shared_.options.send_buffer_bytes > 0)
    socket_.set_option(tcp::socket::send_buffer_size(shared_.options.send_buffer_bytes), ignored);
  thread_->connections.insert(this);
  asio::co_spawn(
      thread_->context, [self = shared_from_this()]() -> asio::awaitable<void> { co_await self->serve(); },
      asio::detached);
}

void Connection::drain() {
  keep_alive_ = false;
  if (idle_) abort();
}

void Connection::abort() {
  gone();
  error_code ignored;
  socket_.close(ignored);
}

asio::awaitable<void> Connection::serve() {
  try {
    for (bool more = true; more;) more = co_await serve_one();
  } catch (const std::exception& e) {
    log(LogLevel::error, "gateway", "a connection ended with an exception: {}", e.what());
  }
  gone();
  if (exchange_) exchange_->detach();
  exchange_.reset();
  for (asio::steady_timer* timer : {&deadline_, &exchange_timer_, &watch_timer_}) timer->cancel();
  error_code ignored;
  socket_.shutdown(tcp::socket::shutdown_both, ignored);
  socket_.close(ignored);
  thread_->connections.erase(this);
  if (shared_.events.on_connections) shared_.events.on_connections(-1);
  if (shared_.connections.fetch_sub(1) == 1 && shared_.draining) shared_.on_last_connection_closed();
}

asio::awaitable<bool> Connection::serve_one() {
  in_.erase(0, in_.find_first_not_of("\r\n"));  // RFC 9112, section 2.2
  if (in_.empty()) {
    if (shared_.draining) co_return false;
    in_.shrink_to_fit();
    idle_ = true;
    arm(shared_.options.idle_timeout_s);
    const Read got = co_await read_more();
    idle_ = false;
    disarm();
    co_return got == Read::ok && !gone_;
  }
  HttpRequest request;
  BodyAccount account(shared_);
  {
    RequestParser parser;
    parser.header_limit(static_cast<uint32_t>(shared_.options.max_header_bytes));
    parser.body_limit(shared_.options.max_body_bytes);
    const bool header_read = co_await read_header(parser, request);
    if (!header_read) co_return false;
    if (!parser.is_done()) {
      const bool body_read = co_await read_body(parser, account, request);
      if (!body_read) co_return false;
    }
  }
  exchange_ = std::make_shared<ConnectionExchange>(this, thread_, std::move(request));
  early_ ? exchange_->respond(std::move(*early_)) : shared_.events.on_request(exchange_);
  co_await answer();
  exchange_->detach();
  exchange_.reset();
  exchange_timer_.cancel();
  co_return keep_alive_ && !gone_;
}

asio::awaitable<bool> Connection::read_header(RequestParser& parser, HttpRequest& request) {
  arm(shared_.options.header_timeout_s);
  error_code error;
  while (!parser.is_header_done()) {
    error = {};
    if (!in_.empty()) {
      const size_t used = parser.put(asio::buffer(in_), error);
      in_.erase(0, used);
    }
    if (error && error != http::error::need_more) break;
    error = {};
    if (parser.is_header_done()) break;
    const Read got = co_await read_more();
    if (got == Read::timed_out) {
      co_await refuse(request,
                      error_response(408,
                                     fmt::format("The request header was not complete within {} s",
                                                 shared_.options.header_timeout_s),
                                     "request_timeout"),
                      "header_timeout");
      co_return false;
    }
    if (got == Read::closed) co_return false;
  }
  disarm();
  if (error) {
    co_await refuse(request, parse_error_response(error, shared_.options), "malformed");
    co_return false;
  }
  http10_ = parser.get().version() < 11;
  keep_alive_ = parser.keep_alive() && !shared_.draining;
  const std::optional<HttpResponse> malformed = take_header(parser, request);
  if (malformed) {
    co_await refuse(request, *malformed, "malformed");
    co_return false;
  }
  early_ = shared_.events.on_header(request);
  if (early_ && request.has_body) {
    co_await refuse(request, *early_, nullptr);
    co_return false;
  }
  co_return true;  // with nothing to skip, a refusal is an answer like others and the connection lives on
}

asio::awaitable<bool> Connection::read_body(RequestParser& parser, BodyAccount& account,
                                            HttpRequest& request) {
  const std::string_view expect = request.header("expect");
  if (!expect.empty() && !http10_) {
    if (!boost::beast::iequals({expect.data(), expect.size()}, "100-continue")) {
      co_await refuse(request,
                      error_response(417, "Only 'Expect: 100-continue' is understood", "expectation_failed"),
                      "malformed");
      co_return false;
    }
    std::string go_on = "HTTP/1.1 100 Continue\r\n\r\n";
    if (in_.empty()) co_await write_all(go_on, nullptr);
    if (gone_) co_return false;
  }
  arm(shared_.options.body_timeout_s);
  // As many small chunks at a time as have come: cutting each off in_ would move all the rest.
  parser.eager(true);
  while (!parser.is_done()) {
    error_code error;
    if (!in_.empty()) {
      const size_t used = parser.put(asio::buffer(in_), error);
      in_.erase(0, used);
      // A chunk header or trailer that never ends is kept by us, not by the parser.
      if (error == http::error::need_more && in_.size() > shared_.options.max_header_bytes)
        error = http::error::header_limit;
    }
    if (error && error != http::error::need_more) {
      co_await refuse(request, parse_error_response(error, shared_.options), "malformed");
      co_return false;
    }
    if (parser.is_done()) break;
    if (!account.grow_to(parser.get().body().size())) {
      Status busy{.code = Code::unavailable, .message = "Too many request bodies are in memory; try again"};
      busy.retry_after_s = 1;
      co_await refuse(request, error_response(busy), "bodies_limit");
      co_return false;
    }
    if (!in_.empty() && error != http::error::need_more) continue;
    const Read got = co_await read_more();
    if (got == Read::closed) co_return false;
    if (got == Read::timed_out) {
      co_await refuse(request,
                      error_response(408,
                                     fmt::format("The request body was not complete within {} s",
                                                 shared_.options.body_timeout_s),
                                     "request_timeout"),
                      "body_timeout");
      co_return false;
    }
  }
  disarm();
  request.body = std::move(parser.get().body());
  co_return true;
}

asio::awaitable<Connection::Read> Connection::read_more() {
  for (;;) {
    error_code error;
    const size_t got =
        socket_.read_some(asio::buffer(thread_->scratch.get(), IoThread::kScratchBytes), error);
    if (!error) {
      in_.append(thread_->scratch.get(), got);
      co_return Read::ok;
    }
    if (error != asio::error::would_block && error != asio::error::try_again) co_return Read::closed;
    if (timed_out_) co_return Read::timed_out;
    error = {};
    co_await socket_.async_wait(tcp::socket::wait_read, asio::redirect_error(asio::use_awaitable, error));
    if (timed_out_) co_return Read::timed_out;
    if (error) co_return Read::closed;
  }
}

// Writes text; *remaining (if given) counts down. The deadline is for progress, not for the whole.
asio::awaitable<void> Connection::write_all(std::string& text, size_t* remaining) {
  size_t done = 0;
  while (done < text.size() && !gone_) {
    error_code error;
    const size_t sent = socket_.write_some(asio::buffer(text.data() + done, text.size() - done), error);
    if (!error) {
      done += sent;
      if (remaining) *remaining = text.size() - done;
      continue;
    }
    if (error == asio::error::would_block || error == asio::error::try_again) {
      error = {};
      arm(shared_.options.write_timeout_s);
      co_await socket_.async_wait(tcp::socket::wait_write, asio::redirect_error(asio::use_awaitable, error));
      disarm();
      if (timed_out_) shared_.refused("write_timeout");
    }
    if (error || timed_out_) gone();
  }
}

asio::awaitable<void> Connection::answer() {
  ConnectionExchange& exchange = *exchange_;
  bool watch_started = false;
  while (!gone_) {
    if (!exchange.out_.empty()) {
      std::string text = std::exchange(exchange.out_, {});
      exchange.writing_bytes_ = text.size();
      co_await write_all(text, &exchange.writing_bytes_);
      exchange.writing_bytes_ = 0;
      if (!gone_ && exchange.out_.empty() && exchange.drained_) {
        const std::function<void()> call = exchange.drained_;
        call();
      }
    } else if (exchange.ended_) {
      break;
    } else {
      if (!watch_started) {
        watch_started = true;
        stop_watch_ = false;
        watch();
      }
      if (!gone_) co_await wait_signal();
    }
  }
  stop_watch_ = true;
  watch_timer_.cancel();
  while (watching_) {
    watch_cancel_.emit(asio::cancellation_type::all);
    if (watching_) co_await wait_signal();
  }
}

// Writes a refusal after which the connection closes, and gives the client time to read it: closing a socket
// with unread input makes the kernel reset it, which would throw the answer away.
asio::awaitable<void> Connection::refuse(const HttpRequest& request, const HttpResponse& response,
                                         const char* reason) {
  if (reason) shared_.refused(reason);
  if (shared_.events.on_response) shared_.events.on_response(request, response.status);
  keep_alive_ = false;
  std::string text = head_text(request, response, false);
  if (request.method != "HEAD") text += response.body;
  co_await write_all(text, nullptr);
  if (gone_) co_return;
  error_code ignored;
  socket_.shutdown(tcp::socket::shutdown_send, ignored);
  arm(kLingerSeconds);
  for (size_t skipped = 0; skipped <= 2 * shared_.options.max_body_bytes;) {
    in_.clear();
    const Read got = co_await read_more();
    if (got != Read::ok || timed_out_) break;
    skipped += in_.size();
  }
  disarm();
}

asio::awaitable<void> Connection::wait_signal() {
  error_code ignored;
  signal_.expires_at(asio::steady_timer::time_point::max());
  co_await signal_.async_wait(asio::redirect_error(asio::use_awaitable, ignored));
}

void Connection::arm(double seconds) {
  timed_out_ = false;
  const uint64_t generation = ++deadline_generation_;
  deadline_.expires_after(std::chrono::microseconds(static_cast<int64_t>(seconds * 1e6)));
  deadline_.async_wait([self = shared_from_this(), generation](const error_code& error) {
    if (error || generation != self->deadline_generation_) return;
    self->timed_out_ = true;
    error_code ignored;
    self->socket_.cancel(ignored);
  });
}

void Connection::watch() {
  if (stop_watch_ || gone_) return;
  if (in_.size() >= kPipelinedBytesMax) return watch_by_polling();
  watching_ = true;
  socket_.async_wait(
      tcp::socket::wait_read,
      asio::bind_cancellation_slot(watch_cancel_.slot(), [self = shared_from_this()](error_code error) {
        self->watching_ = false;
        if (self->stop_watch_ || self->gone_) return self->wake();
        size_t got = 0;
        if (!error)
          got = self->socket_.read_some(asio::buffer(self->thread_->scratch.get(), IoThread::kScratchBytes),
                                        error);
        if (error && error != asio::error::would_block && error != asio::error::try_again)
          return self->gone();
        self->in_.append(self->thread_->scratch.get(), got);
        self->watch();
      }));
}

// The read-ahead is full, so end-of-file cannot be seen by reading: ask the kernel now and then.
void Connection::watch_by_polling() {
  watch_timer_.expires_after(std::chrono::microseconds(static_cast<int64_t>(kWatchPollSeconds * 1e6)));
  watch_timer_.async_wait([self = shared_from_this()](const error_code& error) {
    if (error || self->stop_watch_ || self->gone_) return;
    pollfd descriptor{.fd = self->socket_.native_handle(), .events = POLLRDHUP, .revents = 0};
    if (poll(&descriptor, 1, 0) > 0) return self->gone();
    self->watch_by_polling();
  });
}

void Connection::gone() {
  if (gone_) return;
  gone_ = true;
  error_code ignored;
  socket_.cancel(ignored);
  deadline_.cancel();
  if (exchange_) {
    const std::function<void()> call = std::exchange(exchange_->disconnected_, nullptr);
    if (call && !exchange_->ended_) call();
  }
  wake();
}

std::string Connection::head_text(const HttpRequest& request, const HttpResponse& response, bool stream) {
  if (shared_.draining) keep_alive_ = false;
  std::string head = fmt::format("HTTP/1.1 {} {}\r\nDate: {}\r\n", response.status,
                                 reason_phrase(response.status), date_now());
  if (!response.content_type.empty() && response.status != 204)
    head += fmt::format("Content-Type: {}\r\n", response.content_type);
  for (const auto& [name, value] : response.headers) head += fmt::format("{}: {}\r\n", name, value);
  if (shared_.events.add_headers) {
    Headers added;
    shared_.events.add_headers(request, added);
    for (const auto& [name, value] : added) head += fmt::format("{}: {}\r\n", name, value);
  }
  if (!request.id.empty()) head += fmt::format("x-request-id: {}\r\n", request.id);
  if (stream && !http10_) head += "Transfer-Encoding: chunked\r\n";
  if (!stream && response.status != 204) head += fmt::format("Content-Length: {}\r\n", response.body.size());
  if (!keep_alive_)
    head += "Connection: close\r\n";
  else if (http10_)
    head += "Connection: keep-alive\r\n";
  return head + "\r\n";
}

}  // namespace millrace::gateway
