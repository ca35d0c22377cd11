// The bits of a row's logits depend on its own tokens alone: not on batch, chunks, threads, panels or level.
#include "engine/internal/executor.h"

#include <gtest/gtest.h>

#include <cmath>
#include <deque>

#include "engine/internal/testing.h"
#include "model/fixtures/float_forward.h"

namespace millrace::engine {
namespace {

using testing::kVocab;
using testing::random_tokens;
using testing::TinyModel;
using testing::TinySizes;

using Logits = std::vector<float>;

struct Runner {
  explicit Runner(std::shared_ptr<const model::PackedModel> packed, ExecutorOptions options = {},
                  int64_t pages = 64)
      : executor(Executor::create(packed, options).value()),
        pool(KvPool::create(pages, kv_shape_of(*packed).page_bytes()).value()) {}

  struct Text {
    std::vector<TokenId> tokens;
    std::vector<int32_t> pages;
    int64_t done = 0;
    std::vector<Logits> logits;  // by position
  };
  Text& start(std::vector<TokenId> tokens) {
    Text& text = texts.emplace_back();
    text.tokens = std::move(tokens);
    for (int64_t i = 0; i < Sequence::pages_for(static_cast<int64_t>(text.tokens.size())); ++i)
      text.pages.push_back(pool.allocate());
    return text;
  }
  // One step: the next rows[i] tokens of texts[i]; all their logits are kept.
  void step(const std::vector<int>& rows) {
    std::vector<TokenId> tokens;
    std::vector<StepSegment> segments;
    std::vector<int32_t> wanted;
    for (size_t i = 0; i < rows.size(); ++i) {
      Text& text = texts[i];
      const int count =
          std::min(rows[i], static_cast<int>(static_cast<int64_t>(text.tokens.size()) - text.done));
      if (count == 0) continue;
      segments.push_back({text.pages.data(), text.done, static_cast<int>(tokens.size()), count});
      for (int row = 0; row < count; ++row) {
        wanted.push_back(static_cast<int32_t>(tokens.size()));
        tokens.push_back(text.tokens[static_cast<size_t>(text.done + row)]);
      }
    }
    executor->run({tokens, segments, wanted}, pool.base());
    int index = 0;
    for (size_t i = 0; i < rows.size(); ++i) {
      Text& text = texts[i];
      const int count =
          std::min(rows[i], static_cast<int>(static_cast<int64_t>(text.tokens.size()) - text.done));
      for (int row = 0; row < count; ++row, ++index)
        text.logits.emplace_back(executor->logits(index), executor->logits(index) + kVocab);
      text.done += count;
    }
  }
  std::unique_ptr<Executor> executor;
  KvPool pool;
  std::deque<Text> texts;
};

ExecutorOptions options_of(int threads, int column_rows = 0, int panel = 0,
                           std::optional<kernels::Isa> isa = {}) {
  return {.cpus = std::vector<int>(static_cast<size_t>(threads), -1),
          .max_rows = 1024,
          .max_logit_rows = 1024,
          .max_positions = 2048,
          .isa = isa,
          .panel_rows = panel,
          .column_rows_max = column_rows};
}

std::shared_ptr<const model::PackedModel> tiny(model::PackType type, TinySizes sizes = {}) {
  return std::make_shared<TinyModel>(type, sizes);
}

std::vector<Logits> whole(std::shared_ptr<const model::PackedModel> packed,
                          const std::vector<TokenId>& tokens, ExecutorOptions options) {
  Runner runner(std::move(packed), options);
  runner.start(tokens);
  runner.step({static_cast<int>(tokens.size())});
  return runner.texts[0].logits;
}

struct Variant {
  std::string name;
  model::PackType type;
  TinySizes sizes;
  std::shared_ptr<const model::PackedModel> model() const { return tiny(type, sizes); }
};
void PrintTo(const Variant& variant, std::ostream* out) { *out << variant.name; }
std::vector<Variant> variants() {
  std::vector<Variant> all;
  TinySizes switches = testing::tiny_other_switches();
  switches.mla = {};
  switches.kv_heads = 3;
  switches.head_dim = 32;
  for (const auto type : {model::PackType::int8, model::PackType::float32}) {
    const std::string suffix = type == model::PackType::int8 ? "_int8" : "_float32";
    all.push_back({"dense" + suffix, type, {}});
    all.push_back({"family" + suffix, type, {.qkv_bias = true, .qk_norm = true, .sandwich_norm = true}});
    all.push_back({"mixture" + suffix, type, testing::tiny_mixture()});
    all.push_back({"switches" + suffix, type, switches});
    all.push_back({"deepseek" + suffix, type, testing::tiny_deepseek()});
    all.push_back({"mla_switches" + suffix, type, testing::tiny_other_switches()});
  }
  return all;
}
class ExecutorBits : public ::testing::TestWithParam<Variant> {};

TEST_P(ExecutorBits, DoNotDependOnChunks) {
  std::mt19937 random(1);
  const auto packed = GetParam().model();
  const auto tokens = random_tokens(random, 330);  // past one attention chunk
  const auto want = whole(packed, tokens, options_of(1));
  for (const int chunk : {1, 7, 32, 100, 256}) {
    Runner runner(packed, options_of(1));
    runner.start(tokens);
    while (runner.texts[0].done < 330) runner.step({chunk});
    EXPECT_EQ(runner.texts[0].logits, want) << "chunk " << chunk;
  }
}

TEST_P(ExecutorBits, DoNotDependOnThreadsPanelsOrColumns) {
  std::mt19937 random(2);
  const auto packed = GetParam().model();
  const auto tokens = random_tokens(random, 300);
  const auto want = whole(packed, tokens, options_of(1));
  for (const int threads : {1, 2, 3})
    for (const int column_rows : {-1, 1000})
      for (const int panel : {32, 96})
        EXPECT_EQ(whole(packed, tokens, options_of(threads, column_rows, panel)), want)
            << threads << " threads, columns to " << column_rows << ", panels of " << panel;
}

TEST_P(ExecutorBits, DoNotDependOnTheBatch) {
  std::mt19937 random(3);
  const auto packed = GetParam().model();
  std::vector<std::vector<TokenId>> prompts;
  for (int i = 0; i < 20; ++i) prompts.push_back(random_tokens(random, 1 + random() % 90));
  for (const int threads : {1, 2})
    for (const int column_rows : {-1, 1000}) {
      Runner runner(packed, options_of(threads, column_rows, 32), 128);
      std::vector<int> rows;
      for (const auto& prompt : prompts) {
        runner.start(prompt);
        rows.push_back(1 + static_cast<int>(random() % 40));
      }
      for (int step = 0; step < 90; ++step) {
        bool left = false;
        for (size_t i = 0; i < prompts.size(); ++i) {
          rows[i] = random() % 3 == 0 ? static_cast<int>(random() % 40) : 1;
          left |= runner.texts[i].done < static_cast<int64_t>(prompts[i].size());
        }
        if (!left) break;
        rows[static_cast<size_t>(step) % rows.size()] += 1;
        int total = 0;
        for (size_t i = 0; i < prompts.size(); ++i)
          total += std::min<int>(
              rows[i], static_cast<int>(prompts[i].size()) - static_cast<int>(runner.texts[i].done));
        if (total > 0) runner.step(rows);
      }
      for (size_t i = 0; i < prompts.size(); ++i) {
        const auto want = whole(packed, prompts[i], options_of(1));
        const auto& got = runner.texts[i].logits;
        for (size_t p = 0; p < got.size(); ++p)
          ASSERT_EQ(got[p], want[p]) << "text " << i << " position " << p;
      }
    }
}

TEST_P(ExecutorBits, DoNotDependOnTheLevel) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  constexpr int kTokens = 40;  // the scalar level under a sanitizer takes half a minute a model for 280
#else
  constexpr int kTokens = 280;  // past one attention chunk
#endif
  std::mt19937 random(4);
  const auto packed = GetParam().model();
  const auto tokens = random_tokens(random, kTokens);
  const auto want = whole(packed, tokens, options_of(1, 0, 0, kernels::Isa::scalar));
  for (const auto isa : kernels::supported_isas())
    EXPECT_EQ(whole(packed, tokens, options_of(2, 0, 0, isa)), want) << kernels::isa_name(isa);
}

TEST_P(ExecutorBits, DoNotDependOnWhatAPageHeldBefore) {
  std::mt19937 random(5);
  const auto packed = GetParam().model();
  const auto tokens = random_tokens(random, 50);
  Runner runner(packed, options_of(2), 3);
  runner.start(random_tokens(random, 96));
  runner.step({96});
  runner.pool.release_all(runner.texts[0].pages);
  runner.texts.clear();
  runner.start(tokens);
  runner.step({50});
  EXPECT_EQ(runner.texts[0].logits, whole(packed, tokens, options_of(1)));
}

INSTANTIATE_TEST_SUITE_P(Models, ExecutorBits, ::testing::ValuesIn(variants()),
                         [](const auto& suite) { return suite.param.name; });

// Against double precision, every row's logits and experts.
class ExecutorNumbers : public ::testing::TestWithParam<Variant> {};

TEST_P(ExecutorNumbers, EqualADoublePrecisionForwardPass) {
  constexpr size_t kTokens = 70;
  std::mt19937 random(6);
  const auto packed = GetParam().model();
  const auto tokens = random_tokens(random, kTokens);
  const auto want = model::fixtures::float_forward_of_all(*packed, tokens);
  ExecutorOptions options = options_of(2);
  options.record_experts = true;
  Runner runner(packed, options);
  runner.start(tokens);
  runner.step({kTokens});
  const auto same_experts = [&](size_t t) {
    for (int m = 0; m < runner.executor->mixtures(); ++m) {
      const auto got = runner.executor->chosen_experts(m, static_cast<int>(t));
      if (!std::ranges::equal(got, want.experts.at(runner.executor->mixture_layer(m))[t])) return false;
    }
    return true;
  };
  double largest = 0, error = 0, squares = 0, wrong_squares = 0;
  size_t same = 0;
  for (size_t t = 0; t < kTokens; ++t) {
    if (!same_experts(t)) continue;
    ++same;
    for (size_t i = 0; i < kVocab; ++i) {
      const double difference = want.logits[t][i] - static_cast<double>(runner.texts[0].logits[t][i]);
      largest = std::max(largest, std::abs(want.logits[t][i]));
      error = std::max(error, std::abs(difference));
      squares += want.logits[t][i] * want.logits[t][i];
      wrong_squares += difference * difference;
    }
  }
  const double off = std::sqrt(wrong_squares / squares);
  EXPECT_GT(largest, 1);
  if (GetParam().type == model::PackType::float32) {
    // Sums of at most 256 terms, a dozen products and a softmax a layer, three layers: some 10,000 roundings
    // of 2^-24 in the worst case, and some growth through the layers.
    EXPECT_LT(error / largest, 10000 * 0x1p-24);
    EXPECT_EQ(same, kTokens);
  } else {
    // The oracle has the same weights, so what differs is the rounding of activations: about 0.7 % of a row's
    // size for a product (numbers_slow_test.cc derives it), eight products a layer at most, like independent
    // errors, three layers and the head: 3.5 %; three times that for what nonlinearities amplify and for rows
    // it attends to that picked other experts. Rows that did so themselves are left out, and must be few.
    EXPECT_LT(off, 0.1);
    EXPECT_GE(same, kTokens / 2);
  }
  std::printf("%s: largest error %.2g of %.3g, root mean square %.2g; %zu rows with equal experts\n",
              GetParam().name.c_str(), error, largest, off, same);
}

INSTANTIATE_TEST_SUITE_P(Models, ExecutorNumbers, ::testing::ValuesIn(variants()),
                         [](const auto& suite) { return suite.param.name; });

TEST(Executor, CountsTheRowsOfExperts) {
  std::mt19937 random(7);
  for (const int column_rows : {-1, 1000}) {
    Runner runner(tiny(model::PackType::int8, testing::tiny_mixture()), options_of(2, column_rows));
    runner.start(random_tokens(random, 50));
    runner.step({50});
    ASSERT_EQ(runner.executor->mixtures(), 2);
    EXPECT_EQ(runner.executor->mixture_layer(1), 2);
    for (int m = 0; m < 2; ++m) {
      uint64_t total = 0;
      for (int e = 0; e < 8; ++e) total += runner.executor->expert_tokens(m, e);
      EXPECT_EQ(total, 50u * 3);
    }
  }
}

// So many that threads claim them by columns too; over panels of rows, and with a shared expert or none.
TEST(Executor, ClaimsManyExpertsWithTheSameBits) {
  std::mt19937 random(8);
  const auto tokens = random_tokens(random, 100);
  for (const int shared : {0, 96})
    for (const auto type : {model::PackType::int8, model::PackType::float32}) {
      TinySizes sizes = testing::tiny_mixture();
      sizes.moe.experts = 128;
      sizes.moe.experts_per_token = 8;
      sizes.moe.shared_ffn_size = shared;
      const auto packed = tiny(type, sizes);
      Runner runner(packed, options_of(1, -1));  // by rows
      runner.start(tokens);
      runner.step({100});
      int picked = 0;
      for (int e = 0; e < 128; ++e) picked += runner.executor->expert_tokens(0, e) > 0;
      EXPECT_GE(picked, 72);  // 24 for each of three threads
      for (const int threads : {1, 2, 3})
        for (int repeat = 0; repeat < 5; ++repeat)
          EXPECT_EQ(whole(packed, tokens, options_of(threads, 1000, 32)), runner.texts[0].logits)
              << threads << " threads, shared " << shared;
    }
}

TEST(Executor, RefusesHeadsThatTheKernelsCannotDo) {  // a packed file is a file like any other
  for (const int head_dim : {48, 1056})
    EXPECT_EQ(
        Executor::create(tiny(model::PackType::int8, {.head_dim = head_dim}), options_of(1)).error().code,
        Code::unimplemented);
  auto latent = testing::tiny_deepseek();
  latent.mla.value_head_dim = 24;
  EXPECT_EQ(Executor::create(tiny(model::PackType::int8, latent), options_of(1)).error().code,
            Code::unimplemented);
}

TEST(Executor, RefusesAGraphThatDoesNotFitItsConfig) {
  TinyModel packed(model::PackType::int8);
  auto& graph = const_cast<model::Graph&>(packed.graph());
  std::get<model::HeadModule>(graph.modules.back()).head.n += 1;
  const std::shared_ptr<const model::PackedModel> shared(&packed, [](const model::PackedModel*) {});
  EXPECT_EQ(Executor::create(shared, options_of(1)).error().code, Code::data_loss);
}

}  // namespace
}  // namespace millrace::engine
