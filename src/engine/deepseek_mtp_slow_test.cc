// Guessing ahead with a trained MTP layer: what it guesses is what the reference guesses, it is right as
// often, and no token depends on it. The model is the miniature of deepseek_slow_test.cc.
#include <fmt/core.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <boost/json.hpp>
#include <cmath>
#include <filesystem>
#include <map>
#include <numeric>
#include <random>

#include "base/clock.h"
#include "base/file.h"
#include "base/json.h"
#include "engine/internal/engine_core.h"
#include "engine/internal/executor.h"
#include "engine/internal/numbers_testing.h"
#include "model/fixtures/tiny_deepseek.h"
#include "model/packed_model.h"

namespace millrace::engine {
namespace {

using model::PackType;

constexpr size_t kMaxFile = size_t{1} << 20;
constexpr int64_t kPositions = 512;

std::vector<TokenId> ids_of(const json::value& list) {
  std::vector<TokenId> ids;
  for (const int id : json::value_to<std::vector<int>>(list)) ids.push_back(TokenId{id});
  return ids;
}

class TinyDeepSeekMtp : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    checkpoint = model::fixtures::tiny_deepseek_folder();
    const auto folder =
        std::filesystem::path(::testing::TempDir()) / fmt::format("millrace_mtp_{}", ::getpid());
    for (const auto type : {PackType::int8, PackType::float32}) {
      const auto packed =
          model::pack_checkpoint(checkpoint, folder, {.type = type, .threads = 2, .progress = {}});
      ASSERT_TRUE(packed.has_value()) << packed.error().message;
      models[type] = model::PackedModel::open(folder).value();
      std::filesystem::remove_all(folder);  // the mapping stays
    }
    tokenizer = model::Tokenizer::create(models[PackType::int8]->tokenizer_spec()).value();
    const auto text = read_file(checkpoint / "heldout.txt", kMaxFile).value();
    for (size_t at = 0; at < text.size();) {
      const size_t end = std::min(text.find("\n\n\n", at), text.size());
      std::vector<TokenId> tokens = {TokenId{0}};  // <|bos|>
      ASSERT_TRUE(tokenizer->encode(std::string_view(text).substr(at, end - at), {}, 0, tokens).has_value());
      documents.push_back(std::move(tokens));
      at = end + 3;
    }
    ASSERT_GT(documents.size(), 90u);
  }
  static void TearDownTestSuite() { models.clear(); }

  static std::filesystem::path checkpoint;
  static std::map<PackType, std::shared_ptr<const model::PackedModel>> models;
  static std::shared_ptr<const model::Tokenizer> tokenizer;
  static std::vector<std::vector<TokenId>> documents;  // of heldout.txt
};
std::filesystem::path TinyDeepSeekMtp::checkpoint;
std::map<PackType, std::shared_ptr<const model::PackedModel>> TinyDeepSeekMtp::models;
std::shared_ptr<const model::Tokenizer> TinyDeepSeekMtp::tokenizer;
std::vector<std::vector<TokenId>> TinyDeepSeekMtp::documents;

// A sequence that is read with all its states.
struct Text {
  explicit Text(const std::shared_ptr<const model::PackedModel>& model)
      : vocab(model->config().vocab_size),
        executor(Executor::create(model, {.cpus = {-1, -1},
                                          .max_rows = 256,
                                          .max_logit_rows = 256,
                                          .max_positions = kPositions,
                                          .drafts = true})
                     .value()),
        pool(KvPool::create(Sequence::pages_for(kPositions), executor->kv_shape().page_bytes()).value()) {
    for (int64_t i = 0; i < pool.pages_total(); ++i) pages.push_back(pool.allocate());
  }
  // The likeliest next token at each of these rows.
  std::vector<TokenId> read(std::span<const TokenId> tokens) {
    const auto all = first_rows(tokens.size());
    const StepSegment segment{pages.data(), position, 0, static_cast<int>(tokens.size())};
    executor->run({tokens, {&segment, 1}, all, all}, pool.base());
    first_position = position;
    position += std::ssize(tokens);
    std::vector<TokenId> likeliest;
    for (const int32_t row : all) {
      const float* logits = executor->logits(row);
      likeliest.push_back(static_cast<TokenId>(std::max_element(logits, logits + vocab) - logits));
    }
    return likeliest;
  }
  // What the MTP layer guesses at the last read()'s first rows, given the tokens after them.
  std::vector<TokenId> guess(std::span<const TokenId> next) {
    const auto all = first_rows(next.size());
    const StepSegment segment{pages.data(), first_position, 0, static_cast<int>(next.size())};
    executor->draft({next, {&segment, 1}, all, all}, pool.base());
    std::vector<TokenId> guesses;
    for (const int32_t row : all) guesses.push_back(executor->guess(row));
    return guesses;
  }
  static std::vector<int32_t> first_rows(size_t count) {
    std::vector<int32_t> rows(count);
    std::iota(rows.begin(), rows.end(), 0);
    return rows;
  }
  int vocab;
  std::unique_ptr<Executor> executor;
  KvPool pool;
  std::vector<int32_t> pages;
  int64_t position = 0, first_position = 0;  // after the last read()'s rows, and of its first one
};

TEST_F(TinyDeepSeekMtp, GuessesWhatTheReferenceGuesses) {
  const auto fixtures = parse_json(read_file(checkpoint / "fixtures.json", kMaxFile).value()).value();
  for (const auto& prompt : fixtures.at("prompts").as_array()) {
    SCOPED_TRACE(prompt.at("name").as_string().c_str());
    const auto ids = ids_of(prompt.at("ids")), greedy = ids_of(prompt.at("greedy"));
    const auto drafts = ids_of(prompt.at("mtp").at("drafts"));
    Text text(models[PackType::float32]);
    text.read(ids);
    std::vector<TokenId> next(ids.begin() + 1, ids.end());
    next.push_back(greedy[0]);
    std::vector<TokenId> got = {text.guess(next).back()};
    const auto& want = prompt.at("mtp").at("mtp_logits");
    const auto first = json::value_to<std::vector<double>>(want.at("first64"));
    const float* logits = text.executor->logits(static_cast<int>(next.size()) - 1);
    double largest = 0, worst = 0;
    for (size_t i = 0; i < first.size(); ++i) {
      largest = std::max(largest, std::abs(first[i]));
      worst = std::max(worst, std::abs(first[i] - static_cast<double>(logits[i])));
    }
    // The bound of deepseek_slow_test.cc is about 4e-5 of the largest for the model; one layer more. Printed
    // to 1e-5.
    EXPECT_LE(worst, 1e-4 * largest);
    fmt::print("{}: largest error {:.2e} of {:.2f}\n", prompt.at("name").as_string().c_str(), worst, largest);
    for (size_t j = 0; j + 1 < greedy.size() && got.size() < drafts.size(); ++j) {
      text.read({&greedy[j], 1});
      got.push_back(text.guess({&greedy[j + 1], 1})[0]);
    }
    ASSERT_GE(drafts.size(), got.size());
    EXPECT_EQ(got, std::vector<TokenId>(drafts.begin(), drafts.begin() + std::ssize(got)));
    EXPECT_GE(got.size(), 31u);
  }
}

// The share of positions at which the MTP layer, told token i + 1, says what the model says at i + 1. Its
// makers measured 0.713 on other windows of 256 tokens of such text.
TEST_F(TinyDeepSeekMtp, IsRightAsOftenAsItsMakersMeasuredTeacherForced) {
  for (const auto type : {PackType::int8, PackType::float32}) {
    int64_t right = 0, all = 0;
    for (const auto& document : documents) {
      if (all > (type == PackType::int8 ? 16384 : 8192)) break;
      const auto tokens = std::span(document).first(std::min<size_t>(document.size(), 256));
      if (tokens.size() < 3) continue;
      Text text(models[type]);
      const auto says = text.read(tokens);
      const auto guesses = text.guess(tokens.subspan(1));
      for (size_t i = 0; i + 1 < guesses.size(); ++i) right += guesses[i] == says[i + 1];
      all += std::ssize(guesses) - 1;
    }
    const double share = static_cast<double>(right) / static_cast<double>(all);
    fmt::print("{}: {:.4f} of {} positions\n", type == PackType::int8 ? "int8" : "float32", share, all);
    EXPECT_NEAR(share, 0.713, 0.02);
  }
}

// Likewise in greedy text: at each of 40 tokens after prefixes of 32, the guess given the token before. Its
// makers measured 0.788 on 16 such prefixes.
TEST_F(TinyDeepSeekMtp, IsRightAsOftenAsItsMakersMeasuredGreedily) {
  int64_t right = 0, all = 0;
  for (const auto& document : documents) {
    if (document.size() < 32) continue;
    Text text(models[PackType::int8]);
    const auto prefix = std::span(document).first(32);
    TokenId next = text.read(prefix).back();
    std::vector<TokenId> after(prefix.begin() + 1, prefix.end());
    after.push_back(next);
    TokenId guess = text.guess(after).back();
    for (int i = 0; i < 40; ++i) {
      const TokenId token = next;
      next = text.read({&token, 1})[0];
      right += guess == next;
      ++all;
      guess = text.guess({&next, 1})[0];
    }
  }
  const double share = static_cast<double>(right) / static_cast<double>(all);
  fmt::print("{:.4f} of {} tokens\n", share, all);
  EXPECT_NEAR(share, 0.788, 0.02);
}

using Tokens = std::map<uint64_t, std::vector<TokenId>>;

struct Outcome {
  Tokens tokens;
  std::map<uint64_t, std::vector<float>> logprobs;
  GroupLoad load;
};
struct How {
  int threads = 2, max_drafts = 0, max_sequences = 64, max_rows = 512;
  int64_t pages = 2048;
  bool prefix_caching = false;
};
// Requests through the engine's logic on the INT8 model; always guessing, whatever it costs.
Outcome run(const std::shared_ptr<const model::PackedModel>& model,
            const std::shared_ptr<const model::Tokenizer>& tokenizer,
            const std::vector<GenerateRequest>& requests, const How& options) {
  const bool drafts = options.max_drafts > 0;
  auto executor =
      Executor::create(model, {.cpus = std::vector<int>(static_cast<size_t>(options.threads), -1),
                               .max_rows = options.max_rows,
                               .max_logit_rows = options.max_sequences * (1 + options.max_drafts) + 64,
                               .max_positions = kPositions,
                               .drafts = drafts})
          .value();
  KvPool pool = KvPool::create(options.pages, executor->kv_shape().page_bytes()).value();
  EngineCore core(*executor, pool, tokenizer, kernels::row_kernels(),
                  {.max_model_len = std::min<int64_t>(kPositions, options.pages * kernels::kPageTokens),
                   .scheduler = {.max_sequences = options.max_sequences,
                                 .max_rows = options.max_rows,
                                 .max_draft_rows = options.max_sequences * options.max_drafts,
                                 .prefix_caching = options.prefix_caching},
                   .now_ns = monotonic_ns,
                   .max_drafts = options.max_drafts});
  Outcome result;
  std::vector<GenerateEvent> events;
  for (const auto& request : requests) core.add(request, events);
  while (!core.idle()) {
    core.step(events);
    for (const auto& event : events)
      for (const auto& token : event.tokens) {
        result.tokens[event.id.value].push_back(token.token);
        result.logprobs[event.id.value].push_back(token.logprob);
      }
    events.clear();
  }
  result.load = core.load();
  return result;
}

GenerateRequest request_of(uint64_t id, std::span<const TokenId> prompt, int64_t tokens, double temperature) {
  GenerateRequest request{.id = RequestId(id), .prompt = {.tokens = {prompt.begin(), prompt.end()}}};
  request.stop.max_tokens = tokens;
  request.stop.ignore_eos = true;
  request.sampling.temperature = temperature;
  request.sampling.seed = 1000 + id;
  request.top_logprobs = 0;
  return request;
}

// Batch, chunk, threads, cached prefixes, preemption, resumption; greedy and sampled; log-probabilities too.
TEST_F(TinyDeepSeekMtp, TokensDoNotDependOnGuesses) {
  std::mt19937 random(1);
  std::vector<GenerateRequest> requests;
  for (uint64_t id = 1; id <= 64; ++id) {
    const auto& document = documents[id];
    const size_t length = std::min<size_t>(document.size(), 1 + random() % 90);
    requests.push_back(request_of(id, std::span(document).first(length), 60, id % 2 == 0 ? 0.0 : 0.8));
    if (id % 4 == 1) requests.back().sampling.top_p = 0.9;
    if (id % 8 == 2) requests.back().sampling.repetition_penalty = 1.2;
    if (id % 16 == 3) requests.back().prompt.tokens = requests.front().prompt.tokens;  // shares pages
  }
  const auto& model = models[PackType::int8];
  const auto want = run(model, tokenizer, requests, {});
  for (const uint64_t id : {1, 2, 10, 40})
    EXPECT_EQ(run(model, tokenizer, {requests[id - 1]}, {.threads = 1}).tokens,
              (Tokens{{id, want.tokens.at(id)}}));
  for (const How& options : {How{.max_drafts = 1}, How{.max_drafts = 3}, How{.threads = 1, .max_drafts = 2},
                             How{.max_drafts = 3, .max_sequences = 1}, How{.max_drafts = 8, .max_rows = 70},
                             How{.max_drafts = 3, .pages = 20, .prefix_caching = true},
                             How{.max_drafts = 3, .max_sequences = 7, .prefix_caching = true}}) {
    const auto got = run(model, tokenizer, requests, options);
    EXPECT_EQ(got.tokens, want.tokens) << options.max_drafts << " guesses";
    EXPECT_EQ(got.logprobs, want.logprobs) << options.max_drafts << " guesses";
    // Where 64 sequences have 70 rows, prompts come first and leave few for guesses.
    EXPECT_GT(got.load.drafts.at(0).accepted, options.max_rows < 100 ? 100u : 500u);
    EXPECT_GT(5 * got.load.drafts.at(0).accepted, 2 * got.load.drafts.at(0).proposed);
    if (options.pages == 20) {
      EXPECT_GT(got.load.preemptions, 0u);
    }
  }
  auto resumed = requests[2];
  resumed.resumed.assign(want.tokens.at(3).begin(), want.tokens.at(3).begin() + 25);
  EXPECT_EQ(run(model, tokenizer, {resumed}, {.max_drafts = 3}).tokens.at(3),
            std::vector<TokenId>(want.tokens.at(3).begin() + 25, want.tokens.at(3).end()));
}

}  // namespace
}  // namespace millrace::engine
