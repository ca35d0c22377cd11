// For tests: a blocking HTTP client that can be as rude as needed, on plain sockets.
#pragma once
#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <map>
#include <string>
#include <string_view>
#include <utility>

namespace millrace::gateway {

struct RawResponse {
  int status = 0;                              // 0: the connection closed (or nothing came in time) instead
  std::map<std::string, std::string> headers;  // names in lower case
  std::string body;                            // chunks put together
  int chunks = 0;                              // of a chunked body, without the last
};

class RawClient {
 public:
  explicit RawClient(uint16_t port, int receive_buffer_bytes = 0) : fd_(socket(AF_INET, SOCK_STREAM, 0)) {
    if (receive_buffer_bytes > 0)
      setsockopt(fd_, SOL_SOCKET, SO_RCVBUF, &receive_buffer_bytes, sizeof receive_buffer_bytes);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    connected_ = connect(fd_, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0;
  }
  ~RawClient() { close(); }
  RawClient(const RawClient&) = delete;
  RawClient& operator=(const RawClient&) = delete;

  bool connected() const { return connected_; }
  void close() {
    if (fd_ >= 0) ::close(fd_);
    fd_ = -1;
  }
  bool send(std::string_view text) {
    while (!text.empty()) {
      const ssize_t sent = ::send(fd_, text.data(), text.size(), MSG_NOSIGNAL);
      if (sent <= 0) return false;
      text.remove_prefix(static_cast<size_t>(sent));
    }
    return true;
  }
  void shutdown_send() { shutdown(fd_, SHUT_WR); }

  // More input; false at the end of the stream or after wait_ms without any.
  bool receive(int wait_ms = 5000) {
    pollfd descriptor{.fd = fd_, .events = POLLIN, .revents = 0};
    if (poll(&descriptor, 1, wait_ms) <= 0) return false;
    char buffer[16384];
    const ssize_t got = recv(fd_, buffer, sizeof buffer, 0);
    if (got <= 0) {
      eof_ = true;
      return false;
    }
    in_.append(buffer, static_cast<size_t>(got));
    return true;
  }
  bool wait_for(std::string_view text, int wait_ms = 5000) {
    while (in_.find(text) == std::string::npos)
      if (!receive(wait_ms)) return false;
    return true;
  }
  // Whether the server closes within the time (input before that is kept).
  bool closed_within(int wait_ms) {
    while (receive(wait_ms)) {
    }
    return eof_;
  }
  const std::string& pending() const { return in_; }

  RawResponse read_response(bool head_only = false, int wait_ms = 5000) {
    RawResponse response;
    if (!wait_for("\r\n\r\n", wait_ms)) return response;
    const size_t end = in_.find("\r\n\r\n");
    const std::string head = in_.substr(0, end + 2);
    in_.erase(0, end + 4);
    response.status = std::atoi(head.c_str() + std::strlen("HTTP/1.1 "));
    for (size_t at = head.find("\r\n") + 2; at < head.size();) {
      const size_t line_end = head.find("\r\n", at), colon = head.find(':', at);
      std::string name = head.substr(at, colon - at);
      for (char& c : name) c = static_cast<char>(tolower(c));
      response.headers[name] = head.substr(colon + 2, line_end - colon - 2);
      at = line_end + 2;
    }
    if (head_only || response.status == 204 || response.status == 100) return response;
    if (response.headers["transfer-encoding"] == "chunked") return read_chunks(std::move(response), wait_ms);
    if (!response.headers.contains("content-length")) {
      while (receive(wait_ms)) {
      }
      response.body = std::exchange(in_, {});
      return response;
    }
    const size_t size = std::strtoul(response.headers["content-length"].c_str(), nullptr, 10);
    while (in_.size() < size)
      if (!receive(wait_ms)) return {};
    response.body = in_.substr(0, size);
    in_.erase(0, size);
    return response;
  }

 private:
  RawResponse read_chunks(RawResponse response, int wait_ms) {
    for (;;) {
      if (!wait_for("\r\n", wait_ms)) return {};
      const size_t size = std::strtoul(in_.c_str(), nullptr, 16), line = in_.find("\r\n") + 2;
      while (in_.size() < line + size + 2)
        if (!receive(wait_ms)) return {};
      response.body += in_.substr(line, size);
      in_.erase(0, line + size + 2);
      if (size == 0) return response;
      ++response.chunks;
    }
  }

  int fd_;
  bool connected_ = false, eof_ = false;
  std::string in_;
};

inline std::string http_post(std::string_view path, std::string_view body,
                             std::string_view more_headers = "") {
  return "POST " + std::string(path) +
         " HTTP/1.1\r\nHost: t\r\nContent-Type: application/json\r\nContent-Length: " +
         std::to_string(body.size()) + "\r\n" + std::string(more_headers) + "\r\n" + std::string(body);
}
inline std::string http_get(std::string_view path, std::string_view more_headers = "") {
  return "GET " + std::string(path) + " HTTP/1.1\r\nHost: t\r\n" + std::string(more_headers) + "\r\n";
}

}  // namespace millrace::gateway
