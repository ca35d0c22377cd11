// A small trained DeepSeek-V3 (tests/models, or the folder that MILLRACE_TINY_DEEPSEEK names) against the
// outputs that transformers gave for it.
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <boost/json.hpp>
#include <cmath>
#include <filesystem>

#include "base/file.h"
#include "model/fixtures/float_forward.h"
#include "model/fixtures/tiny_deepseek.h"
#include "model/packed_model.h"

namespace millrace::model {
namespace {

class TinyDeepSeek : public testing::Test {
 protected:
  void SetUp() override {
    checkpoint = fixtures::tiny_deepseek_folder();
    expected = boost::json::parse(*read_file(checkpoint / "fixtures.json", 1 << 24)).as_object();
  }
  std::shared_ptr<const PackedModel> pack(PackType type) const {
    const auto path =
        std::filesystem::path(testing::TempDir()) / ("tiny_deepseek_" + std::to_string(::getpid()));
    const auto packed = pack_checkpoint(checkpoint, path, {.type = type, .threads = 2, .progress = {}});
    EXPECT_TRUE(packed.has_value()) << (packed ? "" : packed.error().message);
    auto model = PackedModel::open(path);
    std::filesystem::remove(path);  // the mapping stays
    EXPECT_TRUE(model.has_value()) << (model ? "" : model.error().message);
    return model ? *model : nullptr;
  }
  static std::vector<TokenId> ids(const boost::json::object& prompt) {
    std::vector<TokenId> out;
    for (const auto& id : prompt.at("ids").as_array()) out.push_back(id.to_number<TokenId>());
    return out;
  }
  std::filesystem::path checkpoint;
  boost::json::object expected;
};

// The reference computed in float32; an FMA chain of a few hundred terms on logits of order 10 is off by
// about 1e-5 of them, and the fixture is printed to five places.
TEST_F(TinyDeepSeek, FloatPathGivesTheFixturesLogits) {
  const auto model = pack(PackType::float32);
  ASSERT_TRUE(model);
  for (const auto& entry : expected.at("prompts").as_array()) {
    const auto& prompt = entry.as_object();
    const auto got = fixtures::float_forward(*model, ids(prompt));
    const auto& logits = prompt.at("logits").as_object();
    const auto& first = logits.at("first64").as_array();
    for (size_t i = 0; i < first.size(); ++i)
      EXPECT_NEAR(got[i], first[i].to_number<double>(), 1e-4) << prompt.at("name") << " " << i;
    const auto& top = logits.at("top10").as_array();
    const auto& top_ids = logits.at("top10_ids").as_array();
    for (size_t i = 0; i < top.size(); ++i)
      EXPECT_NEAR(got[top_ids[i].to_number<size_t>()], top[i].to_number<double>(), 1e-4) << prompt.at("name");
  }
}

TEST_F(TinyDeepSeek, FloatPathPicksTheFixturesExperts) {
  const auto model = pack(PackType::float32);
  ASSERT_TRUE(model);
  size_t compared = 0;
  for (const auto& entry : expected.at("prompts").as_array()) {
    const auto& prompt = entry.as_object();
    if (!prompt.contains("experts")) continue;
    const auto got = fixtures::float_forward_of_all(*model, ids(prompt));
    for (const auto& [layer, entry_of_layer] : prompt.at("experts").as_object()) {
      if (std::stoi(std::string(layer)) >= model->config().layers) continue;  // of the MTP layer
      const auto& rows = got.experts.at(std::stoi(std::string(layer)));
      const auto& tokens = entry_of_layer.as_object().at("ids").as_array();
      ASSERT_EQ(rows.size(), tokens.size());
      for (size_t t = 0; t < rows.size(); ++t) {
        std::vector<int> want, have = rows[t];
        for (const auto& e : tokens[t].as_array()) want.push_back(e.to_number<int>());
        std::ranges::sort(want);
        std::ranges::sort(have);
        EXPECT_EQ(have, want) << "layer " << layer << " token " << t;
        ++compared;
      }
    }
  }
  EXPECT_GT(compared, 100u);
}

// drafts[j] is the MTP layer's choice at slot P - 1 + j: it saw greedy[j] and guesses greedy[j + 1].
TEST_F(TinyDeepSeek, MtpDraftsTheFixturesTokens) {
  const auto model = pack(PackType::float32);
  ASSERT_TRUE(model);
  ASSERT_EQ(model->graph().mtp.size(), 1u);
  for (const auto& entry : expected.at("prompts").as_array()) {
    const auto& prompt = entry.as_object();
    auto tokens = ids(prompt);
    const size_t slot = tokens.size() - 1;
    const auto& greedy = prompt.at("greedy").as_array();
    const auto& drafts = prompt.at("mtp").as_object().at("drafts").as_array();
    for (const auto& token : greedy) tokens.push_back(token.to_number<TokenId>());
    const auto main = fixtures::float_forward_of_all(*model, tokens);
    const auto got = fixtures::mtp_forward(*model, model->graph().mtp[0], tokens, main.stream);
    for (size_t j = 0; j < drafts.size(); ++j) {
      const auto& logits = got.logits[slot + j];
      EXPECT_EQ(std::ranges::max_element(logits) - logits.begin(), drafts[j].to_number<int>())
          << prompt.at("name") << " " << j;
      const auto& next = main.logits[slot + j];
      EXPECT_EQ(std::ranges::max_element(next) - next.begin(), greedy[j].to_number<int>())
          << prompt.at("name") << " " << j;
    }
  }
}

// The rounding of weights alone: the activations are in double here.
TEST_F(TinyDeepSeek, Int8PathStaysClose) {
  const auto model = pack(PackType::int8);
  ASSERT_TRUE(model);
  double kl = 0;
  int top = 0, count = 0;
  const auto plain = pack(PackType::float32);
  const auto& prompt = expected.at("prompts").as_array().back().as_object();
  const auto got = fixtures::float_forward_of_all(*model, ids(prompt)),
             want = fixtures::float_forward_of_all(*plain, ids(prompt));
  for (size_t t = 0; t < want.logits.size(); ++t) {
    const auto normaliser = [](const std::vector<double>& x) {
      double sum = 0;
      for (const double v : x) sum += std::exp(v);
      return std::log(sum);
    };
    const auto &a = want.logits[t], &b = got.logits[t];
    const double za = normaliser(a), zb = normaliser(b);
    for (size_t i = 0; i < a.size(); ++i) kl += std::exp(a[i] - za) * (a[i] - za - b[i] + zb);
    top += std::ranges::max_element(a) - a.begin() == std::ranges::max_element(b) - b.begin();
    ++count;
  }
  RecordProperty("mean_kl", std::to_string(kl / count));
  RecordProperty("top1", std::to_string(static_cast<double>(top) / count));
  EXPECT_LT(kl / count, 0.008);
}

}  // namespace
}  // namespace millrace::model
