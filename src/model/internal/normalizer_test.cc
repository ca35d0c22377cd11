#include "model/internal/normalizer.h"

#include <gtest/gtest.h>

#include <chrono>

namespace millrace::model::internal {
namespace {

// Expected values are what tokenizers.normalizers.NFC gives.
TEST(Normalizer, ComposesAsThePackageDoes) {
  EXPECT_EQ(to_nfc("cafe\xCC\x81"), "caf\xC3\xA9");
  EXPECT_EQ(to_nfc("a\xCC\x81\xCC\xA3"), "\xE1\xBA\xA1\xCC\x81");             // marks sorted, then composed
  EXPECT_EQ(to_nfc("\xE1\x84\x80\xE1\x85\xA1\xE1\x86\xA8"), "\xEA\xB0\x81");  // Hangul from its letters
  EXPECT_EQ(to_nfc("\xE2\x84\xAB"), "\xC3\x85");                              // the Angstrom sign
  EXPECT_EQ(to_nfc("\xE0\xA5\x98"), "\xE0\xA4\x95\xE0\xA4\xBC");              // a composition exclusion
  EXPECT_EQ(to_nfc("x\xCC\x81y"), "x\xCC\x81y");
  // U+0898 is a mark in Unicode 14 but not yet to the package: nothing moves across it.
  EXPECT_EQ(to_nfc("q\xE0\xA2\x98\xCC\xB4"), "q\xE0\xA2\x98\xCC\xB4");
}

TEST(Normalizer, QuickCheckSaysYesOnlyWhereNothingChanges) {
  EXPECT_TRUE(is_nfc_quick("plain text, \xC3\xA9 \xE4\xBD\xA0 \xEA\xB0\x81 \xF0\x9F\x98\x80"));
  EXPECT_FALSE(is_nfc_quick("e\xCC\x81"));
  EXPECT_FALSE(is_nfc_quick("\xE1\x85\xA1"));
  EXPECT_FALSE(is_nfc_quick("\xE2\x84\xAB"));
}

TEST(Normalizer, StepsRunInOrderAndLeaveUnchangedTextAlone) {
  const NormalizerStep steps[] = {{.kind = NormalizerStep::Kind::prepend, .content = "_"},
                                  {.kind = NormalizerStep::Kind::replace, .pattern = " ", .content = "_"}};
  std::string storage;
  EXPECT_EQ(*normalize(steps, "a b", storage), "_a_b");
  EXPECT_EQ(*normalize(steps, "", storage), "");
  const NormalizerStep nfc[] = {{.kind = NormalizerStep::Kind::nfc}};
  const std::string_view text = "same";
  EXPECT_EQ(normalize(nfc, text, storage)->data(), text.data());
}

TEST(Normalizer, GrowthIsBounded) {
  const std::string big(1000, 'b');
  std::vector<NormalizerStep> steps(3,
                                    {.kind = NormalizerStep::Kind::replace, .pattern = "b", .content = big});
  std::string storage;
  const auto result = normalize(steps, "bbbb", storage);
  ASSERT_FALSE(result);
  EXPECT_EQ(result.error().code, Code::resource_exhausted);
}

}  // namespace
}  // namespace millrace::model::internal
