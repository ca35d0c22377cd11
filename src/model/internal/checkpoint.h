// A checkpoint of either kind behind one face: its config, tokenizer, chat template, and its tensors as rows
// of floats. Private to the room. Immutable after open; read_rows may run on several threads.
#pragma once
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/status.h"
#include "model/config.h"
#include "model/gguf.h"
#include "model/internal/architecture.h"
#include "model/internal/source_file.h"
#include "model/safetensors.h"
#include "model/tokenizer.h"

namespace millrace::model {

inline constexpr int64_t kFp8Block = 128;  // FP8 weights have one factor a block of 128 x 128

struct SourceTensor {  // a vector is one row
  std::string name;
  int64_t rows = 0, columns = 0;
  bool stacked = false;  // of matrices: more than two dimensions that are not 1 (the rows of all are counted)
  GgmlType type = GgmlType::f32;  // safetensors' F32, F16 and BF16 have the same layout as GGUF's
  SourceBytes data;
  bool readable = true;    // false: a dtype that cannot be read as floats
  bool read_once = false;  // of a checkpoint that would fill memory: what was read leaves the page cache
  // FP8 (e4m3) in place of `type`: each value times the factor of its block of 128 x 128, [ceil(rows / 128)]
  // [ceil(columns / 128)] of F32 or BF16, which may lie in another shard.
  bool fp8 = false;
  GgmlType factor_type = GgmlType::f32;
  SourceBytes factors;
  std::string shape;  // for errors, as the file spells it
};

struct Checkpoint {
  bool is_gguf = false;
  ModelConfig config;
  TokenizerSpec tokenizer;
  std::string chat_template;
  std::unordered_map<std::string, SourceTensor> tensors;
  std::shared_ptr<const GgufFile> gguf;  // whichever holds the mapping
  std::shared_ptr<const SafetensorsFiles> safetensors;
  std::vector<std::shared_ptr<const SourceFile>> files;  // that hold the tensors; none: they are in memory

  const std::string& spelling(const TensorName& name) const {
    return is_gguf ? name.gguf : name.hugging_face;
  }

  // The tensor, checked to be rows x columns ([slabs][rows / slabs][columns] if slabs > 0); the error says
  // what was expected and what the file has.
  Expected<const SourceTensor*> find(const TensorName& name, int64_t rows, int64_t columns,
                                     int64_t slabs = 0) const;
  // The tensor of the part's first view that is there, k columns wide in the part's terms. Checked as find()
  // does.
  struct Found {
    const SourceTensor* tensor;
    const TensorView* view;
  };
  Expected<Found> find_part(const PlannedPart& part, int k) const;

  // Some checkpoints repeat the model's embedding and head in each MTP layer, which shares them.
  struct Copy {
    const SourceTensor *tensor, *original;
  };
  // Every tensor that the plan needs is there in the right shape, and nothing else that could change the
  // result is. Reads no weights: copies are returned, as large as their originals, whose bytes have yet to be
  // compared (check_copy).
  Expected<std::vector<Copy>> check(const Plan& plan) const;
};

// `path`: a .gguf file, or a folder with config.json and safetensors.
Expected<Checkpoint> open_checkpoint(const std::filesystem::path& path);
// Parts of the above, for tests that bring their bytes: everything but the tokenizer.
Expected<Checkpoint> checkpoint_from_gguf(std::shared_ptr<const GgufFile> file);

// Rows [begin, end) as floats, contiguous. Non-finite values are refused with their place. This and what
// follows hold a quarter of a MiB of the file at a time.
Expected<void> read_rows(const SourceTensor& tensor, int64_t begin, int64_t end, float* out);
// A vector's floats.
Expected<std::vector<float>> read_vector(const SourceTensor& tensor);

// Rows [begin, end) of a part, k wide, in our order.
Expected<void> read_part(const Checkpoint& checkpoint, const PlannedPart& part, int k, int64_t begin,
                         int64_t end, float* out);
Expected<std::vector<float>> read_part_bias(const Checkpoint& checkpoint, const PlannedPart& part);

// Bytes [begin, end) of a copy are those of its original; where they begin at 0, FP8 factors are too.
Expected<void> check_copy(const Checkpoint::Copy& copy, uint64_t begin, uint64_t end);

}  // namespace millrace::model
