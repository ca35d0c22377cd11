// The HTTP face: an OpenAI-compatible API, health, metrics and the chat page, on one listening socket.
//
// run() serves until stop() and then drains: no new connections, streams finish, at most drain_timeout_s.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/status.h"
#include "engine/reasoning.h"
#include "gateway/generator.h"
#include "gateway/tool_history.h"
#include "model/chat_template.h"
#include "model/config.h"
#include "model/tokenizer.h"

namespace millrace::gateway {

struct ServedModel {               // what the HTTP side must know of the model; it never touches weights
  std::vector<std::string> names;  // --served-model-name: the first is the one shown
  int64_t created_unix_s = 0;
  int64_t max_model_len = 0;
  model::ModelConfig config;
  std::shared_ptr<const model::Tokenizer> tokenizer;
  std::shared_ptr<const model::ChatTemplate> chat_template;  // null: chat is refused with a clear 400
  engine::ReasoningFormat reasoning;  // how the model marks its thought; unused: chat replies are all content
  CallHistory call_history;           // how the chat template tells earlier tool calls
  std::string fingerprint;            // system_fingerprint
};

struct HttpOptions {
  std::string host = "127.0.0.1";
  uint16_t port = 8000;               // 0: any (see HttpServer::port)
  int listen_fd = -1;                 // an inherited listening socket; then host and port are for display
  std::vector<std::string> api_keys;  // empty: no authentication
  int threads = 1;
  int max_connections = 4096;
  size_t max_body_bytes = size_t{16} << 20;
  double header_timeout_s = 15, body_timeout_s = 60, idle_timeout_s = 120, write_timeout_s = 60;
  double drain_timeout_s = 30;
  double ping_interval_s =
      5;  // a stream that has nothing to send gets a comment, so that proxies keep it open
  bool vllm_metric_names = true;          // vllm:* beside millrace_*
  std::vector<std::string> cors_origins;  // web origins whose scripts may call; "*": all; empty: none
  int send_buffer_bytes =
      256 << 10;  // the kernel's per connection (0: its own choice); bounds what a slow reader holds
};

class HttpServer {
 public:
  static Expected<std::unique_ptr<HttpServer>> create(HttpOptions options, ServedModel model,
                                                      std::shared_ptr<Generator> generator);
  virtual ~HttpServer() = default;
  virtual void run() = 0;   // blocks
  virtual void stop() = 0;  // from any thread: drain, then run() returns
  virtual uint16_t port() const = 0;
};

}  // namespace millrace::gateway
