// The MTP layer: its numbers against double precision, and that they depend on the sequence alone, like the
// model's. (Guesses need not: they change no token. That they do makes measurements repeat.)
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "engine/internal/executor.h"
#include "engine/internal/kv_pool.h"
#include "engine/internal/sequence.h"
#include "engine/internal/testing.h"
#include "model/fixtures/float_forward.h"

namespace millrace::engine {
namespace {

using testing::kVocab;
using testing::random_tokens;
using testing::TinyModel;
using testing::TinySizes;

using Logits = std::vector<float>;

struct Variant {
  std::string name;
  model::PackType type;
  TinySizes sizes;
  std::shared_ptr<const model::PackedModel> model() const {
    TinySizes with = sizes;
    with.mtp = true;
    return std::make_shared<TinyModel>(type, with);
  }
};
void PrintTo(const Variant& variant, std::ostream* out) { *out << variant.name; }
std::vector<Variant> variants() {
  std::vector<Variant> all;
  for (const auto type : {model::PackType::int8, model::PackType::float32}) {
    const std::string suffix = type == model::PackType::int8 ? "_int8" : "_float32";
    all.push_back({"dense" + suffix, type, {}});
    all.push_back({"deepseek" + suffix, type, testing::tiny_deepseek()});
    all.push_back({"switches" + suffix, type, testing::tiny_other_switches()});
  }
  return all;
}

ExecutorOptions options_of(int threads, int column_rows = 0, int panel = 0,
                           std::optional<kernels::Isa> isa = {}) {
  return {.cpus = std::vector<int>(static_cast<size_t>(threads), -1),
          .max_rows = 512,
          .max_logit_rows = 512,
          .max_positions = 512,
          .isa = isa,
          .panel_rows = panel,
          .column_rows_max = column_rows,
          .drafts = true};
}

// Texts that are read in steps, each step's rows guessing at once.
struct Reader {
  Reader(const std::shared_ptr<const model::PackedModel>& packed, const ExecutorOptions& options)
      : executor(Executor::create(packed, options).value()),
        pool(KvPool::create(64, executor->kv_shape().page_bytes()).value()) {}
  struct Text {
    std::vector<TokenId> tokens;
    std::vector<int32_t> pages;
    int64_t done = 0;
    std::vector<Logits> logits, guesses;  // the model's and the MTP layer's, by position
  };
  void start(const std::vector<TokenId>& tokens) {
    Text& text = texts.emplace_back(Text{.tokens = tokens});
    for (int64_t i = 0; i < Sequence::pages_for(std::ssize(tokens)); ++i)
      text.pages.push_back(pool.allocate());
  }
  void step(const std::vector<int>& rows) {
    std::vector<TokenId> tokens, next;
    std::vector<StepSegment> segments, guessing;
    std::vector<int32_t> wanted, states, guess_rows;
    for (size_t i = 0; i < rows.size(); ++i) {
      Text& text = texts[i];
      const int count = static_cast<int>(std::min<int64_t>(rows[i], std::ssize(text.tokens) - text.done));
      const int known = static_cast<int>(std::min<int64_t>(count, std::ssize(text.tokens) - 1 - text.done));
      if (count == 0) continue;
      if (known > 0) guessing.push_back({text.pages.data(), text.done, static_cast<int>(next.size()), known});
      segments.push_back({text.pages.data(), text.done, static_cast<int>(tokens.size()), count});
      for (int row = 0; row < count; ++row) {
        const auto number = static_cast<int32_t>(tokens.size());
        const auto position = static_cast<size_t>(text.done + row);
        wanted.push_back(number);
        tokens.push_back(text.tokens[position]);
        if (row >= known) continue;
        guess_rows.push_back(static_cast<int32_t>(next.size()));
        states.push_back(number);
        next.push_back(text.tokens[position + 1]);
      }
    }
    if (tokens.empty()) return;
    executor->run({tokens, segments, wanted, wanted}, pool.base());
    take(rows, 0, &Text::logits);
    if (!next.empty()) {
      executor->draft({next, guessing, states, guess_rows}, pool.base());
      take(rows, 1, &Text::guesses);
    }
    for (size_t i = 0; i < rows.size(); ++i)
      texts[i].done += std::min<int64_t>(rows[i], std::ssize(texts[i].tokens) - texts[i].done);
  }
  void take(const std::vector<int>& rows, int unknown, std::vector<Logits> Text::*to) {
    int index = 0;
    for (size_t i = 0; i < rows.size(); ++i) {
      Text& text = texts[i];
      const auto count = std::min<int64_t>(rows[i], std::ssize(text.tokens) - unknown - text.done);
      for (int64_t row = 0; row < count; ++row, ++index)
        (text.*to).emplace_back(executor->logits(index), executor->logits(index) + kVocab);
    }
  }
  std::unique_ptr<Executor> executor;
  KvPool pool;
  std::vector<Text> texts;
};

Reader::Text whole(const std::shared_ptr<const model::PackedModel>& packed,
                   const std::vector<TokenId>& tokens, const ExecutorOptions& options) {
  Reader reader(packed, options);
  reader.start(tokens);
  reader.step({static_cast<int>(tokens.size())});
  return reader.texts[0];
}

class Mtp : public ::testing::TestWithParam<Variant> {};

TEST_P(Mtp, EqualsADoublePrecisionForwardPass) {
  std::mt19937 random(1);
  const auto packed = GetParam().model();
  const auto tokens = random_tokens(random, 60);
  const auto main = model::fixtures::float_forward_of_all(*packed, tokens);
  const auto want = model::fixtures::mtp_forward(*packed, packed->graph().mtp[0], tokens, main.stream);
  ExecutorOptions options = options_of(2);
  options.record_experts = true;
  Reader reader(packed, options);
  reader.start(tokens);
  reader.step({static_cast<int>(tokens.size())});
  const auto& got = reader.texts[0].guesses;
  ASSERT_EQ(got.size(), tokens.size() - 1);
  const auto same_experts = [&](size_t t) {
    const Executor& executor = *reader.executor;
    for (int m = 0; m < executor.mixtures(); ++m) {
      const int layer = executor.mixture_layer(m);
      const auto& experts = layer == packed->config().layers ? want.experts : main.experts;
      if (!std::ranges::equal(executor.chosen_experts(m, static_cast<int>(t)), experts.at(layer)[t]))
        return false;
    }
    return true;
  };
  std::vector<double> off;
  for (size_t t = 0; t < got.size(); ++t) {
    if (!same_experts(t)) continue;
    double squares = 0, wrong = 0;
    for (size_t i = 0; i < kVocab; ++i) {
      squares += want.logits[t][i] * want.logits[t][i];
      wrong += std::pow(want.logits[t][i] - static_cast<double>(got[t][i]), 2);
    }
    off.push_back(std::sqrt(wrong / squares));
  }
  std::ranges::sort(off);
  if (GetParam().type == model::PackType::float32) {
    // As executor_test.cc's bound, with the model's layers before and this one after.
    EXPECT_LT(off.back(), 10000 * 0x1p-24);
    EXPECT_EQ(off.size(), got.size());
  } else {
    // Likewise 3.5 % of rounded activations and one layer more, for rows that pick the same experts; where
    // there are experts, the others are off by much more, and this layer attends to them. A missing gain or
    // turn is off by more than 1. deepseek_mtp_slow_test.cc has the sharper figure, of a trained model.
    EXPECT_LT(off[off.size() / 2], GetParam().sizes.moe.used() ? 0.35 : 0.1);
    EXPECT_GE(off.size(), got.size() / 4);
  }
  std::printf("%s: relative error, median %.2g, largest %.2g, of %zu rows\n", GetParam().name.c_str(),
              off[off.size() / 2], off.back(), off.size());
}

TEST_P(Mtp, BitsDoNotDependOnChunksThreadsOrColumns) {
  std::mt19937 random(2);
  const auto packed = GetParam().model();
  const auto tokens = random_tokens(random, 120);
  const auto want = whole(packed, tokens, options_of(1));
  for (const int threads : {1, 2})
    for (const int column_rows : {-1, 1000})
      for (const int chunk : {1, 33, 120}) {
        Reader reader(packed, options_of(threads, column_rows, 32));
        reader.start(tokens);
        while (reader.texts[0].done < 120) reader.step({chunk});
        EXPECT_EQ(reader.texts[0].guesses, want.guesses)
            << threads << " threads, columns to " << column_rows << ", chunks of " << chunk;
        EXPECT_EQ(reader.texts[0].logits, want.logits) << "the model itself";
      }
}

TEST_P(Mtp, BitsDoNotDependOnTheBatch) {
  std::mt19937 random(3);
  const auto packed = GetParam().model();
  Reader reader(packed, options_of(2));
  std::vector<std::vector<TokenId>> prompts;
  for (int i = 0; i < 8; ++i) {
    prompts.push_back(random_tokens(random, 2 + random() % 60));
    reader.start(prompts.back());
  }
  for (int step = 0; step < 40; ++step) {
    std::vector<int> rows;
    for (int i = 0; i < 8; ++i) rows.push_back(static_cast<int>(random() % 9));
    reader.step(rows);
  }
  for (size_t i = 0; i < prompts.size(); ++i) {
    auto want = whole(packed, prompts[i], options_of(1));
    want.guesses.resize(reader.texts[i].guesses.size());
    EXPECT_EQ(reader.texts[i].guesses, want.guesses) << "text " << i;
  }
}

// Rows without a guess leave their keys; a guess of a guess starts from the state under the first.
TEST_P(Mtp, GuessesFurtherFromItsOwnState) {
  std::mt19937 random(4);
  const auto packed = GetParam().model();
  const auto tokens = random_tokens(random, 40);
  std::vector<TokenId> first;  // [thread count, way of sharing]: all the same
  std::vector<Logits> second;
  for (const int column_rows : {-1, 1000}) {
    Reader reader(packed, options_of(2, column_rows));
    reader.start(tokens);
    const auto& pages = reader.texts[0].pages;
    std::vector<int32_t> rows(39);
    std::iota(rows.begin(), rows.end(), 0);
    const std::vector<TokenId> next(tokens.begin() + 1, tokens.end());
    const StepSegment segment{pages.data(), 0, 0, 39};
    const std::vector<int32_t> last = {38};
    reader.executor->run({std::span(tokens).first(39), {&segment, 1}, last, rows}, reader.pool.base());
    reader.executor->draft({next, {&segment, 1}, rows, last}, reader.pool.base());
    EXPECT_EQ(Logits(reader.executor->logits(0), reader.executor->logits(0) + kVocab),
              whole(packed, tokens, options_of(1)).guesses.back());
    const TokenId guess = reader.executor->guess(0);
    const Logits all = whole(packed, tokens, options_of(1)).guesses.back();
    EXPECT_EQ(guess, std::ranges::max_element(all) - all.begin());
    first.push_back(guess);
    const StepSegment further{pages.data(), 39, 0, 1};
    const std::vector<int32_t> zero = {0};
    reader.executor->draft({{&guess, 1}, {&further, 1}, zero, zero, true}, reader.pool.base());
    second.emplace_back(reader.executor->logits(0), reader.executor->logits(0) + kVocab);
    EXPECT_NE(second.back(), all);
  }
  EXPECT_EQ(first[0], first[1]);
  EXPECT_EQ(second[0], second[1]);
}

INSTANTIATE_TEST_SUITE_P(Models, Mtp, ::testing::ValuesIn(variants()),
                         [](const auto& suite) { return suite.param.name; });

TEST(MtpChecks, RefusesWhatIsNotThereOrDoesNotFit) {
  const auto create = [](const std::shared_ptr<TinyModel>& packed) {
    return Executor::create(packed, options_of(1)).error();
  };
  const auto with = [](auto&& change) {
    auto packed = std::make_shared<TinyModel>(model::PackType::int8, TinySizes{.mtp = true});
    change(const_cast<model::Graph&>(packed->graph()).mtp[0]);
    return packed;
  };
  EXPECT_EQ(create(std::make_shared<TinyModel>(model::PackType::int8)).code, Code::invalid_argument);
  for (const auto& broken : {
           with([](model::MtpModule& mtp) { mtp.eh.k -= 1; }),
           with([](model::MtpModule& mtp) { mtp.layer += 1; }),
           with([](model::MtpModule& mtp) { mtp.hadamard_block = 48; }),
           with([](model::MtpModule& mtp) { mtp.head_norm_gain = nullptr; }),
           with([](model::MtpModule& mtp) { mtp.model_norm_gain = nullptr; }),
           with([](model::MtpModule& mtp) { mtp.modules.clear(); }),
           with([](model::MtpModule& mtp) { mtp.head.head.n += 1; }),
           with([](model::MtpModule& mtp) { mtp.modules.emplace_back(mtp.head); }),
           with([](model::MtpModule& mtp) { std::get<model::AttentionModule>(mtp.modules[0]).layer = 0; }),
       })
    EXPECT_EQ(create(broken).code, Code::data_loss);
}

}  // namespace
}  // namespace millrace::engine
