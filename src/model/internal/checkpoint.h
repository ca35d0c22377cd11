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
#include "model/safetensors.h"
#include "model/tokenizer.h"

namespace millrace::model {

struct SourceTensor {  // a vector is one row
  std::string name;
  int64_t rows = 0, columns = 0;
  GgmlType type = GgmlType::f32;  // safetensors' F32, F16 and BF16 have the same layout as GGUF's
  std::span<const std::byte> data;
  bool readable = true;  // false: a dtype that cannot be read as floats
  std::string shape;     // for errors, as the file spells it
};

struct Checkpoint {
  bool is_gguf = false;
  ModelConfig config;
  TokenizerSpec tokenizer;
  std::string chat_template;
  std::unordered_map<std::string, SourceTensor> tensors;
  std::shared_ptr<const GgufFile> gguf;  // whichever holds the mapping
  std::shared_ptr<const SafetensorsFiles> safetensors;

  const std::string& spelling(const TensorName& name) const {
    return is_gguf ? name.gguf : name.hugging_face;
  }

  // The tensor, checked to be rows x columns; the error says what was expected and what the file has.
  Expected<const SourceTensor*> find(const TensorName& name, int64_t rows, int64_t columns) const;

  // Every tensor that the plan needs is there in the right shape, and nothing else that could change the
  // result is.
  Expected<void> check(const Plan& plan) const;
};

// `path`: a .gguf file, or a folder with config.json and safetensors.
Expected<Checkpoint> open_checkpoint(const std::filesystem::path& path);
// Parts of the above, for tests that bring their bytes: everything but the tokenizer.
Expected<Checkpoint> checkpoint_from_gguf(std::shared_ptr<const GgufFile> file);

// Rows [begin, end) as floats, contiguous. Non-finite values are refused with their place.
// `permuted_heads` > 0: the file keeps each head's rows pair by pair (row 2i + j of a head of D rows is our
// row j * D/2 + i), as GGUF does for Llama's q and k; rows come back in our order, halves first and second.
Expected<void> read_rows(const SourceTensor& tensor, int64_t begin, int64_t end, int permuted_heads,
                         float* out);
// A vector of `count` floats; `permuted_heads` as above, each element being a row.
Expected<std::vector<float>> read_vector(const SourceTensor& tensor, int permuted_heads);

// Lets the kernel drop the pages of rows that have been read, so that reading a checkpoint does not fill
// memory.
void release_rows(const SourceTensor& tensor, int64_t begin, int64_t end);

}  // namespace millrace::model
