// The families with latent attention and experts, checkpoint to logits, experts and tokens, against
// transformers in float32 and a float64 model of their definitions (tests/numbers/families.py). Every choice
// in the fixtures, of an expert or of a token, is decided by a margin that the float path's error bound stays
// below: so they must be equal, with no exceptions.
#include <fmt/core.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "engine/internal/executor.h"
#include "engine/internal/kv_pool.h"
#include "engine/internal/numbers_testing.h"
#include "engine/internal/sequence.h"
#include "model/fixtures/family_checkpoint.h"

namespace millrace::engine {
namespace {

using model::PackType;
using testing::kUnit;
using testing::PackingTest;
using testing::read_array;

constexpr int kStep = 64;  // rows of a step at most

struct Greedy {
  int prompt = 0;  // the sequence's first tokens
  std::vector<int> tokens;
  double margin = 0;  // least difference of the two largest logits
};

struct Fixture : testing::FixtureText {
  bool has_transformers = false;    // transformers has the family
  std::vector<float> transformers;  // [positions][vocab]; empty where it has not
  std::vector<float> reference;
  std::vector<int> moe_layers;
  int picked = 0;                // experts a token
  std::vector<uint8_t> experts;  // [MoE layer][token][picked]
  double expert_margin = 0, router_max = 0;
  bool sigmoid = false;
  std::vector<Greedy> greedy;
  double int8_kl = 0;  // mean, in nats: at most
};

Fixture read_fixture(const std::string& name) {
  Fixture fixture;
  const auto folder = model::fixtures::family_folder(name);
  const json::value meta = testing::read_json(folder / "meta.json");
  fixture.read(folder, meta);
  fixture.transformers = read_array<float>(folder / "logits.f32");
  fixture.reference = read_array<float>(folder / "reference.f32");
  fixture.experts = read_array<uint8_t>(folder / "experts.u8");
  fixture.int8_kl = meta.at("int8_kl").to_number<double>();
  for (const json::value& one : meta.at("greedy").as_array())
    fixture.greedy.push_back({one.at("prompt").to_number<int>(),
                              json::value_to<std::vector<int>>(one.at("tokens")),
                              one.at("margin").to_number<double>()});
  fixture.has_transformers = meta.as_object().contains("transformers_off");
  if (meta.as_object().contains("moe_layers")) {
    fixture.moe_layers = json::value_to<std::vector<int>>(meta.at("moe_layers"));
    fixture.picked = meta.at("experts_per_token").to_number<int>();
    fixture.expert_margin = meta.at("margin").to_number<double>();
    fixture.router_max = meta.at("router_max").to_number<double>();
    fixture.sigmoid = meta.at("score").as_string() == "sigmoid";
  }
  return fixture;
}

// One sequence on one executor.
class Run {
 public:
  Run(std::shared_ptr<const model::PackedModel> packed, int64_t positions) {
    auto made = Executor::create(packed, {.cpus = {-1},
                                          .max_rows = kStep,
                                          .max_logit_rows = kStep,
                                          .max_positions = positions,
                                          .record_experts = true});
    if (!made) {
      ADD_FAILURE() << made.error().message;
      return;
    }
    executor = std::move(*made);
    pool.emplace(*KvPool::create(Sequence::pages_for(positions), kv_shape_of(*packed).page_bytes()));
    for (int64_t i = 0; i < Sequence::pages_for(positions); ++i) pages_.push_back(pool->allocate());
  }

  // Rows after those that have run; `each` is called for every row of a step, with its position.
  template <class Each>
  void read(std::span<const TokenId> tokens, const Each& each) {
    while (!tokens.empty()) {
      const auto now = tokens.first(std::min<size_t>(tokens.size(), kStep));
      const StepSegment segment{pages_.data(), next_, 0, static_cast<int>(now.size())};
      std::vector<int32_t> wanted(now.size());
      for (size_t i = 0; i < wanted.size(); ++i) wanted[i] = static_cast<int32_t>(i);
      executor->run({now, {&segment, 1}, wanted}, pool->base());
      for (size_t i = 0; i < now.size(); ++i) each(next_ + static_cast<int64_t>(i), static_cast<int>(i));
      next_ += static_cast<int64_t>(now.size());
      tokens = tokens.subspan(now.size());
    }
  }

  std::unique_ptr<Executor> executor;
  std::optional<KvPool> pool;

 private:
  std::vector<int32_t> pages_;
  int64_t next_ = 0;
};

struct Outputs {
  std::vector<std::vector<float>> logits;           // by position
  std::vector<std::vector<std::set<int>>> experts;  // [MoE layer][position]
};

Outputs outputs_of(const std::shared_ptr<const model::PackedModel>& packed, const Fixture& fixture) {
  Outputs out;
  out.experts.resize(fixture.moe_layers.size());
  Run run(packed, static_cast<int64_t>(fixture.tokens.size()));
  if (!run.executor) return out;
  run.read(fixture.tokens, [&](int64_t, int row) {
    const float* logits = run.executor->logits(row);
    out.logits.emplace_back(logits, logits + fixture.vocab);
    for (size_t i = 0; i < out.experts.size(); ++i) {
      const auto chosen = run.executor->chosen_experts(static_cast<int>(i), row);
      out.experts[i].emplace_back(chosen.begin(), chosen.end());
    }
  });
  return out;
}

int argmax(std::span<const float> x) {
  return static_cast<int>(std::max_element(x.begin(), x.end()) - x.begin());
}

// How far the float path may be from exact arithmetic, in units of the largest logit. As in
// numbers_slow_test.cc: a product of K terms carries sqrt(K) u, a layer has about ten of them on its way
// where attention is latent (norm, in, latent norm, q_up, k_up, v_up, o, norm, gate_up, down) and six
// otherwise, a score up to 8 carries sqrt(D) u of its own and moves its softmax weight by as much; layers add
// up like independent errors, and the head is one more.
double own_bound(const model::ModelConfig& config) {
  const bool latent = config.mla.used();
  const int score_width = latent ? config.mla.kv_lora_rank + config.mla.rope_head_dim : config.head_dim;
  const double k = std::max({config.hidden_size, config.ffn_size, config.moe.shared_ffn_size,
                             config.q_heads * (latent ? config.mla.value_head_dim : config.head_dim)});
  return kUnit * (std::sqrt(config.layers) * ((latent ? 10 : 6) * std::sqrt(k) + 8 * std::sqrt(score_width)) +
                  std::sqrt(k));
}
// transformers has such an error too, and rounds RoPE's angles: one of t radians is off by up to 2 u t.
double transformers_bound(const model::ModelConfig& config, int position) {
  return 2 * own_bound(config) + 2 * kUnit * std::sqrt(config.layers) * 8 * 2.0 * position;
}
// By how much the difference of two router scores may be off. A router's logit is a product over the stream
// like a model's; a sigmoid's slope is at most 1/4, and two scores, or two sums of two scores, are compared.
double expert_bound(const model::ModelConfig& config, const Fixture& fixture) {
  return own_bound(config) * fixture.router_max * (fixture.sigmoid ? 4 * 0.25 : 2);
}

void expect_logits(const char* of, const Fixture& fixture, const std::vector<float>& want, const Outputs& got,
                   const std::function<double(int)>& bound_at) {
  ASSERT_EQ(want.size(), fixture.positions.size() * static_cast<size_t>(fixture.vocab));
  double worst = 0;
  for (size_t i = 0; i < fixture.positions.size(); ++i) {
    const auto row =
        std::span(want).subspan(i * static_cast<size_t>(fixture.vocab), static_cast<size_t>(fixture.vocab));
    const auto& logits = got.logits.at(static_cast<size_t>(fixture.positions[i]));
    double largest = 0, off = 0;
    for (size_t j = 0; j < row.size(); ++j) {
      largest = std::max(largest, std::abs(static_cast<double>(row[j])));
      off = std::max(off, std::abs(static_cast<double>(row[j]) - static_cast<double>(logits[j])));
    }
    const double bound = bound_at(fixture.positions[i]) * largest;
    worst = std::max(worst, off / bound);
    EXPECT_LE(off, bound) << of << ", position " << fixture.positions[i] << ", largest logit " << largest;
  }
  fmt::print("  against {}: largest error is {:.3f} of the bound\n", of, worst);
}

void expect_experts(const model::ModelConfig& config, const Fixture& fixture, const Outputs& got) {
  if (fixture.moe_layers.empty()) return;
  ASSERT_GT(fixture.expert_margin, expert_bound(config, fixture)) << "the fixture has near ties";
  const size_t tokens = fixture.tokens.size(), picked = static_cast<size_t>(fixture.picked);
  ASSERT_EQ(fixture.experts.size(), fixture.moe_layers.size() * tokens * picked);
  for (size_t i = 0; i < fixture.moe_layers.size(); ++i)
    for (size_t t = 0; t < tokens; ++t) {
      const uint8_t* want = fixture.experts.data() + (i * tokens + t) * picked;
      EXPECT_EQ(got.experts[i][t], std::set<int>(want, want + picked))
          << "experts of layer " << fixture.moe_layers[i] << " at position " << t;
    }
}

// The prompt in steps of up to 64 rows, then a row at a time.
std::vector<int> continue_greedily(const std::shared_ptr<const model::PackedModel>& packed,
                                   const Fixture& fixture, const Greedy& wanted) {
  Run run(packed, wanted.prompt + static_cast<int64_t>(wanted.tokens.size()));
  std::vector<int> out;
  const auto take = [&](int64_t, int row) {
    out.resize(0);
    out.push_back(argmax({run.executor->logits(row), static_cast<size_t>(fixture.vocab)}));
  };
  run.read(std::span(fixture.tokens).first(static_cast<size_t>(wanted.prompt)), take);
  std::vector<int> tokens = out;
  while (tokens.size() < wanted.tokens.size()) {
    const TokenId last{tokens.back()};
    run.read({&last, 1}, take);
    tokens.push_back(out[0]);
  }
  return tokens;
}

struct Closeness {
  double kl = 0;  // mean, in nats
  double top1 = 0;
};
// Of b's distributions from a's.
Closeness closeness(const Outputs& a, const Outputs& b) {
  Closeness out;
  const auto log_softmax = [](const std::vector<float>& x) {
    const double most = *std::max_element(x.begin(), x.end());
    double sum = 0;
    for (const float v : x) sum += std::exp(static_cast<double>(v) - most);
    std::vector<double> y;
    for (const float v : x) y.push_back(static_cast<double>(v) - most - std::log(sum));
    return y;
  };
  for (size_t t = 0; t < a.logits.size(); ++t) {
    const auto p = log_softmax(a.logits[t]), q = log_softmax(b.logits[t]);
    for (size_t j = 0; j < p.size(); ++j) out.kl += std::exp(p[j]) * (p[j] - q[j]);
    out.top1 += argmax(a.logits[t]) == argmax(b.logits[t]);
  }
  const auto count = static_cast<double>(a.logits.size());
  return {out.kl / count, out.top1 / count};
}

class Families : public PackingTest, public ::testing::WithParamInterface<std::string> {
 protected:
  void SetUp() override {
    PackingTest::SetUp();
    const auto checkpoint =
        model::fixtures::read_family_checkpoint(model::fixtures::family_folder(GetParam()));
    ASSERT_TRUE(checkpoint.has_value()) << checkpoint.error().message;
    const auto written = model::fixtures::write_family_hugging_face(*checkpoint, folder / "model");
    ASSERT_TRUE(written.has_value()) << written.error().message;
  }
  std::shared_ptr<const model::PackedModel> pack(PackType type) const {
    return PackingTest::pack(folder / "model", type);
  }
};

TEST_P(Families, FloatPathAgrees) {
  const Fixture fixture = read_fixture(GetParam());
  // What meta.json speaks of is there: a file that was lost must not take its checks along.
  ASSERT_EQ(!fixture.transformers.empty(), fixture.has_transformers) << "logits.f32";
  ASSERT_EQ(!fixture.experts.empty(), !fixture.moe_layers.empty()) << "experts.u8";
  ASSERT_FALSE(fixture.greedy.empty());
  const auto packed = pack(PackType::float32);
  ASSERT_TRUE(packed);
  const Outputs got = outputs_of(packed, fixture);
  ASSERT_EQ(got.logits.size(), fixture.tokens.size());
  const model::ModelConfig& config = packed->config();
  expect_logits("reference", fixture, fixture.reference, got, [&](int) { return own_bound(config); });
  if (fixture.has_transformers)
    expect_logits("transformers", fixture, fixture.transformers, got,
                  [&](int position) { return transformers_bound(config, position); });
  expect_experts(config, fixture, got);
  const double largest =
      std::abs(*std::ranges::max_element(fixture.reference, {}, [](float x) { return std::abs(x); }));
  for (const Greedy& wanted : fixture.greedy) {
    ASSERT_GT(wanted.margin, 2 * own_bound(config) * largest) << "the fixture has near ties";
    EXPECT_EQ(continue_greedily(packed, fixture, wanted), wanted.tokens)
        << "after " << wanted.prompt << " tokens";
  }
}

// Tiny random models are the worst case for INT8: their routers are sharp and their experts unalike, so a
// flipped choice costs much. What a trained model loses is measured by `millrace eval`.
TEST_P(Families, Int8PathIsClose) {
  const Fixture fixture = read_fixture(GetParam());
  const auto exact = pack(PackType::float32), int8 = pack(PackType::int8);
  ASSERT_TRUE(exact && int8);
  const Outputs a = outputs_of(exact, fixture), b = outputs_of(int8, fixture);
  ASSERT_EQ(b.logits.size(), fixture.tokens.size());
  for (const auto& row : b.logits)
    for (const float value : row) ASSERT_TRUE(std::isfinite(value));
  const Closeness close = closeness(a, b);
  int same = 0, all = 0;
  for (size_t i = 0; i < a.experts.size(); ++i)
    for (size_t t = 0; t < a.experts[i].size(); ++t) {
      same += a.experts[i][t] == b.experts[i][t];
      ++all;
    }
  fmt::print("  int8: mean KL {:.4f} nats, top-1 {:.1f} %, equal sets of experts {:.1f} %\n", close.kl,
             100 * close.top1, all == 0 ? 100.0 : 100.0 * same / all);
  EXPECT_LE(close.kl, fixture.int8_kl);
  EXPECT_GE(close.kl, 1e-6) << "nothing was quantised";
  EXPECT_GE(close.top1, 0.75);
}

INSTANTIATE_TEST_SUITE_P(All, Families, ::testing::ValuesIn(model::fixtures::family_cases()),
                         [](const auto& parameter) { return parameter.param; });

}  // namespace
}  // namespace millrace::engine
