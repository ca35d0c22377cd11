// Each family's tiny model, packed and computed in double (fixtures/float_forward.h), against the logits and
// the experts that the families' own definitions give (tests/numbers). And the INT8 form against the float
// one: a fold or a rotation missing on one side moves the logits by their own size.
#include <fmt/core.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <boost/json.hpp>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <set>
#include <span>

#include "base/file.h"
#include "base/json.h"
#include "model/fixtures/family_checkpoint.h"
#include "model/fixtures/float_forward.h"
#include "model/internal/architecture.h"
#include "model/packed_model.h"

namespace millrace::model {
namespace {

template <class T>
std::vector<T> values(const std::filesystem::path& path) {
  const auto bytes = read_file(path, 1 << 24);
  EXPECT_TRUE(bytes.has_value()) << path;
  std::vector<T> out(bytes ? bytes->size() / sizeof(T) : 0);
  if (bytes) std::memcpy(out.data(), bytes->data(), out.size() * sizeof(T));
  return out;
}

class FamilyPack : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    folder = std::filesystem::path(testing::TempDir()) /
             fmt::format("millrace_family_{}_{}", GetParam(), ::getpid());
    std::filesystem::create_directories(folder);
    fixture = fixtures::family_folder(GetParam());
    const auto checkpoint = fixtures::read_family_checkpoint(fixture);
    ASSERT_TRUE(checkpoint.has_value()) << checkpoint.error().message;
    ASSERT_TRUE(fixtures::write_family_hugging_face(*checkpoint, folder / "tiny").has_value());
  }
  void TearDown() override { std::filesystem::remove_all(folder); }

  std::shared_ptr<const PackedModel> pack(PackType type) const {
    const auto packed =
        pack_checkpoint(folder / "tiny", folder / "packed", {.type = type, .threads = 1, .progress = {}});
    EXPECT_TRUE(packed.has_value()) << (packed ? "" : packed.error().message);
    const auto model = packed ? PackedModel::open(folder / "packed", {.verify_checksums = true})
                              : Expected<std::shared_ptr<const PackedModel>>(nullptr);
    EXPECT_TRUE(model.has_value()) << (model ? "" : model.error().message);
    std::filesystem::remove(folder / "packed");  // the mapping stays
    return model ? *model : nullptr;
  }

  std::filesystem::path folder, fixture;
};

TEST_P(FamilyPack, FloatFormGivesTheReferencesNumbers) {
  const auto model = pack(PackType::float32);
  ASSERT_TRUE(model);
  const auto tokens = values<int32_t>(fixture / "tokens.i32");
  const auto got = fixtures::float_forward_of_all(*model, tokens);
  const auto meta = parse_json(*read_file(fixture / "meta.json", 1 << 20))->as_object();
  const auto expected = values<float>(fixture / "reference.f32");
  const size_t vocab = static_cast<size_t>(model->config().vocab_size);
  size_t row = 0;
  double worst = 0, largest = 0;
  for (const auto& position : meta.at("positions").as_array()) {
    const auto& logits = got.logits[position.to_number<size_t>()];
    for (size_t i = 0; i < vocab; ++i) {
      worst = std::max(worst, std::abs(logits[i] - static_cast<double>(expected[row * vocab + i])));
      largest = std::max(largest, std::abs(logits[i]));
    }
    ++row;
  }
  EXPECT_EQ(row * vocab, expected.size());
  // Both are in double; the reference was stored as floats, and a config's numbers (eps, scales) are floats
  // here.
  EXPECT_LT(worst, 4e-6 * largest);
  if (!meta.contains("moe_layers")) return;
  const auto experts = values<uint8_t>(fixture / "experts.u8");
  size_t at = 0;
  for (const auto& layer : meta.at("moe_layers").as_array())
    for (const std::vector<int>& picked : got.experts.at(layer.to_number<int>()))
      for (const int expert : picked)
        EXPECT_EQ(expert, experts[at++]) << "layer " << layer << ", choice " << at;
  EXPECT_EQ(at, experts.size());
}

// |a - b| / |b|
template <class T>
double distance(std::span<const double> a, std::span<const T> b) {
  double difference = 0, size = 0;
  for (size_t i = 0; i < b.size(); ++i) {
    difference += std::pow(a[i] - static_cast<double>(b[i]), 2);
    size += std::pow(static_cast<double>(b[i]), 2);
  }
  return std::sqrt(difference / size);
}

TEST_P(FamilyPack, MtpGivesTheReferencesNumbers) {
  if (!std::filesystem::exists(fixture / "mtp_logits.f32")) GTEST_SKIP() << "no MTP layer in this fixture";
  const auto tokens = values<int32_t>(fixture / "tokens.i32");
  const auto meta = parse_json(*read_file(fixture / "meta.json", 1 << 20))->as_object();
  const auto expected = values<float>(fixture / "mtp_logits.f32");
  const auto model = pack(PackType::float32);
  ASSERT_TRUE(model);
  ASSERT_EQ(model->graph().mtp.size(), 1u);
  const auto main = fixtures::float_forward_of_all(*model, tokens);
  const auto got = fixtures::mtp_forward(*model, model->graph().mtp[0], tokens, main.stream);
  const auto vocab = static_cast<size_t>(model->config().vocab_size);
  size_t row = 0;
  for (const auto& position : meta.at("mtp_positions").as_array()) {
    const double off = distance<float>(got.logits[position.to_number<size_t>()],
                                       std::span(expected).subspan(row++ * vocab, vocab));
    EXPECT_LT(off, 4e-6) << "position " << position;
  }
  EXPECT_EQ(row * vocab, expected.size());
}

// The experts that a token was sent to, a sorted list a layer.
std::vector<std::vector<int>> experts_of(const fixtures::FloatForward& forward, size_t token) {
  std::vector<std::vector<int>> out;
  for (const auto& [layer, picked] : forward.experts) {
    out.push_back(picked[token]);
    std::ranges::sort(out.back());
  }
  return out;
}

// The INT8 form of the MTP layer where the model and the layer send the token to the float form's experts.
// With others, which these random weights often leave nearly equal, a token's logits move by their own size;
// so they do where a fold or a rotation is missing on one side, but there at every token: 43 % (median) with
// the joint's second gain left out. Allowed is twice what is measured, 7.8 %: the model's rounding (4.4 %,
// below) goes through one more layer, and other tokens' other experts through its attention.
TEST_P(FamilyPack, FoldsLeaveMtpAsItWas) {
  if (!std::filesystem::exists(fixture / "mtp_logits.f32")) GTEST_SKIP() << "no MTP layer in this fixture";
  const auto tokens = values<int32_t>(fixture / "tokens.i32");
  fixtures::FloatForward main[2], guesses[2];
  for (const PackType type : {PackType::float32, PackType::int8}) {
    const auto model = pack(type);
    ASSERT_TRUE(model);
    const size_t i = type == PackType::int8 ? 1 : 0;
    main[i] = fixtures::float_forward_of_all(*model, tokens);
    guesses[i] = fixtures::mtp_forward(*model, model->graph().mtp.at(0), tokens, main[i].stream);
  }
  std::vector<double> off;
  for (size_t t = 0; t < guesses[0].logits.size(); ++t)
    if (experts_of(main[0], t) == experts_of(main[1], t) &&
        experts_of(guesses[0], t) == experts_of(guesses[1], t))
      off.push_back(distance<double>(guesses[1].logits[t], guesses[0].logits[t]));
  ASSERT_GE(off.size(), 30u) << "too few tokens keep their experts to say anything";
  std::ranges::sort(off);
  const double median = off[off.size() / 2];
  fmt::print("{}: of {} tokens {} keep their experts; INT8 weights move MTP's logits by {:.2f} % (median)\n",
             GetParam(), guesses[0].logits.size(), off.size(), 100 * median);
  EXPECT_LT(median, 0.16);
  EXPECT_GT(median, 1e-5) << "the two forms are the same: nothing was quantised";
}

// Median over tokens of |difference| / |logits|. A product with rounded weights is off by 0.7 % (see
// pack_test.cc), and up to 27 of them follow one another here: 0.7 % * sqrt(27) = 4 %, twice which is
// allowed. Where two experts were nearly equal another one may be picked, which moves that token far: hence
// the median.
TEST_P(FamilyPack, FoldsLeaveTheModelAsItWas) {
  const auto plain = pack(PackType::float32), rotated = pack(PackType::int8);
  ASSERT_TRUE(plain && rotated);
  auto tokens = values<int32_t>(fixture / "tokens.i32");
  tokens.resize(100);
  const auto expected = fixtures::float_forward_of_all(*plain, tokens),
             got = fixtures::float_forward_of_all(*rotated, tokens);
  std::vector<double> off;
  for (size_t t = 0; t < tokens.size(); ++t)
    off.push_back(distance<double>(got.logits[t], expected.logits[t]));
  std::ranges::sort(off);
  const double median = off[off.size() / 2];
  fmt::print("{}: INT8 weights move a token's logits by {:.2f} % (median), {:.2f} % (90 %)\n", GetParam(),
             100 * median, 100 * off[off.size() * 9 / 10]);
  EXPECT_LT(median, 0.08);
  EXPECT_GT(median, 1e-5) << "the two forms are the same: nothing was quantised";
}

INSTANTIATE_TEST_SUITE_P(All, FamilyPack, testing::ValuesIn(fixtures::family_cases()),
                         [](const auto& parameter) { return parameter.param; });

// A page without a case would be a page that nothing holds against its family's numbers. Llama, Qwen2 and
// Qwen3 have theirs in tests/numbers/fixtures (engine's numbers_slow_test) and pack_test.
TEST(FamilyCases, EveryPageHasOne) {
  std::set<std::string> seen = {"llama", "qwen2", "qwen3"};
  for (const std::string& name : fixtures::family_cases()) {
    const auto checkpoint = fixtures::read_family_checkpoint(fixtures::family_folder(name));
    ASSERT_TRUE(checkpoint.has_value()) << checkpoint.error().message;
    const auto config = config_from_hugging_face(checkpoint->config_json, "");
    ASSERT_TRUE(config.has_value()) << name << ": " << config.error().message;
    seen.emplace(architecture_name(config->architecture));
  }
  for (const ArchitecturePage* page : architecture_pages())
    EXPECT_TRUE(seen.contains(std::string(page->model_type)))
        << page->model_type << " has no case in " << fixtures::family_folder("");
}

}  // namespace
}  // namespace millrace::model
