// GGUF v2 and v3: metadata, tensor directory and block formats. Little-endian, memory-mapped, hostile-file safe: every
// count, offset and size is checked against the file before it is used.
// Format as documented with ggml (docs/gguf.md).
#pragma once
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "base/file.h"
#include "base/status.h"

namespace millrace::model {

enum class GgmlType : uint32_t {
  f32 = 0, f16 = 1, q4_0 = 2, q4_1 = 3, q5_0 = 6, q5_1 = 7, q8_0 = 8, q4_k = 12, q5_k = 13, q6_k = 14, bf16 = 30,
};

struct GgufTensor {
  std::string name;
  std::vector<int64_t> shape;  // shape[0] is the contiguous (input) dimension
  GgmlType type = GgmlType::f32;
  std::span<const std::byte> data;
};

// Metadata values as they stand in the file; arrays of strings are views into the mapping.
class GgufFile {
 public:
  static Expected<std::shared_ptr<const GgufFile>> open(const std::filesystem::path& path);
  // Over bytes that outlive the object (tests, fuzzing).
  static Expected<std::shared_ptr<const GgufFile>> parse(std::span<const std::byte> bytes);
  virtual ~GgufFile() = default;

  virtual std::optional<std::string_view> text(std::string_view key) const = 0;
  virtual std::optional<int64_t> integer(std::string_view key) const = 0;  // any integer type or bool
  virtual std::optional<double> number(std::string_view key) const = 0;    // any numeric type
  virtual std::optional<bool> boolean(std::string_view key) const = 0;
  virtual std::optional<std::vector<std::string_view>> texts(std::string_view key) const = 0;
  virtual std::optional<std::vector<int64_t>> integers(std::string_view key) const = 0;
  virtual std::optional<std::vector<float>> numbers(std::string_view key) const = 0;
  virtual const std::vector<GgufTensor>& tensors() const = 0;
  virtual const GgufTensor* tensor(std::string_view name) const = 0;
  virtual const MappedFile* mapping() const { return nullptr; }  // none: parsed from bytes in memory
};

// `count` values starting at element `first` of a tensor's flat order, as floats. first and count are multiples of the
// type's block (32 or 256; 1 for f32, f16, bf16).
void gguf_dequantize(GgmlType type, const std::byte* data, int64_t first, int64_t count, float* out);
int64_t ggml_block_elements(GgmlType type);
int64_t ggml_block_bytes(GgmlType type);

}  // namespace millrace::model
