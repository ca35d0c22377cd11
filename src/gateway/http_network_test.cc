// The HTTP server on a real loopback socket, before clients that are slow, rude or gone.
#include <gtest/gtest.h>

#include <chrono>
#include <functional>
#include <thread>

#include "gateway/internal/fake_generator.h"
#include "gateway/internal/raw_client.h"

namespace millrace::gateway {
namespace {

using std::chrono::milliseconds;

bool eventually(const std::function<bool()>& condition, int wait_ms = 5000) {
  for (int waited = 0; waited < wait_ms; waited += 5) {
    if (condition()) return true;
    std::this_thread::sleep_for(milliseconds(5));
  }
  return condition();
}

constexpr const char* kChat = R"({"messages":[{"role":"user","content":"hi"}]})";
constexpr const char* kChatStream = R"({"messages":[{"role":"user","content":"hi"}],"stream":true})";
constexpr const char* kEndless =
    R"({"messages":[{"role":"user","content":"hi"}],"stream":true,"max_tokens":2000})";

struct Served {
  explicit Served(HttpOptions options = {},
                  std::shared_ptr<FakeGenerator> fake = std::make_shared<FakeGenerator>())
      : generator(std::move(fake)) {
    options.port = 0;
    auto created = HttpServer::create(options, fake_served_model(), generator);
    MR_CHECK(created.has_value(), created.error().message);
    server = std::move(*created);
    thread = std::thread([this] { server->run(); });
  }
  ~Served() { stop(); }
  void stop() {
    server->stop();
    if (thread.joinable()) thread.join();
  }
  RawResponse ask(const std::string& request, bool head_only = false) const {
    RawClient client(server->port());
    client.send(request);
    return client.read_response(head_only);
  }

  std::shared_ptr<FakeGenerator> generator;
  std::unique_ptr<HttpServer> server;
  std::thread thread;
};

struct WireCase {
  const char* name;
  std::string request;
  int status;
  const char* in_body;
};

TEST(HttpNetwork, AnswersOrRefusesEachRequestAsTheTableSays) {
  const Served served({.max_body_bytes = 10000});
  const std::string long_header(40000, 'a');
  const WireCase cases[] = {
      {"plain GET", http_get("/v1/models"), 200, "\"fake\""},
      {"HTTP/1.0", "GET /v1/models HTTP/1.0\r\n\r\n", 200, "\"fake\""},
      {"absolute form", "GET http://h/version HTTP/1.1\r\nHost: h\r\n\r\n", 200, "version"},
      {"percent-encoded path", http_get("/v1/models/alias%2Fof-fake"), 200, "alias/of-fake"},
      {"plain slash in a name", http_get("/v1/models/alias/of-fake"), 200, "alias/of-fake"},
      {"query is ignored", http_get("/version?x=%zz"), 200, "version"},
      {"unknown model", http_get("/v1/models/none"), 404, "model_not_found"},
      {"unknown path", http_get("/v1/nothing"), 404, "not_found"},
      {"method not allowed", http_get("/v1/chat/completions"), 405, "method_not_allowed"},
      {"unknown method", "BREW / HTTP/1.1\r\nHost: t\r\n\r\n", 405, "method_not_allowed"},
      {"bad percent", http_get("/%zz"), 400, "malformed_request"},
      {"NUL in path", http_get("/%00"), 400, "malformed_request"},
      {"no host", "GET / HTTP/1.1\r\n\r\n", 400, "Host"},
      {"two hosts", "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400, "Host"},
      {"not HTTP", "hello there\r\n\r\n", 400, "malformed_request"},
      {"TLS hello", std::string("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 15), 400,
       "malformed"},
      {"HTTP/2.0", "GET / HTTP/2.0\r\nHost: t\r\n\r\n", 505, "http_version"},
      {"header too large", http_get("/", "X-Long: " + long_header + "\r\n"), 431, "header_too_large"},
      {"body too large", "POST /tokenize HTTP/1.1\r\nHost: t\r\nContent-Length: 10001\r\n\r\n", 413, "10000"},
      {"negative length", "POST /tokenize HTTP/1.1\r\nHost: t\r\nContent-Length: -1\r\n\r\n", 400,
       "malformed"},
      {"two lengths",
       "POST /tokenize HTTP/1.1\r\nHost: t\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}", 400,
       "malformed"},
      {"length and chunked",
       "POST /tokenize HTTP/1.1\r\nHost: t\r\nContent-Length: 2\r\nTransfer-Encoding: "
       "chunked\r\n\r\n0\r\n\r\n",
       400, "malformed"},
      {"unknown coding without a length",
       "POST /tokenize HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: xchunked\r\n\r\n" + http_get("/version"),
       501, "transfer_encoding_not_supported"},
      {"unknown coding beside a length",
       "POST /tokenize HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: identity\r\nContent-Length: 2\r\n\r\n{}",
       501, "transfer_encoding_not_supported"},
      {"a coding before chunked",
       "POST /tokenize HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501,
       "transfer_encoding_not_supported"},
      {"chunked in HTTP/1.0", "POST /tokenize HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 501,
       "transfer_encoding_not_supported"},
      {"bad chunk size", "POST /tokenize HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n\r\n",
       400, "malformed"},
      {"chunks over the limit",
       "POST /tokenize HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n4e20\r\n" +
           std::string(20000, ' ') + "\r\n0\r\n\r\n",
       413, "request_too_large"},
      {"endless chunk extension",
       "POST /tokenize HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n1;" + std::string(80000, 'x'),
       431, "header_too_large"},
      {"unknown expectation", http_post("/tokenize", "{}", "Expect: magic\r\n"), 417, "expectation_failed"},
      {"chunked body",
       "POST /tokenize HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: "
       "chunked\r\n\r\n7\r\n{\"promp\r\n9\r\nt\":\"abc\"}\r\n"
       "0\r\n\r\n",
       200, "[97,98,99]"},
      {"empty body", http_post("/v1/chat/completions", ""), 400, "invalid_json"},
      {"broken JSON", http_post("/v1/chat/completions", "{\"a\":"), 400, "invalid_json"},
      {"array for an object", http_post("/v1/chat/completions", "[]"), 400, "invalid_type"},
  };
  for (const WireCase& c : cases) {
    const RawResponse response = served.ask(c.request);
    EXPECT_EQ(response.status, c.status) << c.name << ": " << response.body;
    EXPECT_NE(response.body.find(c.in_body), std::string::npos) << c.name << ": " << response.body;
    if (c.status >= 400) {
      EXPECT_TRUE(response.body.starts_with("{\"error\":{\"message\":")) << c.name << response.body;
    }
  }
}

TEST(HttpNetwork, HeadOptionsAndAllow) {
  const Served served;
  RawClient client(served.server->port());
  client.send("HEAD /v1/models HTTP/1.1\r\nHost: t\r\n\r\n");
  RawResponse response = client.read_response(true);
  EXPECT_EQ(response.status, 200);
  EXPECT_GT(std::stoi(response.headers["content-length"]), 10);
  client.send("OPTIONS /v1/chat/completions HTTP/1.1\r\nHost: t\r\n\r\n");  // the connection lived on
  response = client.read_response();
  EXPECT_EQ(response.status, 204);
  EXPECT_EQ(response.headers["allow"], "POST, OPTIONS");
  client.send(http_get("/tokenize"));
  response = client.read_response();
  EXPECT_EQ(response.status, 405);
  EXPECT_EQ(response.headers["allow"], "POST, OPTIONS");
  EXPECT_FALSE(response.headers.contains("access-control-allow-origin"));
}

TEST(HttpNetwork, CorsOnlyForConfiguredOrigins) {
  const Served served({.cors_origins = {"https://ui.example"}});
  RawResponse response = served.ask(http_get("/version", "Origin: https://ui.example\r\n"));
  EXPECT_EQ(response.headers["access-control-allow-origin"], "https://ui.example");
  response = served.ask(http_get("/version", "Origin: https://evil.example\r\n"));
  EXPECT_FALSE(response.headers.contains("access-control-allow-origin"));
}

TEST(HttpNetwork, KeysAreAskedForWhereTheyShould) {
  const Served served({.api_keys = {"sk-one", "sk-two"}});
  EXPECT_EQ(served.ask(http_get("/v1/models")).status, 401);
  EXPECT_EQ(served.ask(http_get("/v1/models", "Authorization: Bearer sk-on\r\n")).status, 401);
  EXPECT_EQ(served.ask(http_get("/v1/models", "Authorization: Basic sk-one\r\n")).status, 401);
  EXPECT_EQ(served.ask(http_get("/v1/models", "Authorization: Bearer sk-one\r\n")).status, 200);
  EXPECT_EQ(served.ask(http_get("/v1/models", "Authorization: bearer sk-two\r\n")).status, 200);
  RawResponse response = served.ask(http_post("/v1/chat/completions", kChat));
  EXPECT_EQ(response.status, 401);
  EXPECT_NE(response.body.find("\"code\":\"invalid_api_key\""), std::string::npos) << response.body;
  for (const char* open :
       {"/health", "/health/live", "/health/ready", "/metrics", "/version", "/openapi.json", "/"})
    EXPECT_EQ(served.ask(http_get(open)).status, 200) << open;
}

TEST(HttpNetwork, RequestIdIsEchoedOrMade) {
  const Served served;
  EXPECT_EQ(served.ask(http_get("/version", "X-Request-Id: abc-1\r\n")).headers["x-request-id"], "abc-1");
  EXPECT_EQ(served.ask(http_get("/version")).headers["x-request-id"].size(), 32u);
  const std::string long_id(500, 'x');
  EXPECT_EQ(
      served.ask(http_get("/version", "X-Request-Id: " + long_id + "\r\n")).headers["x-request-id"].size(),
      32u);
}

TEST(HttpNetwork, PipelinedRequestsAreAnsweredInOrder) {
  const Served served;
  RawClient client(served.server->port());
  client.send(http_post("/tokenize", R"({"prompt":"a"})") + http_post("/v1/chat/completions", kChat) +
              "\r\n" + http_get("/version") + http_post("/tokenize", R"({"prompt":"b"})"));
  EXPECT_NE(client.read_response().body.find("[97]"), std::string::npos);
  EXPECT_NE(client.read_response().body.find("Hello, world."), std::string::npos);
  EXPECT_NE(client.read_response().body.find("version"), std::string::npos);
  EXPECT_NE(client.read_response().body.find("[98]"), std::string::npos);
}

TEST(HttpNetwork, ByteByByteRequestIsUnderstood) {
  const Served served;
  RawClient client(served.server->port());
  for (const char c : http_post("/tokenize", R"({"prompt":"ab"})")) {
    client.send({&c, 1});
    if (c == '\n') std::this_thread::sleep_for(milliseconds(1));
  }
  EXPECT_NE(client.read_response().body.find("[97,98]"), std::string::npos);
}

TEST(HttpNetwork, Http10StreamEndsWithTheConnection) {
  const Served served;
  RawClient client(served.server->port());
  const std::string body = kChatStream;
  client.send("POST /v1/chat/completions HTTP/1.0\r\nContent-Length: " + std::to_string(body.size()) +
              "\r\n\r\n" + body);
  const RawResponse response = client.read_response();
  EXPECT_EQ(response.status, 200);
  EXPECT_EQ(response.headers.at("transfer-encoding"), "");  // not chunked
  EXPECT_TRUE(response.body.starts_with("data: {"));
  EXPECT_TRUE(response.body.ends_with("data: [DONE]\n\n"));
}

TEST(HttpNetwork, InheritedListeningSocketIsServed) {
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  ASSERT_EQ(bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
  ASSERT_EQ(listen(fd, 16), 0);
  const Served served({.listen_fd = fd});
  EXPECT_NE(served.server->port(), 0);
  EXPECT_EQ(served.ask(http_get("/version")).status, 200);
  EXPECT_FALSE(HttpServer::create({.listen_fd = 0}, fake_served_model(), served.generator).has_value());
}

TEST(HttpNetwork, ExpectContinueIsAskedForAndRefusedEarly) {
  const Served served({.max_body_bytes = 1000});
  RawClient client(served.server->port());
  client.send("POST /tokenize HTTP/1.1\r\nHost: t\r\nContent-Length: 14\r\nExpect: 100-continue\r\n\r\n");
  EXPECT_EQ(client.read_response().status, 100);
  client.send(R"({"prompt":"a"})");
  EXPECT_EQ(client.read_response().status, 200);
  client.send("POST /tokenize HTTP/1.1\r\nHost: t\r\nContent-Length: 2000\r\nExpect: 100-continue\r\n\r\n");
  EXPECT_EQ(client.read_response().status, 413);
}

TEST(HttpNetwork, LargeRefusedBodyStillGetsItsAnswer) {
  const Served served({.api_keys = {"k"}});
  RawClient client(served.server->port());
  client.send(http_post("/v1/chat/completions", std::string(4 << 20, ' ')));
  EXPECT_EQ(client.read_response().status, 401);
}

TEST(HttpNetwork, HalfSentRequestsTimeOut) {
  const Served served({.header_timeout_s = 0.2, .body_timeout_s = 0.2, .idle_timeout_s = 0.3});
  RawClient header(served.server->port()), body(served.server->port()), idle(served.server->port());
  header.send("GET /version HTTP/1.1\r\nHos");
  body.send("POST /tokenize HTTP/1.1\r\nHost: t\r\nContent-Length: 100\r\n\r\n{\"prompt");
  EXPECT_EQ(header.read_response().status, 408);
  EXPECT_EQ(body.read_response().status, 408);
  EXPECT_TRUE(idle.closed_within(5000));
  EXPECT_EQ(idle.pending(), "");
}

TEST(HttpNetwork, ConnectionsOverTheLimitGetA503) {
  const Served served({.max_connections = 2});
  RawClient a(served.server->port()), b(served.server->port());
  a.send(http_get("/version"));
  b.send(http_get("/version"));
  EXPECT_EQ(a.read_response().status, 200);
  EXPECT_EQ(b.read_response().status, 200);
  RawResponse refused = served.ask(http_get("/version"));
  EXPECT_EQ(refused.status, 503);
  EXPECT_EQ(refused.headers["retry-after"], "1");
  a.close();
  EXPECT_TRUE(eventually([&] { return served.ask(http_get("/version")).status == 200; }));
}

TEST(HttpNetwork, ManyIdleConnectionsDoNotDisturb) {
  const Served served;
  std::vector<std::unique_ptr<RawClient>> idle;
  for (int i = 0; i < 200; ++i) idle.push_back(std::make_unique<RawClient>(served.server->port()));
  EXPECT_EQ(served.ask(http_post("/v1/chat/completions", kChat)).status, 200);
  idle[137]->send(http_get("/version"));
  EXPECT_EQ(idle[137]->read_response().status, 200);
}

TEST(HttpNetwork, DisconnectCancelsAtOnceStreamedOrNot) {
  for (const bool stream : {true, false}) {
    const Served served;
    served.generator->hold = true;
    RawClient client(served.server->port());
    client.send(http_post("/v1/chat/completions", stream ? kChatStream : kChat));
    ASSERT_TRUE(eventually([&] { return served.generator->live() == 1; }));
    client.close();
    EXPECT_TRUE(eventually([&] { return served.generator->cancelled == 1; }, 1000)) << stream;
    EXPECT_EQ(served.generator->live(), 0u);
  }
}

TEST(HttpNetwork, DisconnectWithAFullReadAheadIsNoticed) {
  const Served served;
  served.generator->hold = true;
  RawClient client(served.server->port());
  client.send(http_post("/v1/chat/completions", kChat) + std::string(100000, '\n'));
  ASSERT_TRUE(eventually([&] { return served.generator->live() == 1; }));
  client.close();
  EXPECT_TRUE(eventually([&] { return served.generator->cancelled == 1; }, 3000));
}

TEST(HttpNetwork, SlowReaderLosesNothingAndIsDroppedAtLast) {
  auto text = std::make_shared<FakeGenerator>(std::string(100, 'x'));
  const Served served({.write_timeout_s = 1, .send_buffer_bytes = 32768}, text);
  const std::string long_reply = R"({"prompt":"p","max_tokens":2000,"stream":true,"logprobs":20})";
  RawClient patient(served.server->port(), 32768);
  patient.send(http_post("/v1/completions", long_reply));
  for (int i = 0; i < 20; ++i) {  // slower than the generator, but it does read
    std::this_thread::sleep_for(milliseconds(20));
    patient.receive();
  }
  const RawResponse response = patient.read_response();
  EXPECT_EQ(response.status, 200);
  EXPECT_NE(response.body.find("data: [DONE]"), std::string::npos);
  size_t tokens = 0;
  for (size_t at = response.body.find("\"x\":-0.25"); at != std::string::npos;
       at = response.body.find("\"x\":-0.25", at + 1))
    ++tokens;
  EXPECT_EQ(tokens, 2000u);

  served.generator->hold = true;
  RawClient stuck(served.server->port(), 2048);
  stuck.send(http_post("/v1/completions", long_reply));
  ASSERT_TRUE(eventually([&] { return served.generator->live() == 1; }));
  const RequestId id = served.generator->last_request().id;
  engine::GenerateEvent much{.has_prompt = true, .text = std::string(1 << 20, 'y')};
  served.generator->emit(id, much);  // more than the kernel's buffers take
  EXPECT_TRUE(eventually([&] { return served.generator->cancelled == 1; }, 5000));
}

TEST(HttpNetwork, DrainLetsStreamsFinishAndAcceptsNoMore) {
  auto generator = std::make_shared<FakeGenerator>("0123456789", milliseconds(20));
  Served served({.drain_timeout_s = 10}, generator);
  const uint16_t port = served.server->port();
  RawClient idle(port), client(port);
  client.send(http_post("/v1/chat/completions", kChatStream));
  ASSERT_TRUE(client.wait_for("\"content\":\"0\""));
  served.server->stop();
  EXPECT_TRUE(idle.closed_within(2000));
  const RawResponse response = client.read_response();
  EXPECT_NE(response.body.find("\"content\":\"9\""), std::string::npos);
  EXPECT_NE(response.body.find("data: [DONE]"), std::string::npos);
  EXPECT_TRUE(client.closed_within(2000));
  served.stop();
  EXPECT_FALSE(RawClient(port).connected());
}

TEST(HttpNetwork, DrainGivesUpOnStreamsThatDoNotEnd) {
  Served served({.drain_timeout_s = 0.2});
  served.generator->hold = true;
  RawClient client(served.server->port());
  client.send(http_post("/v1/chat/completions", kEndless));
  ASSERT_TRUE(eventually([&] { return served.generator->live() == 1; }));
  served.stop();
  EXPECT_EQ(served.generator->cancelled, 1);
}

TEST(HttpNetwork, StopBeforeRunAndUnusedServerEndCleanly) {
  auto generator = std::make_shared<FakeGenerator>();
  auto server = HttpServer::create({.port = 0}, fake_served_model(), generator);
  ASSERT_TRUE(server.has_value());
  (*server)->stop();
  (*server)->run();
  EXPECT_TRUE(HttpServer::create({.port = 0}, fake_served_model(), generator).has_value());
}

TEST(HttpNetwork, TakenPortIsAClearError) {
  const Served served;
  const auto second =
      HttpServer::create({.port = served.server->port()}, fake_served_model(), served.generator);
  ASSERT_FALSE(second.has_value());
  EXPECT_EQ(second.error().code, Code::already_exists);
  EXPECT_FALSE(
      HttpServer::create({.host = "no such host"}, fake_served_model(), served.generator).has_value());
}

TEST(HttpNetwork, ManyClientsAtOnceOverThreads) {
  const Served served({.threads = 3});
  std::atomic<int> good{0};
  std::vector<std::thread> clients;
  for (int i = 0; i < 16; ++i)
    clients.emplace_back([&, i] {
      for (int k = 0; k < 10; ++k) {
        RawClient client(served.server->port());
        client.send(http_post("/v1/chat/completions", i % 2 ? kChatStream : kChat));
        if ((i + k) % 5 == 0) continue;  // leaves without reading
        good += client.read_response().status == 200;
      }
    });
  for (auto& client : clients) client.join();
  EXPECT_EQ(good, 128);
  EXPECT_TRUE(eventually([&] { return served.generator->live() == 0; }));
}

}  // namespace
}  // namespace millrace::gateway
