// Safetensors: one file, or a folder of shards. Memory-mapped, hostile-file safe: the header is bounded,
// every span is checked against the file, its tensor's shape and its neighbours before it is used. Format:
// u64 little-endian header length, a JSON header {name: {dtype, shape, data_offsets}}, then the data.
#pragma once
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/file.h"
#include "base/status.h"

namespace millrace::model {

enum class SafetensorsType { f32, f16, bf16, f8_e4m3, other };  // other: present, cannot be read as floats

struct SafetensorsTensor {
  std::string name;
  std::vector<int64_t> shape;  // the last dimension is contiguous
  SafetensorsType type = SafetensorsType::other;
  std::string dtype;  // as the file spells it
  std::span<const std::byte> data;
};

// Immutable; the tensors' bytes live as long as the object.
class SafetensorsFiles {
 public:
  // A folder's model.safetensors, or the shards that its model.safetensors.index.json names; a tensor that
  // the index places in another shard than holds it is an error.
  static Expected<std::shared_ptr<const SafetensorsFiles>> open_folder(const std::filesystem::path& folder);
  // One file's bytes, which outlive the object (tests, fuzzing).
  static Expected<std::shared_ptr<const SafetensorsFiles>> parse(std::span<const std::byte> bytes);
  virtual ~SafetensorsFiles() = default;

  virtual const std::vector<SafetensorsTensor>& tensors() const = 0;
  virtual const std::vector<MappedFile>& mappings() const = 0;  // none: parsed from bytes in memory
};

}  // namespace millrace::model
