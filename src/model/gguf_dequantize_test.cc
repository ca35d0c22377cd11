// Every block format against values from the `gguf` Python package (tests/fixtures/gguf/make_blocks.py), bit
// for bit.
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <string>

#include "base/file.h"
#include "base/thread_team.h"
#include "model/gguf.h"
#include "model/internal/float_formats.h"

namespace millrace::model {
namespace {

struct Case {
  GgmlType type;
  std::string raw;
  std::vector<float> values;
};

std::vector<Case> read_cases() {
  const auto file = read_file("tests/fixtures/gguf/blocks.bin", 1 << 20);
  EXPECT_TRUE(file.has_value()) << (file ? "" : file.error().message);
  std::vector<Case> cases;
  for (size_t at = 0; file && at < file->size();) {
    uint32_t header[3];
    std::memcpy(header, file->data() + at, sizeof header);
    at += sizeof header;
    Case c{static_cast<GgmlType>(header[0]), file->substr(at, header[2]), std::vector<float>(header[1])};
    at += header[2];
    std::memcpy(c.values.data(), file->data() + at, c.values.size() * sizeof(float));
    at += c.values.size() * sizeof(float);
    cases.push_back(std::move(c));
  }
  return cases;
}

const std::byte* bytes_of(const Case& c) { return reinterpret_cast<const std::byte*>(c.raw.data()); }

TEST(GgufDequantize, EqualsTheReferenceBitForBit) {
  const auto cases = read_cases();
  ASSERT_EQ(cases.size(), 11u);
  for (const Case& c : cases) {
    const auto count = static_cast<int64_t>(c.values.size());
    ASSERT_EQ(count / ggml_block_elements(c.type) * ggml_block_bytes(c.type),
              static_cast<int64_t>(c.raw.size()));
    std::vector<float> got(c.values.size());
    gguf_dequantize(c.type, bytes_of(c), 0, count, got.data());
    for (size_t i = 0; i < got.size(); ++i)
      EXPECT_EQ(std::bit_cast<uint32_t>(got[i]), std::bit_cast<uint32_t>(c.values[i]))
          << "type " << static_cast<int>(c.type) << " element " << i << ": " << got[i] << " for "
          << c.values[i];
  }
}

TEST(GgufDequantize, StartsAtAnyBlock) {
  for (const Case& c : read_cases()) {
    const int64_t block = ggml_block_elements(c.type);
    std::vector<float> got(static_cast<size_t>(block));
    gguf_dequantize(c.type, bytes_of(c), 2 * block, block, got.data());
    for (int64_t i = 0; i < block; ++i)
      EXPECT_EQ(got[static_cast<size_t>(i)], c.values[static_cast<size_t>(2 * block + i)]);
  }
}

TEST(GgufDequantize, HalfSubnormalsSurviveFlushedDenormals) {
  const FlushDenormals flush;
  EXPECT_EQ(float_of_f16(0x0001), 0x1p-24f);
  EXPECT_EQ(float_of_f16(0x83FF), -0x3FFp-24f);
}

TEST(FloatFormats, Bf16RoundsToNearestEven) {
  EXPECT_EQ(bf16_of_float(1.0f), 0x3F80);
  EXPECT_EQ(bf16_of_float(std::bit_cast<float>(0x3F808000u)), 0x3F80);  // a tie goes to the even one
  EXPECT_EQ(bf16_of_float(std::bit_cast<float>(0x3F818000u)), 0x3F82);
  EXPECT_EQ(bf16_of_float(std::bit_cast<float>(0x3F808001u)), 0x3F81);
  EXPECT_EQ(bf16_of_float(INFINITY), 0x7F80);
  EXPECT_EQ(bf16_of_float(-INFINITY), 0xFF80);
  EXPECT_TRUE(std::isnan(float_of_bf16(bf16_of_float(std::bit_cast<float>(0x7F800001u)))));
}

}  // namespace
}  // namespace millrace::model
