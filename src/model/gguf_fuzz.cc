// Hostile GGUF: whatever parses must be safe to read to its last byte, as metadata, as tensors, as a config,
// as a tokenizer and as a checkpoint.
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "model/fixtures/exercise_tokenizer.h"
#include "model/gguf.h"
#include "model/internal/architecture.h"
#include "model/internal/checkpoint.h"

namespace millrace::model {
namespace {

// All that packing reads, as it does: first and last row of each part, in the order of our heads.
struct Reader {
  const Checkpoint& checkpoint;

  // check(plan) has found it all.
  template <class T>
  static T found(Expected<T> result) {
    if (!result) __builtin_trap();
    return *result;
  }
  void embed(const PlannedEmbed& m) const {
    const SourceTensor& tensor = *found(checkpoint.find(m.tensor, m.vocab, m.width));
    std::vector<float> row(static_cast<size_t>(m.width));
    (void)read_rows(tensor, 0, 1, row.data());
    (void)read_rows(tensor, m.vocab - 1, m.vocab, row.data());
  }
  void gain(const PlannedGain& g) const { (void)read_vector(*found(checkpoint.find(g.tensor, 1, g.width))); }
  void linear(const PlannedLinear& l) const {
    for (const PlannedPart& part : l.parts) {
      (void)found(checkpoint.find_part(part, l.k));
      std::vector<float> row(static_cast<size_t>(l.k));
      (void)read_part(checkpoint, part, l.k, 0, 1, row.data());
      (void)read_part(checkpoint, part, l.k, part.rows - 1, part.rows, row.data());
      if (l.bias) (void)read_part_bias(checkpoint, part);
    }
  }
  void experts(const PlannedLinear& l, int count) const {
    linear(l.of_expert(0));
    linear(l.of_expert(count - 1));
  }
  void head(const PlannedHead& m) const { linear(m.head); }
};

}  // namespace
}  // namespace millrace::model

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
  if (auto spec = tokenizer_from_gguf(**file))
    fixtures::exercise_tokenizer(std::move(*spec), "Hello, w\xC3\xB6rld 123 <s> \xE4\xBD\xA0\n");
  const auto checkpoint = checkpoint_from_gguf(*file);
  if (!checkpoint) return 0;
  for (const double frequency : checkpoint->config.rope.inverse_frequencies(checkpoint->config.head_dim))
    if (!std::isfinite(frequency) || frequency < 0) __builtin_trap();
  const Plan plan = architecture_page(checkpoint->config.architecture).plan(checkpoint->config);
  if (!checkpoint->check(plan)) return 0;
  for (const auto& [name, tensor] : checkpoint->tensors) {
    std::vector<float> row(static_cast<size_t>(tensor.columns));
    (void)read_rows(tensor, tensor.rows - 1, tensor.rows, row.data());
    (void)read_vector(tensor);
  }
  Reader reader{*checkpoint};
  each_weight(plan, reader);
  return 0;
}
