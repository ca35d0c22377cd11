// Replies over a real socket: shapes, stream framing, logprobs, usage, errors before and within a stream.
#include <gtest/gtest.h>

#include <boost/json.hpp>
#include <thread>

#include "base/json.h"
#include "gateway/internal/fake_generator.h"
#include "gateway/internal/raw_client.h"

namespace millrace::gateway {
namespace {

class Reply : public testing::Test {
 protected:
  Reply() {
    auto created = HttpServer::create({.port = 0, .ping_interval_s = 0.1}, fake_served_model(), generator_);
    server_ = std::move(*created);
    thread_ = std::thread([this] { server_->run(); });
  }
  ~Reply() override {
    server_->stop();
    thread_.join();
  }

  RawResponse post(std::string_view path, std::string_view body) {
    RawClient client(server_->port());
    client.send(http_post(path, body));
    return client.read_response();
  }
  json::object post_json(std::string_view path, std::string_view body) {
    const RawResponse response = post(path, body);
    EXPECT_EQ(response.status, 200) << response.body;
    const auto value = parse_json(response.body);
    EXPECT_TRUE(value.has_value()) << response.body;
    return value ? value->as_object() : json::object();
  }
  // The events of a stream, [DONE] checked and left out.
  std::vector<json::object> post_stream(std::string_view path, std::string_view body) {
    const RawResponse response = post(path, body);
    EXPECT_EQ(response.status, 200) << response.body;
    EXPECT_TRUE(response.headers.at("content-type").starts_with("text/event-stream"));
    return events_of(response.body);
  }
  static std::vector<json::object> events_of(std::string_view text) {
    std::vector<json::object> events;
    bool done = false;
    while (!text.empty()) {
      const size_t end = text.find("\n\n");
      EXPECT_NE(end, text.npos) << text;
      if (end == text.npos) break;
      std::string_view line = text.substr(0, end);
      text.remove_prefix(end + 2);
      if (line.starts_with(":")) continue;
      EXPECT_FALSE(done) << "an event after [DONE]: " << line;
      EXPECT_TRUE(line.starts_with("data: ")) << line;
      line.remove_prefix(6);
      done = line == "[DONE]";
      if (done) continue;
      const auto value = parse_json(line);
      EXPECT_TRUE(value.has_value()) << line;
      if (value) events.push_back(value->as_object());
    }
    EXPECT_TRUE(done);
    return events;
  }

  std::shared_ptr<FakeGenerator> generator_ = std::make_shared<FakeGenerator>("Hello, world.");
  std::unique_ptr<HttpServer> server_;
  std::thread thread_;
};

constexpr const char* kChatPath = "/v1/chat/completions";

std::string chat(std::string_view fields = "") {
  return R"({"messages":[{"role":"user","content":"hi"}])" + std::string(fields.empty() ? "" : ",") +
         std::string(fields) + "}";
}
const json::object& choice(const json::object& reply, size_t i = 0) {
  return reply.at("choices").as_array().at(i).as_object();
}

TEST_F(Reply, ChatWholeHasOpenAisShape) {
  const json::object reply = post_json(kChatPath, chat(R"("model":"alias/of-fake")"));
  EXPECT_TRUE(reply.at("id").as_string().starts_with("chatcmpl-"));
  EXPECT_EQ(reply.at("object").as_string(), "chat.completion");
  EXPECT_GT(reply.at("created").as_int64(), 1700000000);
  EXPECT_EQ(reply.at("model").as_string(), "alias/of-fake");
  EXPECT_EQ(reply.at("system_fingerprint").as_string(), "fp_fake");
  EXPECT_EQ(reply.at("service_tier").as_string(), "default");
  EXPECT_EQ(choice(reply).at("message").as_object().at("role").as_string(), "assistant");
  EXPECT_EQ(choice(reply).at("message").as_object().at("content").as_string(), "Hello, world.");
  EXPECT_EQ(choice(reply).at("finish_reason").as_string(), "length");
  EXPECT_TRUE(choice(reply).at("stop_reason").is_null());
  EXPECT_TRUE(choice(reply).at("logprobs").is_null());
  const json::object& usage = reply.at("usage").as_object();
  EXPECT_EQ(usage.at("completion_tokens").as_int64(), 13);
  EXPECT_EQ(usage.at("total_tokens").as_int64(), 13 + usage.at("prompt_tokens").as_int64());
  EXPECT_EQ(usage.at("prompt_tokens_details").as_object().at("cached_tokens").as_int64(),
            usage.at("prompt_tokens").as_int64() / 2);
}

TEST_F(Reply, ChatStreamHasRoleContentEndUsageDone) {
  const auto events =
      post_stream(kChatPath, chat(R"("stream":true,"stream_options":{"include_usage":true})"));
  ASSERT_GE(events.size(), 4u);
  EXPECT_EQ(choice(events[0]).at("delta").as_object().at("role").as_string(), "assistant");
  std::string text;
  int ends = 0;
  for (size_t i = 0; i + 1 < events.size(); ++i) {
    EXPECT_EQ(events[i].at("object").as_string(), "chat.completion.chunk");
    EXPECT_EQ(events[i].at("id").as_string(), events[0].at("id").as_string());
    EXPECT_TRUE(events[i].at("usage").is_null());
    if (const json::value* content = choice(events[i]).at("delta").as_object().if_contains("content"))
      text += std::string(content->as_string());
    ends += !choice(events[i]).at("finish_reason").is_null();
  }
  EXPECT_EQ(text, "Hello, world.");
  EXPECT_EQ(ends, 1);
  EXPECT_EQ(choice(events[events.size() - 2]).at("finish_reason").as_string(), "length");
  EXPECT_TRUE(events.back().at("choices").as_array().empty());
  EXPECT_EQ(events.back().at("usage").as_object().at("completion_tokens").as_int64(), 13);
}

TEST_F(Reply, ContinuousUsageIsOnEveryChunkAndNoneWithoutAsking) {
  auto events = post_stream(
      kChatPath,
      chat(R"("stream":true,"stream_options":{"include_usage":true,"continuous_usage_stats":true})"));
  int64_t before = 0;
  for (const json::object& event : events) {
    const int64_t now = event.at("usage").as_object().at("completion_tokens").as_int64();
    EXPECT_GE(now, before);
    before = now;
  }
  EXPECT_EQ(before, 13);
  events = post_stream(kChatPath, chat(R"("stream":true)"));
  for (const json::object& event : events) EXPECT_FALSE(event.contains("usage"));
}

TEST_F(Reply, StopStringAndStopTokenAreReported) {
  json::object reply = post_json(kChatPath, chat(R"("stop":["o, w"])"));
  EXPECT_EQ(choice(reply).at("finish_reason").as_string(), "stop");
  EXPECT_EQ(choice(reply).at("stop_reason").as_string(), "o, w");
  reply = post_json(kChatPath, chat(R"("stop_token_ids":[44],"logprobs":true)"));  // ','
  EXPECT_EQ(choice(reply).at("stop_reason").as_int64(), 44);
  EXPECT_EQ(choice(reply).at("message").as_object().at("content").as_string(), "Hello");
  EXPECT_EQ(choice(reply).at("logprobs").as_object().at("content").as_array().size(), 5u);
  EXPECT_EQ(reply.at("usage").as_object().at("completion_tokens").as_int64(), 6);  // it was generated
}

TEST_F(Reply, ChatLogprobsHaveBytesAndTop) {
  const json::object reply = post_json(kChatPath, chat(R"("logprobs":true,"top_logprobs":2,"max_tokens":2)"));
  const json::array& content = choice(reply).at("logprobs").as_object().at("content").as_array();
  ASSERT_EQ(content.size(), 2u);
  const json::object& first = content[0].as_object();
  EXPECT_EQ(first.at("token").as_string(), "H");
  EXPECT_EQ(first.at("logprob").as_double(), -0.25);
  EXPECT_EQ(first.at("bytes").as_array().at(0).as_int64(), 72);
  ASSERT_EQ(first.at("top_logprobs").as_array().size(), 2u);
  EXPECT_EQ(first.at("top_logprobs").as_array()[1].as_object().at("token").as_string(), "I");
}

TEST_F(Reply, CompletionWithEchoAndLogprobsCountsThePrompt) {
  const json::object reply =
      post_json("/v1/completions", R"({"prompt":"é!","echo":true,"logprobs":2,"max_tokens":2})");
  EXPECT_EQ(choice(reply).at("text").as_string(), "é!He");
  const json::object& logprobs = choice(reply).at("logprobs").as_object();
  ASSERT_EQ(logprobs.at("tokens").as_array().size(), 5u);
  EXPECT_EQ(logprobs.at("tokens").as_array()[0].as_string(), "bytes:\\xc3");
  EXPECT_EQ(logprobs.at("tokens").as_array()[4].as_string(), "e");
  EXPECT_TRUE(logprobs.at("token_logprobs").as_array()[0].is_null());
  EXPECT_TRUE(logprobs.at("top_logprobs").as_array()[0].is_null());
  EXPECT_EQ(logprobs.at("top_logprobs").as_array()[4].as_object().size(), 2u);
  EXPECT_EQ(json::serialize(logprobs.at("text_offset")), "[0,1,1,2,3]");
}

TEST_F(Reply, EchoWithoutAReplyScoresThePrompt) {
  const json::object reply =
      post_json("/v1/completions", R"({"prompt":"abc","echo":true,"logprobs":1,"max_tokens":0})");
  EXPECT_EQ(choice(reply).at("text").as_string(), "abc");
  EXPECT_EQ(choice(reply).at("finish_reason").as_string(), "length");
  EXPECT_EQ(choice(reply).at("logprobs").as_object().at("tokens").as_array().size(), 3u);
  EXPECT_EQ(reply.at("usage").as_object().at("completion_tokens").as_int64(), 0);
}

TEST_F(Reply, CompletionStreamJoinsToTheWhole) {
  const auto events =
      post_stream("/v1/completions", R"({"prompt":["ab","cd"],"echo":true,"n":2,"stream":true})");
  std::map<int64_t, std::string> texts;
  std::map<int64_t, int> ends;
  for (const json::object& event : events) {
    EXPECT_EQ(event.at("object").as_string(), "text_completion");
    const json::object& c = choice(event);
    texts[c.at("index").as_int64()] += std::string(c.at("text").as_string());
    ends[c.at("index").as_int64()] += !c.at("finish_reason").is_null();
  }
  ASSERT_EQ(texts.size(), 4u);
  EXPECT_EQ(texts[1], "abHello, world.");
  EXPECT_EQ(texts[2], "cdHello, world.");
  for (const auto& [index, count] : ends) EXPECT_EQ(count, 1) << index;
}

TEST_F(Reply, ManyChoicesCountThePromptOnce) {
  const json::object reply = post_json(kChatPath, chat(R"("n":3)"));
  ASSERT_EQ(reply.at("choices").as_array().size(), 3u);
  for (size_t i = 0; i < 3; ++i) EXPECT_EQ(choice(reply, i).at("index").as_int64(), static_cast<int64_t>(i));
  EXPECT_EQ(reply.at("usage").as_object().at("completion_tokens").as_int64(), 39);
  EXPECT_EQ(reply.at("usage").as_object().at("prompt_tokens").as_int64(),
            post_json(kChatPath, chat()).at("usage").as_object().at("prompt_tokens").as_int64());
}

TEST_F(Reply, BrokenUtf8FromAModelStaysValidJson) {
  generator_->hold = true;
  RawClient client(server_->port());
  client.send(http_post(kChatPath, chat(R"("logprobs":true,"top_logprobs":1)")));
  while (generator_->live() == 0) std::this_thread::yield();
  engine::GenerateEvent event{
      .has_prompt = true, .text = "a\xff\"\\\n\x01z", .finish = engine::FinishReason::stop};
  event.tokens = {{.token = 255, .logprob = -std::numeric_limits<float>::infinity(), .top = {{300, NAN}}}};
  generator_->emit(generator_->last_request().id, event);
  const auto value = parse_json(client.read_response().body);
  ASSERT_TRUE(value.has_value());
  EXPECT_EQ(choice(value->as_object()).at("message").as_object().at("content").as_string(),
            "a\xEF\xBF\xBD\"\\\n\x01z");
  const json::object& token =
      choice(value->as_object()).at("logprobs").as_object().at("content").as_array()[0].as_object();
  EXPECT_EQ(token.at("logprob").to_number<double>(), -9999);
  EXPECT_EQ(token.at("bytes").as_array()[0].as_int64(), 255);
}

TEST_F(Reply, RefusalsOfTheGeneratorKeepTheirStatus) {
  Status full{.code = Code::resource_exhausted, .message = "queue is full", .reason = "queue_full"};
  full.retry_after_s = 2.5;
  generator_->refuse_with(full);
  for (const char* fields : {"", R"("stream":true)"}) {
    RawResponse response = post(kChatPath, chat(fields));
    EXPECT_EQ(response.status, 429);
    EXPECT_EQ(response.headers["retry-after"], "3");
    EXPECT_NE(response.body.find("\"code\":\"queue_full\""), std::string::npos);
  }
  generator_->refuse_with(Status{.code = Code::unavailable, .message = "no group is up"});
  EXPECT_EQ(post(kChatPath, chat()).status, 503);
}

TEST_F(Reply, ContextOverflowFoundByTheGroupIsA400EvenForAStream) {
  generator_->hold = true;
  for (const char* fields : {"", R"("stream":true)"}) {
    RawClient client(server_->port());
    client.send(http_post(kChatPath, chat(fields)));
    while (generator_->live() == 0) std::this_thread::yield();
    engine::GenerateEvent event{.finish = engine::FinishReason::error};
    event.error = {
        .code = Code::invalid_argument, .message = "too long", .reason = "context_length_exceeded"};
    generator_->emit(generator_->last_request().id, event);
    const RawResponse response = client.read_response();
    EXPECT_EQ(response.status, 400);
    EXPECT_NE(response.body.find("\"code\":\"context_length_exceeded\""), std::string::npos);
    EXPECT_NE(response.body.find("\"param\":\"messages\""), std::string::npos);
  }
  RawClient client(server_->port());
  client.send(http_post("/v1/completions", R"({"prompt":"hi"})"));
  while (generator_->live() == 0) std::this_thread::yield();
  engine::GenerateEvent event{.finish = engine::FinishReason::error};
  event.error = {.code = Code::invalid_argument, .reason = "context_length_exceeded", .param = "messages"};
  generator_->emit(generator_->last_request().id, event);
  EXPECT_NE(client.read_response().body.find("\"param\":\"prompt\""), std::string::npos);
}

TEST_F(Reply, QueuedStreamIsPingedAndLaterErrorsAreEvents) {
  generator_->hold = true;
  RawClient client(server_->port());
  client.send(http_post(kChatPath, chat(R"("stream":true,"n":2)")));
  ASSERT_TRUE(client.wait_for(": ping\n\n"));
  engine::GenerateEvent event{.finish = engine::FinishReason::error};
  event.error = {.code = Code::unavailable, .message = "the group died"};
  generator_->emit(generator_->last_request().id, event);
  const RawResponse response = client.read_response();
  EXPECT_EQ(response.status, 200);
  const auto events = events_of(response.body);
  ASSERT_EQ(events.size(), 1u);
  EXPECT_EQ(events[0].at("error").as_object().at("message").as_string(), "the group died");
  EXPECT_EQ(generator_->cancelled, 1);  // the other choice
  EXPECT_EQ(generator_->live(), 0u);
}

TEST_F(Reply, TokenizeAndDetokenizeHaveVllmsShape) {
  json::object reply =
      post_json("/tokenize", R"({"model":"fake","prompt":"a b<|im_end|>","return_token_strs":true})");
  EXPECT_EQ(json::serialize(reply), R"({"count":4,"max_model_len":2048,"tokens":[97,32,98,257],)"
                                    R"("token_strs":["a","Ġ","b","<|im_end|>"]})");
  reply = post_json("/tokenize", R"({"prompt":"<|im_end|>","parse_special_tokens":false})");
  EXPECT_EQ(reply.at("count").as_int64(), 10);
  EXPECT_TRUE(reply.at("token_strs").is_null());
  reply = post_json("/tokenize",
                    R"({"messages":[{"role":"u","content":"<|im_end|>"}],"add_generation_prompt":false})");
  EXPECT_EQ(reply.at("count").as_int64(),
            1 + 2 + 10 + 2);  // the template's two specials, the user's ten characters
  EXPECT_EQ(post_json("/detokenize", R"({"tokens":[72,105,257]})").at("prompt").as_string(), "Hi<|im_end|>");
  EXPECT_EQ(post("/detokenize", R"({"tokens":[9999]})").status, 400);
  EXPECT_EQ(post("/detokenize", R"({})").status, 400);
  EXPECT_EQ(post("/tokenize", R"({"prompt":5})").status, 400);
}

TEST_F(Reply, HealthTellsTheTruth) {
  RawClient client(server_->port());
  client.send(http_get("/health") + http_get("/health/ready") + http_get("/health/live"));
  RawResponse health = client.read_response();
  EXPECT_EQ(health.status, 200);
  EXPECT_EQ(health.body, "");
  EXPECT_EQ(client.read_response().status, 200);
  EXPECT_EQ(client.read_response().status, 200);
  generator_->is_ready = false;
  client.send(http_get("/health") + http_get("/health/ready") + http_get("/health/live"));
  EXPECT_EQ(client.read_response().status, 503);
  const RawResponse ready = client.read_response();
  EXPECT_EQ(ready.status, 503);
  EXPECT_NE(ready.body.find("\"progressing\":false"), std::string::npos);
  EXPECT_EQ(client.read_response().status, 200);
}

TEST_F(Reply, MetricsCountWhatHappened) {
  post_json(kChatPath, chat());
  post(kChatPath, "{");
  RawClient client(server_->port());
  client.send(http_get("/metrics"));
  const std::string text = client.read_response().body;
  for (const char* line :
       {"vllm:generation_tokens_total{model_name=\"fake\"} 13",
        "millrace_generation_tokens_total{model_name=\"fake\"} 13",
        "vllm:request_success_total{finished_reason=\"length\",model_name=\"fake\"} 1",
        "vllm:time_to_first_token_seconds_count{model_name=\"fake\"} 1",
        "vllm:inter_token_latency_seconds_count{model_name=\"fake\"} 12",
        "vllm:request_queue_time_seconds_count{model_name=\"fake\"} 1",
        "vllm:request_queue_time_seconds_sum{model_name=\"fake\"} 0.75",
        "vllm:request_prefill_time_seconds_count{model_name=\"fake\"} 1",
        "vllm:kv_cache_usage_perc{model_name=\"fake\"} 0.25",
        "vllm:num_preemptions_total{model_name=\"fake\"} 3", "millrace_group_up{group=\"0\"} 1",
        "millrace_spec_decode_drafts_total{model_name=\"fake\"} 10",
        "millrace_spec_decode_draft_tokens_total{model_name=\"fake\"} 20",
        "vllm:spec_decode_num_accepted_tokens_per_pos_total{model_name=\"fake\",position=\"1\"} 5",
        "millrace_expert_imbalance{group=\"0\",layer=\"4\"} 1.25",
        "millrace_expert_rows_total{group=\"0\",layer=\"4\"} 96",
        "millrace_expert_busiest_rows_total{group=\"0\",layer=\"4\"} 15",
        "millrace_generations_in_flight{model_name=\"fake\"} 0",
        "route=\"/v1/chat/completions\",status=\"400\"} 1"})
    EXPECT_NE(text.find(line), std::string::npos) << line << "\n" << text;
}

// A group's totals start again with its process, and are unknown for a moment when a connection was lost:
// neither may take from the sums or add twice.
TEST_F(Reply, MetricsAddUpAGroupsLives) {
  const auto expect_sums = [&](int preemptions, int drafts, const char* when) {
    RawClient client(server_->port());
    client.send(http_get("/metrics"));
    const std::string text = client.read_response().body;
    for (const std::string& line :
         {"vllm:num_preemptions_total{model_name=\"fake\"} " + std::to_string(preemptions) + "\n",
          "millrace_expert_rows_total{group=\"0\",layer=\"4\"} " + std::to_string(32 * preemptions) + "\n",
          "millrace_spec_decode_drafts_total{model_name=\"fake\"} " + std::to_string(drafts) + "\n"})
      EXPECT_NE(text.find(line), std::string::npos) << when << ": " << line << text;
  };
  expect_sums(3, 10, "at first");
  expect_sums(3, 10, "nothing new");
  generator_->preemptions = 0;
  expect_sums(3, 10, "not known");
  generator_->preemptions = 4;
  expect_sums(4, 11, "known again");
  generator_->boot_id = 2;
  generator_->preemptions = 5;
  expect_sums(9, 23, "another life, which has come further already");
}

}  // namespace
}  // namespace millrace::gateway
