// What is asked for in JSON and what the engine is then asked for; every refusal names its field.
#include <gtest/gtest.h>

#include <boost/json.hpp>

#include "base/clock.h"
#include "gateway/internal/api_error.h"
#include "gateway/internal/fake_generator.h"
#include "gateway/internal/generation_plan.h"

namespace millrace::gateway {
namespace {

const ServedModel& served() {
  static const ServedModel model = fake_served_model(1000);
  return model;
}

Expected<GenerationPlan> plan(bool chat, std::string_view text) {
  const auto body = parse_json(text);
  if (!body) return std::unexpected(body.error());
  return chat ? plan_chat(*body, served()) : plan_completion(*body, served());
}
// A chat (or completions) request with these fields besides the prompt.
Expected<GenerationPlan> chat_with(std::string_view fields) {
  return plan(true, R"({"messages":[{"role":"user","content":"hi"}])" +
                        std::string(fields.empty() ? "" : ",") + std::string(fields) + "}");
}
Expected<GenerationPlan> completion_with(std::string_view fields) {
  return plan(false,
              R"({"prompt":"hi")" + std::string(fields.empty() ? "" : ",") + std::string(fields) + "}");
}

std::string joined(const engine::Prompt& prompt) {
  std::string text;
  for (const auto& segment : prompt.text) text += segment.text;
  return text;
}

struct Refused {
  bool chat;
  const char* fields;
  const char* param;
  const char* code = "invalid_value";
};

TEST(RequestTable, PromptsAreBoundedTogether) {
  const std::string prompt(size_t{1} << 20, 'a');
  const auto prompts = [&](int count, int n) {
    std::string body = R"({"n":)" + std::to_string(n) + R"(,"prompt":[)";
    for (int i = 0; i < count; ++i) body += (i > 0 ? ",\"" : "\"") + prompt + "\"";
    return plan(false, body + "]}");
  };
  EXPECT_TRUE(prompts(4, 16));
  const auto refused = prompts(5, 16);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().param, "n");
}

const Refused kRefusals[] = {
    {true, R"("temperature":-0.1)", "temperature"},
    {true, R"("temperature":2.1)", "temperature"},
    {true, R"("temperature":"hot")", "temperature", "invalid_type"},
    {true, R"("temperature":1e400)", "", "invalid_json"},
    {true, R"("top_p":0)", "top_p"},
    {true, R"("top_p":1.5)", "top_p"},
    {true, R"("top_k":-2)", "top_k"},
    {true, R"("top_k":1.5)", "top_k"},
    {true, R"("min_p":-1)", "min_p"},
    {true, R"("presence_penalty":3)", "presence_penalty"},
    {true, R"("frequency_penalty":-3)", "frequency_penalty"},
    {true, R"("repetition_penalty":0)", "repetition_penalty"},
    {true, R"("seed":1.5)", "seed"},
    {true, R"("seed":"1")", "seed", "invalid_type"},
    {true, R"("seed":18446744073709551615)", "seed"},
    {true, R"("n":0)", "n"},
    {true, R"("n":129)", "n"},
    {true, R"("n":true)", "n", "invalid_type"},
    {true, R"("max_tokens":0)", "max_tokens"},
    {true, R"("max_tokens":-1)", "max_tokens"},
    {true, R"("max_completion_tokens":1001)", "max_completion_tokens", "context_length_exceeded"},
    {false, R"("max_completion_tokens":1001)", "max_completion_tokens", "context_length_exceeded"},
    {false, R"("max_completion_tokens":0)", "max_completion_tokens"},
    {true, R"("max_tokens":5,"min_tokens":6)", "min_tokens"},
    {true, R"("min_tokens":-1)", "min_tokens"},
    {true, R"("stop":[""])", "stop"},
    {true, R"("stop":5)", "stop", "invalid_type"},
    {true, R"("stop":[1])", "stop", "invalid_type"},
    {true, R"("stop":["1","2","3","4","5","6","7","8","9","10","11","12","13","14","15","16","17"])", "stop"},
    {true, R"("stop_token_ids":[258])", "stop_token_ids"},
    {true, R"("stop_token_ids":["a"])", "stop_token_ids"},
    {true, R"("logit_bias":{"x":1})", "logit_bias"},
    {true, R"("logit_bias":{"258":1})", "logit_bias"},
    {true, R"("logit_bias":{"5":101})", "logit_bias.5"},
    {true, R"("logit_bias":[1])", "logit_bias", "invalid_type"},
    {true, R"("logprobs":1)", "logprobs", "invalid_type"},
    {true, R"("top_logprobs":5)", "top_logprobs"},
    {true, R"("logprobs":true,"top_logprobs":21)", "top_logprobs"},
    {true, R"("stream":"yes")", "stream", "invalid_type"},
    {true, R"("stream_options":{"include_usage":true})", "stream_options"},
    {true, R"("stream":true,"stream_options":{"include_usage":1})", "stream_options.include_usage",
     "invalid_type"},
    {true, R"("model":"nope")", "model", "model_not_found"},
    {true, R"("service_tier":"flex")", "service_tier", "unsupported_service_tier"},
    {true, R"("tools":[{"type":"function"}])", "tools", "unsupported_parameter"},
    {true, R"("tool_choice":"auto")", "tool_choice", "unsupported_parameter"},
    {true, R"("functions":[{}])", "functions", "unsupported_parameter"},
    {true, R"("response_format":{"type":"json_object"})", "response_format", "unsupported_parameter"},
    {true, R"("store":true)", "store", "unsupported_parameter"},
    {true, R"("echo":true)", "echo", "unsupported_parameter"},
    {true, R"("modalities":["audio"])", "modalities", "unsupported_parameter"},
    {true, R"("chat_template":"{{ x }}")", "chat_template", "unsupported_parameter"},
    {true, R"("chat_template":"none")", "chat_template", "unsupported_parameter"},
    {true, R"("guided_regex":"none")", "guided_regex", "unsupported_parameter"},
    {true, R"("guided_json":{"type":"object"})", "guided_json", "unsupported_parameter"},
    {true, R"("priority":1e12)", "priority"},
    {true, R"("continue_final_message":true,"add_generation_prompt":true)", "continue_final_message"},
    {true, R"("chat_template_kwargs":[])", "chat_template_kwargs", "invalid_type"},
    {true, R"("chat_template_kwargs":{"messages":[]})", "chat_template_kwargs.messages"},
    {true, R"("chat_template_kwargs":{"pad_token":"<|im_start|>"})", "chat_template_kwargs.pad_token"},
    {true, R"("include_reasoning":"no")", "include_reasoning", "invalid_type"},
    {false, R"("suffix":"x")", "suffix", "unsupported_parameter"},
    {false, R"("best_of":3)", "best_of", "unsupported_parameter"},
    {false, R"("logprobs":21)", "logprobs"},
    {false, R"("logprobs":true)", "logprobs", "invalid_type"},
    {false, R"("max_tokens":0)", "max_tokens"},
    {false, R"("prompt":[])", "prompt"},
    {false, R"("prompt":[[]])", "prompt"},
    {false, R"("prompt":[1,"a"])", "prompt"},
    {false, R"("prompt":[-1])", "prompt"},
    {false, R"("prompt":[300])", "prompt"},
    {false, R"("prompt":[{}])", "prompt", "invalid_type"},
    {false, R"("prompt":5)", "prompt", "invalid_type"},
    {false, R"("prompt":null)", "prompt", "missing_required_parameter"},
    {false, R"("prompt":"")", "prompt"},
    {false, R"("n":128,"prompt":["a","b","c"])", "n"},
};

TEST(RequestTable, RefusalsNameTheField) {
  for (const Refused& c : kRefusals) {
    const auto got = c.chat ? chat_with(c.fields) : completion_with(c.fields);
    ASSERT_FALSE(got.has_value()) << c.fields;
    if (std::string_view(c.code) == "invalid_json") continue;
    EXPECT_EQ(got.error().param, c.param) << c.fields << ": " << got.error().message;
    const std::string body = error_body(got.error());
    EXPECT_NE(body.find("\"code\":\"" + std::string(c.code) + "\""), std::string::npos) << c.fields << body;
    EXPECT_EQ(http_status(got.error()), std::string_view(c.code) == "model_not_found" ? 404 : 400)
        << c.fields;
  }
}

TEST(RequestTable, MessagesAreCheckedOneByOne) {
  const std::pair<const char*, const char*> cases[] = {
      {R"({})", "messages"},
      {R"({"messages":[]})", "messages"},
      {R"({"messages":"hi"})", "messages"},
      {R"({"messages":["hi"]})", "messages[0]"},
      {R"({"messages":[{"content":"hi"}]})", "messages[0].role"},
      {R"({"messages":[{"role":"user","content":5}]})", "messages[0].content"},
      {R"({"messages":[{"role":"user","content":"a"},{"role":"user","content":[{"type":"image_url"}]}]})",
       "messages[1].content[0]"},
      {R"({"messages":[{"role":"user","content":[{"type":"text"}]}]})", "messages[0].content[0].text"},
      {R"({"messages":[{"role":"forbidden","content":"a"}]})", "messages"},
  };
  for (const auto& [text, param] : cases) {
    const auto got = plan(true, text);
    ASSERT_FALSE(got.has_value()) << text;
    EXPECT_EQ(got.error().param, param) << text;
  }
}

TEST(RequestTable, WhatAsksForNothingIsNotRefused) {
  for (const char* fields :
       {R"("tools":[])", R"("tools":null,"tool_choice":"none")", R"("functions":[],"function_call":"none")",
        R"("response_format":{"type":"text"})", R"("store":false)", R"("service_tier":"default")",
        R"("service_tier":"auto")", R"("n":1,"best_of":1)", R"("parallel_tool_calls":true)",
        R"("unknown_field":{"a":[1]})", R"("stop":null)", R"("logit_bias":null)",
        R"("user":"u","metadata":{"a":"b"})", R"("modalities":["text"])", R"("top_k":-1)",
        R"("max_tokens":10.0)"})
    EXPECT_TRUE(chat_with(fields).has_value()) << fields << chat_with(fields).error().message;
  EXPECT_TRUE(completion_with(R"("suffix":"")").has_value());
}

TEST(RequestTable, FieldsReachTheEngine) {
  const auto got = completion_with(
      R"("max_tokens":7,"min_tokens":2,"temperature":0.5,"top_p":0.9,"top_k":40,"min_p":0.1,"presence_penalty":1,
         "frequency_penalty":-1,"repetition_penalty":1.1,"logit_bias":{"5":-100},"seed":-3,"stop":["a","b"],
         "stop_token_ids":[9],"ignore_eos":true,"logprobs":3,"skip_special_tokens":false,"priority":-4,
         "cache_salt":"s","include_stop_str_in_output":true)");
  ASSERT_TRUE(got.has_value()) << got.error().message;
  ASSERT_EQ(got->requests.size(), 1u);
  const engine::GenerateRequest& r = got->requests[0];
  EXPECT_EQ(r.stop.max_tokens, 7);
  EXPECT_EQ(r.stop.min_tokens, 2);
  EXPECT_EQ(r.sampling.temperature, 0.5);
  EXPECT_EQ(r.sampling.top_p, 0.9);
  EXPECT_EQ(r.sampling.top_k, 40);
  EXPECT_EQ(r.sampling.min_p, 0.1);
  EXPECT_EQ(r.sampling.presence_penalty, 1);
  EXPECT_EQ(r.sampling.frequency_penalty, -1);
  EXPECT_EQ(r.sampling.repetition_penalty, 1.1);
  ASSERT_EQ(r.sampling.logit_bias.size(), 1u);
  EXPECT_EQ(r.sampling.logit_bias[0], (std::pair<TokenId, float>(5, -100.0f)));
  EXPECT_EQ(r.sampling.seed, static_cast<uint64_t>(-3));
  EXPECT_EQ(r.stop.strings, (std::vector<std::string>{"a", "b"}));
  EXPECT_EQ(r.stop.token_ids, std::vector<TokenId>{9});
  EXPECT_TRUE(r.stop.ignore_eos);
  EXPECT_TRUE(r.stop.include_stop_in_text);
  EXPECT_EQ(r.top_logprobs, 3);
  EXPECT_EQ(r.prompt_logprobs, -1);
  EXPECT_FALSE(r.skip_special_tokens);
  EXPECT_EQ(r.priority, -4);
  EXPECT_EQ(r.cache_salt, "s");
  EXPECT_TRUE(r.prompt.add_special);
}

TEST(RequestTable, DefaultsComeFromTheModel) {
  ServedModel model = fake_served_model();
  model.config.generation = {.temperature = 0.6, .top_p = 0.95, .repetition_penalty = 1.05, .top_k = 20};
  const auto got = plan_completion(*parse_json(R"({"prompt":"x"})"), model);
  ASSERT_TRUE(got.has_value());
  const engine::GenerateRequest& r = got->requests[0];
  EXPECT_EQ(r.sampling.temperature, 0.6);
  EXPECT_EQ(r.sampling.top_k, 20);
  EXPECT_EQ(r.sampling.repetition_penalty, 1.05);
  EXPECT_EQ(r.stop.max_tokens, 0);  // what is left of the context
  EXPECT_EQ(got->model, "fake");
}

TEST(RequestTable, PromptsInTheirFourForms) {
  EXPECT_EQ(joined(plan(false, R"({"prompt":"ab"})")->requests[0].prompt), "ab");
  EXPECT_EQ(plan(false, R"({"prompt":["a","b"],"n":2})")->requests.size(), 4u);
  EXPECT_EQ(joined(plan(false, R"({"prompt":["a","b"],"n":2})")->requests[2].prompt), "b");
  EXPECT_EQ(plan(false, R"({"prompt":[1,2]})")->requests[0].prompt.tokens, (std::vector<TokenId>{1, 2}));
  const auto arrays = plan(false, R"({"prompt":[[1],[97,98]],"echo":true,"max_tokens":0,"logprobs":1})");
  ASSERT_TRUE(arrays.has_value());
  EXPECT_EQ(arrays->requests[1].prompt.tokens, (std::vector<TokenId>{97, 98}));
  EXPECT_EQ(arrays->prompt_texts[1], "ab");
  EXPECT_TRUE(arrays->drop_reply);
  EXPECT_EQ(arrays->requests[0].prompt_logprobs, 1);
}

TEST(RequestTable, ChoicesDifferInSeedOnlyAndTheFirstKeepsIt) {
  const auto one = chat_with(R"("seed":42)"), many = chat_with(R"("seed":42,"n":3)");
  ASSERT_TRUE(one.has_value() && many.has_value());
  EXPECT_EQ(one->requests[0].sampling.seed, 42u);
  EXPECT_EQ(many->requests[0].sampling.seed, 42u);
  EXPECT_NE(many->requests[1].sampling.seed, 42u);
  EXPECT_NE(many->requests[1].sampling.seed, many->requests[2].sampling.seed);
  EXPECT_EQ(many->requests[2].sampling.seed, choice_seed(42, 2));  // the same every time
  EXPECT_NE(chat_with("")->requests[0].sampling.seed, chat_with("")->requests[0].sampling.seed);
}

TEST(RequestTable, UserWordsAreKeptFromBecomingSpecialTokens) {
  const auto got = plan(true, R"({"messages":[{"role":"user","content":"a<|im_end|>b"}]})");
  ASSERT_TRUE(got.has_value());
  bool seen = false;
  for (const auto& segment : got->requests[0].prompt.text) {
    if (segment.text != "a<|im_end|>b") continue;
    seen = true;
    EXPECT_FALSE(segment.parse_special);
  }
  EXPECT_TRUE(seen);
  EXPECT_TRUE(got->requests[0].prompt.text[0].parse_special);
  EXPECT_FALSE(got->requests[0].prompt.add_special);
  const auto asked = chat_with(R"("parse_special_tokens":true)");
  for (const auto& segment : asked->requests[0].prompt.text) EXPECT_TRUE(segment.parse_special);
}

TEST(RequestTable, ContentPartsAreJoinedAndMissingContentIsEmpty) {
  const auto got = plan(true, R"({"messages":[{"role":"user","content":[{"type":"text","text":"a"},"b"]},
                                              {"role":"assistant"}]})");
  ASSERT_TRUE(got.has_value()) << got.error().message;
  EXPECT_EQ(joined(got->requests[0].prompt),
            "<|im_start|>user\na\nb<|im_end|>\n<|im_start|>assistant\n<|im_end|>\n<|im_start|>assistant\n");
}

TEST(RequestTable, ContinuedMessageEndsWithItsWords) {
  const auto got =
      plan(true, R"({"messages":[{"role":"user","content":"say"},{"role":"assistant","content":"I say "}],
                                  "continue_final_message":true})");
  ASSERT_TRUE(got.has_value()) << got.error().message;
  EXPECT_EQ(joined(got->requests[0].prompt), "<|im_start|>user\nsay<|im_end|>\n<|im_start|>assistant\nI say");
  EXPECT_FALSE(plan(true, R"({"messages":[{"role":"user","content":""}],"continue_final_message":true})"));
}

// Words that the template leaves out are looked for in all that it made: in time linear in both.
TEST(RequestTable, AContinuedMessageIsLookedForInLinearTime) {
  ServedModel model = fake_served_model();
  model.chat_template =
      *model::ChatTemplate::parse("{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}");
  const std::string words(size_t{1} << 20, 'a');
  const auto asked = [&](const std::string& last) {
    return plan_chat(
        json::object{{"messages", json::array{json::object{{"role", "user"}, {"content", words + words}},
                                              json::object{{"role", "tool"}, {"content", last}}}},
                     {"continue_final_message", true}},
        model);
  };
  const double start_s = monotonic_s();
  const auto got = asked(words + "b");
  ASSERT_FALSE(got);
  EXPECT_EQ(got.error().param, "continue_final_message");
  EXPECT_LT(monotonic_s() - start_s, 5);  // milliseconds; all places by all words would be a minute
  const auto last_place = asked("aaa");
  ASSERT_TRUE(last_place) << last_place.error().message;
  EXPECT_EQ(joined(last_place->requests[0].prompt), words + words) << "the last place, not the first";
}

TEST(RequestTable, NoTemplateIsAClearRefusal) {
  ServedModel model = fake_served_model();
  model.chat_template = nullptr;
  const auto got = plan_chat(*parse_json(R"({"messages":[{"role":"user","content":"x"}]})"), model);
  ASSERT_FALSE(got.has_value());
  EXPECT_EQ(got.error().reason, "chat_not_supported");
}

TEST(ApiError, RetryAfterIsWholeSecondsAndAtLeastOne) {
  const auto retry_after = [](double seconds) {
    Status status{.code = Code::resource_exhausted, .message = "full"};
    status.retry_after_s = seconds;
    return error_response(status).headers.at(0).second;
  };
  EXPECT_EQ(retry_after(0), "1");
  EXPECT_EQ(retry_after(2.1), "3");
  EXPECT_EQ(retry_after(1e9), "3600");
  EXPECT_EQ(retry_after(std::numeric_limits<double>::quiet_NaN()), "1");
  EXPECT_EQ(error_response(Status{.code = Code::unavailable, .message = "x"}).status, 503);
}

}  // namespace
}  // namespace millrace::gateway
