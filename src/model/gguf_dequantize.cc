// The block formats of ggml as floats. Each value is computed with the float operations of ggml's own
// reference, in its order, so results are equal bit for bit (tests/fixtures made with the `gguf` Python
// package).
#include <algorithm>
#include <utility>

#include "base/status.h"
#include "model/gguf.h"
#include "model/internal/float_formats.h"

namespace millrace::model {
namespace {

float half_at(const std::byte* at) { return float_of_f16(load_le<uint16_t>(at)); }
int byte_at(const std::byte* at, int index) { return std::to_integer<int>(at[index]); }

// The 4-bit value of element j of a block of 32: low nibbles hold elements 0..15, high nibbles 16..31.
int nibble32(const std::byte* qs, int j) { return j < 16 ? byte_at(qs, j) & 15 : byte_at(qs, j - 16) >> 4; }

void q4_0(const std::byte* block, float* out) {
  const float d = half_at(block);
  for (int j = 0; j < 32; ++j) out[j] = d * static_cast<float>(nibble32(block + 2, j) - 8);
}

void q4_1(const std::byte* block, float* out) {
  const float d = half_at(block), m = half_at(block + 2);
  for (int j = 0; j < 32; ++j) out[j] = d * static_cast<float>(nibble32(block + 4, j)) + m;
}

int five_bits(const std::byte* qs, uint32_t high, int j) {
  return nibble32(qs, j) | static_cast<int>(high >> j & 1u) << 4;
}

void q5_0(const std::byte* block, float* out) {
  const float d = half_at(block);
  const auto high = load_le<uint32_t>(block + 2);
  for (int j = 0; j < 32; ++j) out[j] = d * static_cast<float>(five_bits(block + 6, high, j) - 16);
}

void q5_1(const std::byte* block, float* out) {
  const float d = half_at(block), m = half_at(block + 2);
  const auto high = load_le<uint32_t>(block + 4);
  for (int j = 0; j < 32; ++j) out[j] = d * static_cast<float>(five_bits(block + 8, high, j)) + m;
}

void q8_0(const std::byte* block, float* out) {
  const float d = half_at(block);
  for (int j = 0; j < 32; ++j) out[j] = d * static_cast<float>(load_le<int8_t>(block + 2 + j));
}

// Scale and minimum of sub-block i = 0..7 out of the 12 bytes that hold both in 6 bits each.
std::pair<int, int> scale_and_min(const std::byte* scales, int i) {
  if (i < 4) return {byte_at(scales, i) & 63, byte_at(scales, i + 4) & 63};
  return {(byte_at(scales, i + 4) & 15) | (byte_at(scales, i - 4) >> 6) << 4,
          byte_at(scales, i + 4) >> 4 | (byte_at(scales, i) >> 6) << 4};
}

// Q4_K, and Q5_K with `high` (32 bytes, bit i for sub-block i): eight sub-blocks of 32.
void k_block_with_minima(const std::byte* block, const std::byte* high, const std::byte* qs, float* out) {
  const float d = half_at(block), d_min = half_at(block + 2);
  for (int i = 0; i < 8; ++i) {
    const auto [scale, minimum] = scale_and_min(block + 4, i);
    const float step = d * static_cast<float>(scale), offset = d_min * static_cast<float>(minimum);
    for (int l = 0; l < 32; ++l) {
      int q = byte_at(qs, 32 * (i / 2) + l) >> (i % 2 == 0 ? 0 : 4) & 15;
      if (high != nullptr) q |= (byte_at(high, l) >> i & 1) << 4;
      out[32 * i + l] = step * static_cast<float>(q) - offset;
    }
  }
}

void q4_k(const std::byte* block, float* out) { k_block_with_minima(block, nullptr, block + 16, out); }
void q5_k(const std::byte* block, float* out) { k_block_with_minima(block, block + 16, block + 48, out); }

void q6_k(const std::byte* block, float* out) {
  const std::byte *low = block, *high = block + 128, *scales = block + 192;
  const float d = half_at(block + 208);
  for (int e = 0; e < 256; ++e) {
    const int half = e / 128, quarter = e % 128 / 32, l = e % 32;
    const int four = byte_at(low, 64 * half + 32 * (quarter % 2) + l) >> (quarter < 2 ? 0 : 4) & 15;
    const int two = byte_at(high, 32 * half + l) >> (2 * quarter) & 3;
    const float step = d * static_cast<float>(load_le<int8_t>(scales + e / 16));
    out[e] = step * static_cast<float>((four | two << 4) - 32);
  }
}

using BlockFn = void(const std::byte* block, float* out);

template <BlockFn& decode>
void each_block(GgmlType type, const std::byte* data, int64_t first, int64_t count, float* out) {
  const int64_t elements = ggml_block_elements(type), bytes = ggml_block_bytes(type);
  for (int64_t b = 0; b < count / elements; ++b)
    decode(data + (first / elements + b) * bytes, out + b * elements);
}

}  // namespace

void gguf_dequantize(GgmlType type, const std::byte* data, int64_t first, int64_t count, float* out) {
  MR_CHECK(ggml_block_elements(type) > 0, "not a tensor type");
  MR_CHECK(first % ggml_block_elements(type) == 0 && count % ggml_block_elements(type) == 0,
           "dequantising part of a block");
  switch (type) {
    case GgmlType::f32:
      std::copy_n(data + first * 4, count * 4, reinterpret_cast<std::byte*>(out));
      return;
    case GgmlType::f16:
      for (int64_t i = 0; i < count; ++i) out[i] = half_at(data + (first + i) * 2);
      return;
    case GgmlType::bf16:
      for (int64_t i = 0; i < count; ++i) out[i] = float_of_bf16(load_le<uint16_t>(data + (first + i) * 2));
      return;
    case GgmlType::q4_0:
      return each_block<q4_0>(type, data, first, count, out);
    case GgmlType::q4_1:
      return each_block<q4_1>(type, data, first, count, out);
    case GgmlType::q5_0:
      return each_block<q5_0>(type, data, first, count, out);
    case GgmlType::q5_1:
      return each_block<q5_1>(type, data, first, count, out);
    case GgmlType::q8_0:
      return each_block<q8_0>(type, data, first, count, out);
    case GgmlType::q4_k:
      return each_block<q4_k>(type, data, first, count, out);
    case GgmlType::q5_k:
      return each_block<q5_k>(type, data, first, count, out);
    case GgmlType::q6_k:
      return each_block<q6_k>(type, data, first, count, out);
  }
}

}  // namespace millrace::model
