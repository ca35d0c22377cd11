// Replies of a model that thinks: the thought beside the answer, streamed equal to whole, counted, switched.
#include <gtest/gtest.h>

#include <boost/json.hpp>
#include <thread>

#include "base/json.h"
#include "gateway/internal/fake_generator.h"
#include "gateway/internal/raw_client.h"

namespace millrace::gateway {
namespace {

struct Parts {
  std::string reasoning, content;
  int64_t reasoning_tokens = -1, completion_tokens = -1;
  std::string finish;
  bool operator==(const Parts&) const = default;
};
std::ostream& operator<<(std::ostream& out, const Parts& parts) {
  return out << '[' << parts.reasoning << "][" << parts.content << "] " << parts.reasoning_tokens << " of "
             << parts.completion_tokens << ' ' << parts.finish;
}

class Server {
 public:
  explicit Server(const std::string& script, engine::ReasoningFormat format = fake_reasoning())
      : generator(std::make_shared<FakeGenerator>(script)) {
    ServedModel model = fake_served_model();
    model.reasoning = std::move(format);
    server_ = std::move(*HttpServer::create({.port = 0}, std::move(model), generator));
    thread_ = std::thread([this] { server_->run(); });
  }
  ~Server() {
    server_->stop();
    thread_.join();
  }

  uint16_t port() const { return server_->port(); }
  RawResponse post(std::string_view fields) {
    RawClient client(server_->port());
    client.send(http_post("/v1/chat/completions", R"({"messages":[{"role":"user","content":"<think>hi"}])" +
                                                      std::string(fields.empty() ? "" : ",") +
                                                      std::string(fields) + "}"));
    return client.read_response();
  }
  json::object message(std::string_view fields = "") {
    const auto reply = parse_json(post(fields).body);
    return reply->as_object().at("choices").as_array().at(0).as_object().at("message").as_object();
  }
  Parts whole(std::string_view fields = "") {
    const RawResponse response = post(fields);
    EXPECT_EQ(response.status, 200) << response.body;
    const json::object reply = parse_json(response.body)->as_object();
    const json::object& choice = reply.at("choices").as_array().at(0).as_object();
    Parts parts{text(choice.at("message").as_object(), "reasoning_content"),
                text(choice.at("message").as_object(), "content")};
    parts.finish = choice.at("finish_reason").as_string();
    take_usage(reply, parts);
    return parts;
  }
  Parts streamed(std::string_view fields = "") {
    const RawResponse response = post(std::string(fields) + (fields.empty() ? "" : ",") +
                                      R"("stream":true,"stream_options":{"include_usage":true})");
    EXPECT_EQ(response.status, 200) << response.body;
    Parts parts;
    for (std::string_view rest = response.body; !rest.empty();) {
      const size_t end = rest.find("\n\n");
      const std::string_view line = rest.substr(0, end);
      rest.remove_prefix(end + 2);
      if (!line.starts_with("data: {")) continue;
      const json::object event = parse_json(line.substr(6))->as_object();
      take_usage(event, parts);
      for (const json::value& choice : event.at("choices").as_array()) {
        const json::object& delta = choice.as_object().at("delta").as_object();
        EXPECT_EQ(text(delta, "reasoning"), text(delta, "reasoning_content"));
        EXPECT_TRUE(parts.content.empty() || !delta.contains("reasoning")) << "thought behind the answer";
        parts.reasoning += text(delta, "reasoning_content");
        parts.content += text(delta, "content");
        if (choice.as_object().at("finish_reason").is_string())
          parts.finish = choice.as_object().at("finish_reason").as_string();
      }
    }
    return parts;
  }

  std::shared_ptr<FakeGenerator> generator;

 private:
  static std::string text(const json::object& object, const char* key) {
    const json::value* value = object.if_contains(key);
    return value && value->is_string() ? std::string(value->get_string()) : std::string();
  }
  static void take_usage(const json::object& reply, Parts& parts) {
    const json::value* usage = reply.if_contains("usage");
    if (!usage || !usage->is_object()) return;
    parts.completion_tokens = usage->at("completion_tokens").as_int64();
    const json::value* details = usage->as_object().if_contains("completion_tokens_details");
    if (details) parts.reasoning_tokens = details->at("reasoning_tokens").as_int64();
  }

  std::unique_ptr<HttpServer> server_;
  std::thread thread_;
};

// A byte is a token here: a token of the thought is each byte behind the opening marker, up to the one that
// closes it.
TEST(ReasoningReply, StreamedEqualsWhole) {
  Server server("<think>\nwhy\n</think>\n\nthis");
  const Parts want{"why", "this", 12, 26, "length"};
  EXPECT_EQ(server.whole(), want);
  EXPECT_EQ(server.streamed(), want);
  // For every length, markers cut anywhere.
  for (int length = 1; length <= 26; ++length) {
    const std::string fields = "\"max_tokens\":" + std::to_string(length);
    EXPECT_EQ(server.streamed(fields), server.whole(fields)) << length;
  }
  const auto two = server.streamed(R"("n":2)");
  EXPECT_EQ(two.completion_tokens, 52);
  EXPECT_EQ(two.reasoning_tokens, 24);
}

TEST(ReasoningReply, ShapeOfTheMessage) {
  Server server("<think>why</think>this");
  json::object message = server.message();
  EXPECT_EQ(message.at("reasoning").as_string(), "why");
  message = server.message(R"("max_tokens":9)");
  EXPECT_TRUE(message.at("content").is_null()) << "it ended within the thought";
  EXPECT_EQ(message.at("reasoning_content").as_string(), "wh");
  message = server.message(R"("include_reasoning":false)");
  EXPECT_TRUE(message.at("reasoning_content").is_null());
  EXPECT_EQ(message.at("content").as_string(), "this");
  EXPECT_EQ(server.streamed(R"("include_reasoning":false)").content, "this");
  EXPECT_EQ(server.streamed(R"("include_reasoning":false)").reasoning, "");
}

TEST(ReasoningReply, SwitchesDecideHowTheReplyBegins) {
  using Start = engine::ReasoningFormat::Start;
  Server server("why</think>this");
  const std::string inside = R"("chat_template_kwargs":{"thinking":true})";
  EXPECT_EQ(server.whole(inside).reasoning, "why");
  EXPECT_EQ(server.whole(inside).reasoning_tokens, 10);
  EXPECT_EQ(server.streamed(inside), server.whole(inside));
  EXPECT_EQ(server.generator->last_request().reasoning.start, Start::inside);
  EXPECT_EQ(server.whole().content, "why</think>this") << "the user's <think> opens nothing";
  EXPECT_EQ(server.generator->last_request().reasoning.start, Start::may_open);
  EXPECT_EQ(server.whole(R"("reasoning_effort":"high")").reasoning, "why");
  EXPECT_EQ(server.whole(R"("reasoning_effort":"none")").content, "why</think>this");
  EXPECT_EQ(server.generator->last_request().reasoning.start, Start::answer);
  EXPECT_EQ(
      server
          .whole(
              R"("reasoning_effort":"none","chat_template_kwargs":{"thinking":true,"enable_thinking":true})")
          .reasoning,
      "why")
      << "the request's own switches win";
}

// A reply that max_tokens cut within a marker is continued: the marker is still one.
TEST(ReasoningReply, AMessageThatEndsWithinAMarkerGoesOn) {
  Server server("nk>why</think>this");
  const auto post = [&](std::string_view content) {
    RawClient client(server.port());
    client.send(http_post("/v1/chat/completions",
                          R"({"continue_final_message":true,"messages":[{"role":"user","content":"hi"},)"
                          R"({"role":"assistant","content":")" +
                              std::string(content) + R"("}]})"));
    return parse_json(client.read_response().body)->at("choices").at(0).at("message").as_object();
  };
  EXPECT_EQ(post("<thi").at("reasoning_content").as_string(), "why");
  EXPECT_EQ(post("<thi").at("content").as_string(), "this");
  EXPECT_EQ(post("<think>so </thi").at("content").as_string(), "why</think>this");
  EXPECT_EQ(post("<b>").at("content").as_string(), "nk>why</think>this");
}

// Of the thought too, whether the reply shows it or not: they were generated, and are counted in usage.
TEST(ReasoningReply, LogprobsHoldEveryTokenOnce) {
  Server server("<think>a</think>b");
  for (const char* fields : {R"("logprobs":true,"stream":true)", R"("logprobs":true)",
                             R"("logprobs":true,"stream":true,"include_reasoning":false)",
                             R"("logprobs":true,"include_reasoning":false)"}) {
    const RawResponse response = server.post(fields);
    size_t tokens = 0;
    for (size_t at = 0; (at = response.body.find("\"logprob\":", at)) != std::string::npos; ++at) ++tokens;
    EXPECT_EQ(tokens, 17u) << fields;
    const bool shown = std::string_view(fields).find("include_reasoning") == std::string_view::npos;
    EXPECT_EQ(response.body.find("\"reasoning_content\":\"a\"") != std::string::npos, shown) << fields;
  }
}

TEST(ReasoningReply, AModelThatDoesNotThinkSaysNothingOfIt) {
  Server server("<think>why</think>this", {});
  const json::object message = server.message();
  EXPECT_EQ(message.at("content").as_string(), "<think>why</think>this");
  EXPECT_FALSE(message.contains("reasoning_content"));
  EXPECT_EQ(server.whole().reasoning_tokens, -1);
}

}  // namespace
}  // namespace millrace::gateway
