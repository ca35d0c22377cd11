// Hostile GGUF: whatever parses must be safe to read to its last byte, as metadata, as tensors, as a config,
// as a tokenizer and as a checkpoint.
#include <cstddef>
#include <cstdint>
#include <vector>

#include "model/gguf.h"
#include "model/internal/architecture.h"
#include "model/internal/checkpoint.h"
#include "model/tokenizer.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace millrace::model;
  const auto file = GgufFile::parse({reinterpret_cast<const std::byte*>(data), size});
  if (!file) return 0;
  for (const GgufTensor& tensor : (*file)->tensors()) {
    const int64_t elements = ggml_block_elements(tensor.type);
    const int64_t blocks = static_cast<int64_t>(tensor.data.size()) / ggml_block_bytes(tensor.type);
    std::vector<float> block(static_cast<size_t>(elements));
    gguf_dequantize(tensor.type, tensor.data.data(), 0, elements, block.data());
    gguf_dequantize(tensor.type, tensor.data.data(), (blocks - 1) * elements, elements, block.data());
    if ((*file)->tensor(tensor.name) == nullptr) __builtin_trap();
  }
  for (const auto* key : {"general.architecture", "tokenizer.ggml.tokens", "tokenizer.ggml.scores",
                          "tokenizer.ggml.token_type"}) {
    (void)(*file)->text(key);
    (void)(*file)->texts(key);
    (void)(*file)->integer(key);
    (void)(*file)->integers(key);
    (void)(*file)->number(key);
    (void)(*file)->numbers(key);
    (void)(*file)->boolean(key);
  }
  (void)tokenizer_from_gguf(**file);
  const auto checkpoint = checkpoint_from_gguf(*file);
  if (!checkpoint) return 0;
  const Plan plan = architecture_page(checkpoint->config.architecture).plan(checkpoint->config);
  if (!checkpoint->check(plan)) return 0;
  for (const auto& [name, tensor] : checkpoint->tensors) {
    std::vector<float> row(static_cast<size_t>(tensor.columns));
    (void)read_rows(tensor, tensor.rows - 1, tensor.rows, 0, row.data());
    (void)read_vector(tensor, 0);
  }
  return 0;
}
