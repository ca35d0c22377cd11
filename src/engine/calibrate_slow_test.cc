// What calibration is for, on the trained model of tests/models: a packing for one text is nearer to the
// float path on another than one for none, it is the same whatever the threads, and the plain packing is not
// touched.
#include <fmt/core.h>
#include <gtest/gtest.h>

#include <cmath>
#include <string>

#include "base/file.h"
#include "engine/calibrate.h"
#include "engine/eval.h"
#include "engine/internal/numbers_testing.h"
#include "model/fixtures/tiny_deepseek.h"

namespace millrace::engine {
namespace {

using model::PackType;

class CalibratedTinyDeepSeek : public testing::PackingTest {
 protected:
  void SetUp() override {
    PackingTest::SetUp();
    checkpoint = model::fixtures::tiny_deepseek_folder();
    text = read_file(checkpoint / "heldout.txt", testing::kMaxFixtureFile).value_or("");
    ASSERT_GT(text.size(), 200'000u);
  }
  std::shared_ptr<const model::PackedModel> pack_for(const std::shared_ptr<const model::PackedModel>& plain,
                                                     std::string_view calibration, int threads) const {
    const auto inputs =
        gather_inputs(plain, calibration, folder,
                      {.cpus = std::vector<int>(static_cast<size_t>(threads), -1), .progress = {}});
    EXPECT_TRUE(inputs.has_value()) << (inputs ? "" : inputs.error().message);
    const auto path = folder / fmt::format("calibrated-{}", threads);
    const auto packed = model::pack_checkpoint(
        checkpoint, path,
        {.type = PackType::int8, .threads = threads, .progress = {}, .calibration = inputs->get()});
    EXPECT_TRUE(packed.has_value()) << (packed ? "" : packed.error().message);
    return model::PackedModel::open(path, {.verify_checksums = true}).value();
  }
  std::string bytes_of(const std::string& name) const {
    return read_file(folder / name, size_t{1} << 28).value_or("");
  }

  std::filesystem::path checkpoint;
  std::string text;
};

TEST_F(CalibratedTinyDeepSeek, IsNearerToTheFloatPathOnAnotherText) {
  const auto plain = pack(checkpoint, PackType::int8), reference = pack(checkpoint, PackType::float32);
  ASSERT_TRUE(plain && reference);
  const std::string untouched = bytes_of("int8");
  // The documents of the second half; those of the first are judged by.
  const std::string_view calibration = std::string_view(text).substr(text.find('\n', text.size() / 2) + 1);
  const auto calibrated = pack_for(plain, calibration, 2);
  ASSERT_TRUE(calibrated);
  const EvalOptions options{.max_tokens = 8192, .cpus = {-1, -1}, .progress = {}};
  const auto without = evaluate(plain, reference, text, options).value(),
             with = evaluate(calibrated, reference, text, options).value();
  for (const auto& [name, cost] : {std::pair{"plain", &without}, {"calibrated", &with}})
    fmt::print(
        "{}: {} tokens, perplexity {:.3f} against {:.3f}, KL mean {:.6f}, median {:.6f}, top-1 {:.2f} %\n",
        name, cost->tokens, cost->perplexity, cost->reference_perplexity, cost->kl_mean, cost->kl_median,
        100 * cost->top1_agreement);
  // Where routers pick the same experts, which is nearly everywhere. The mean hangs on the few positions at
  // which they do not, and goes either way by some percent with how roundings fall.
  EXPECT_LT(with.kl_median, 0.9 * without.kl_median);
  EXPECT_LT(with.kl_mean, 1.05 * without.kl_mean);
  EXPECT_GT(with.top1_agreement, without.top1_agreement);
  EXPECT_LT(std::abs(with.perplexity / with.reference_perplexity - 1), 0.006);
  EXPECT_GT(with.top1_agreement, 0.97);

  ASSERT_TRUE(pack_for(plain, calibration, 1));
  EXPECT_TRUE(bytes_of("calibrated-1") == bytes_of("calibrated-2")) << "threads decide bytes";
  EXPECT_EQ(bytes_of("calibrated-1").size(), untouched.size());
  EXPECT_TRUE(bytes_of("calibrated-1") != untouched);
  pack(checkpoint, PackType::int8);
  EXPECT_TRUE(bytes_of("int8") == untouched);
}

}  // namespace
}  // namespace millrace::engine
