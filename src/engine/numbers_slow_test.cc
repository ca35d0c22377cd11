// The numbers of the whole path, checkpoint to logits, against transformers in float32 (tests/numbers):
// a tiny random checkpoint of each architecture, and SmolLM2-135M-Instruct where it is on this machine.
#include <fmt/core.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <numeric>
#include <vector>

#include "base/file.h"
#include "engine/internal/executor.h"
#include "engine/internal/kv_pool.h"
#include "engine/internal/numbers_testing.h"
#include "engine/internal/sequence.h"

namespace millrace::engine {
namespace {

using model::PackType;
using testing::kUnit;

struct Fixture : testing::FixtureText {
  std::vector<float> logits;  // [positions][vocab]
  const float* row(size_t i) const { return logits.data() + i * static_cast<size_t>(vocab); }
};

std::filesystem::path fixture_folder(const std::string& name) {  // ctest runs tests in the repository's root
  return std::filesystem::path("tests/numbers/fixtures") / name;
}

Fixture read_fixture(const std::string& name) {
  Fixture fixture;
  const auto folder = fixture_folder(name);
  fixture.read(folder, testing::read_json(folder / "meta.json"));
  fixture.logits = testing::read_array<float>(folder / "logits.f32");
  EXPECT_EQ(fixture.logits.size(), fixture.positions.size() * static_cast<size_t>(fixture.vocab));
  return fixture;
}

class Numbers : public testing::PackingTest {
 protected:
  // Both forms of the checkpoint against the fixture.
  void expect_agrees(const std::filesystem::path& checkpoint, const Fixture& fixture) const;

  // Logits at the fixture's positions, the tokens read in steps of 64 rows.
  static std::vector<float> logits_of(const std::shared_ptr<const model::PackedModel>& packed,
                                      const Fixture& fixture) {
    constexpr int kStep = 64;
    const auto count = static_cast<int64_t>(fixture.tokens.size());
    auto executor = Executor::create(
        packed, {.cpus = {-1}, .max_rows = kStep, .max_logit_rows = kStep, .max_positions = count});
    EXPECT_TRUE(executor.has_value());
    auto pool = KvPool::create(Sequence::pages_for(count), kv_shape_of(*packed).page_bytes());
    std::vector<int32_t> pages;
    for (int64_t i = 0; i < Sequence::pages_for(count); ++i) pages.push_back(pool->allocate());
    std::vector<float> kept;
    for (int64_t first = 0; first < count; first += kStep) {
      const int rows = static_cast<int>(std::min<int64_t>(kStep, count - first));
      std::vector<int32_t> wanted;
      for (const int32_t position : fixture.positions)
        if (position >= first && position < first + rows)
          wanted.push_back(position - static_cast<int32_t>(first));
      const StepSegment segment{pages.data(), first, 0, rows};
      (*executor)->run(
          {std::span(fixture.tokens).subspan(static_cast<size_t>(first), static_cast<size_t>(rows)),
           {&segment, 1},
           wanted},
          pool->base());
      for (size_t i = 0; i < wanted.size(); ++i) {
        const float* row = (*executor)->logits(static_cast<int>(i));
        kept.insert(kept.end(), row, row + fixture.vocab);
      }
    }
    return kept;
  }
};

struct Difference {
  double largest = 0;   // |a - b|
  double relative = 0;  // ||a - b|| / ||b - mean(b)||: a shift of all logits carries no information
};

Difference difference(const float* a, const float* b, int n) {
  const double mean = std::accumulate(b, b + n, 0.0) / n;
  Difference out;
  double squares = 0, norm = 0;
  for (int i = 0; i < n; ++i) {
    const double d = static_cast<double>(a[i]) - static_cast<double>(b[i]);
    out.largest = std::max(out.largest, std::abs(d));
    squares += d * d;
    norm += (static_cast<double>(b[i]) - mean) * (static_cast<double>(b[i]) - mean);
  }
  out.relative = std::sqrt(squares / norm);
  return out;
}

// How far two float32 evaluations of one model may be apart at `position`, in units of the largest logit.
//
// A dot product of K terms in any order carries a rounding error of sqrt(K) u relative to its operands' norms
// (independent roundings; Higham and Mary, 2019). A layer has six on its way: two norms, qkv, o, gate_up,
// down. A score s = q.k / sqrt(D) carries sqrt(D) u |s| of its own and, through the rotary embedding, the
// error of the angles: transformers rounds 1 / theta^(2i/D) to float and the product with the position again,
// so an angle of t radians is off by up to 2 u t. An error e of a score moves a softmax weight by e of
// itself. Both evaluations have such an error (factor 2), each layer's is independent of the others'
// (sqrt(layers)), and the head adds one more product.
double float_bound(const model::ModelConfig& config, int position) {
  constexpr double kScoreMax = 8;  // |s| of what softmax does not already drop to nothing
  const double k = std::max({config.hidden_size, config.ffn_size, config.q_heads * config.head_dim});
  const double products = 6 * std::sqrt(k);
  const double scores = kScoreMax * (std::sqrt(config.head_dim) + 2.0 * position);
  return 2 * kUnit * (std::sqrt(config.layers) * (products + scores) + std::sqrt(k));
}

// What INT8 may cost, as relative rms of a row of logits.
//
// A value is rounded to a step of m / 127, m the largest of its row: rms error m / (127 sqrt(12)). After
// rotation values are near to normal, so of K about sqrt(2 ln K) rms is the largest: each operand of a
// product carries sqrt(2 ln K) / 440, 0.7 % for K = 128, weights and activations independently (sqrt 2). A
// layer's two branches each pass two such products one after the other (sqrt 2), and BF16 keys, values and
// embeddings (2^-9) hide below them; layers add up like independent errors, of a stream that keeps its size;
// the head is one more. Factor 2 for what nonlinearities amplify.
double int8_bound(const model::ModelConfig& config) {
  const double k = std::max({config.hidden_size, config.ffn_size, config.q_heads * config.head_dim});
  const double product = std::sqrt(2.0) * std::sqrt(2 * std::log(k)) / 440;
  return 2 * product * std::sqrt(4.0 * config.layers + 1);
}

int argmax(const float* x, int n) { return static_cast<int>(std::max_element(x, x + n) - x); }

void expect_float_agrees(const model::ModelConfig& config, const Fixture& fixture,
                         const std::vector<float>& got) {
  ASSERT_EQ(got.size(), fixture.logits.size());
  double worst = 0;
  for (size_t i = 0; i < fixture.positions.size(); ++i) {
    const float* want = fixture.row(i);
    const float* row = got.data() + i * static_cast<size_t>(fixture.vocab);
    double largest = 0;
    for (int j = 0; j < fixture.vocab; ++j)
      largest = std::max(largest, std::abs(static_cast<double>(want[j])));
    const double bound = float_bound(config, fixture.positions[i]) * largest;
    const double off = difference(row, want, fixture.vocab).largest;
    worst = std::max(worst, off / bound);
    EXPECT_LE(off, bound) << "at position " << fixture.positions[i] << ", largest logit " << largest;
    EXPECT_EQ(argmax(row, fixture.vocab), argmax(want, fixture.vocab));
  }
  fmt::print("float32: largest error is {:.3f} of the bound\n", worst);
}

// The error of one logit is taken as normal, with the bound's rms: 4 sigma hold for all logits of a row.
double int8_logit_error(double bound, const float* want, int vocab) {
  const double mean = std::accumulate(want, want + vocab, 0.0) / vocab;
  double squares = 0;
  for (int j = 0; j < vocab; ++j) squares += std::pow(static_cast<double>(want[j]) - mean, 2);
  return 4 * bound * std::sqrt(squares / vocab);
}

void expect_int8_agrees(const model::ModelConfig& config, const Fixture& fixture,
                        const std::vector<float>& got) {
  ASSERT_EQ(got.size(), fixture.logits.size());
  const double bound = int8_bound(config);
  double worst = 0;
  int same = 0;
  const int vocab = fixture.vocab, count = static_cast<int>(fixture.positions.size());
  for (int i = 0; i < count; ++i) {
    const float* want = fixture.row(static_cast<size_t>(i));
    const float* row = got.data() + static_cast<int64_t>(i) * vocab;
    const Difference off = difference(row, want, vocab);
    worst = std::max(worst, off.relative);
    EXPECT_LE(off.relative, bound) << "at position " << fixture.positions[static_cast<size_t>(i)];
    // Two logits can change places only if they are nearer than the sum of their errors.
    const int best = argmax(want, vocab), chosen = argmax(row, vocab);
    const double behind = static_cast<double>(want[best]) - static_cast<double>(want[chosen]);
    EXPECT_LE(behind, 2 * int8_logit_error(bound, want, vocab))
        << "at position " << fixture.positions[static_cast<size_t>(i)] << ": token " << chosen
        << " instead of " << best;
    same += chosen == best;
  }
  EXPECT_GE(5 * same, 4 * count) << "of " << count << " positions, " << same << " have the same best token";
  EXPECT_GT(worst, 1e-4) << "nothing was quantised";
  fmt::print("int8: largest relative error {:.4f}, bound {:.4f}; best token equal at {} of {} positions\n",
             worst, bound, same, count);
}

void Numbers::expect_agrees(const std::filesystem::path& checkpoint, const Fixture& fixture) const {
  for (const PackType type : {PackType::float32, PackType::int8}) {
    const auto packed = pack(checkpoint, type);
    ASSERT_TRUE(packed);
    const auto got = logits_of(packed, fixture);
    if (type == PackType::float32)
      expect_float_agrees(packed->config(), fixture, got);
    else
      expect_int8_agrees(packed->config(), fixture, got);
  }
}

class TinyNumbers : public Numbers, public ::testing::WithParamInterface<const char*> {};

TEST_P(TinyNumbers, AgreeWithTransformers) {
  expect_agrees(fixture_folder(GetParam()) / "model", read_fixture(GetParam()));
}

INSTANTIATE_TEST_SUITE_P(Architectures, TinyNumbers,
                         ::testing::Values("llama_tied", "llama3_rope", "qwen2", "qwen3"),
                         [](const auto& parameter) { return std::string(parameter.param); });

TEST_F(Numbers, SmolLm2AgreesWithTransformers) {
  const auto checkpoint = millrace_home() / "models/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf";
  if (!std::filesystem::exists(checkpoint))
    GTEST_SKIP() << checkpoint << " is not there; `millrace pull smollm2` fetches it";
  expect_agrees(checkpoint, read_fixture("smollm2"));
}

}  // namespace
}  // namespace millrace::engine
