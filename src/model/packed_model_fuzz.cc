// Hostile packed files. Input that starts with '{' replaces the directory of a whole tiny file, with all
// checksums made right again, so that the fuzzer gets past them; other input is a file as it stands. Whatever
// opens is read at the first and last byte of every weight.
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>

#include "base/file.h"
#include "base/hash.h"
#include "model/fixtures/tiny_checkpoint.h"
#include "model/internal/packed_layout.h"
#include "model/packed_model.h"

namespace millrace::model {
namespace {

std::string whole_file() {
  ModelConfig config = fixtures::tiny_config(Architecture::qwen2);
  config.layers = 1;
  const auto folder =
      std::filesystem::temp_directory_path() / ("millrace_packed_fuzz_" + std::to_string(::getpid()));
  std::string bytes;
  if (fixtures::write_hugging_face(fixtures::tiny_checkpoint(config, 1), folder) &&
      pack_checkpoint(folder, folder / "packed", {}))
    bytes = read_file(folder / "packed", 1 << 26).value_or("");
  std::filesystem::remove_all(folder);
  if (bytes.empty()) __builtin_trap();
  return bytes;
}

std::string with_directory(std::string_view directory) {
  static const std::string whole = whole_file();
  PackedHeader header;
  std::memcpy(&header, whole.data(), sizeof header);
  std::string bytes = whole.substr(0, header.directory_offset).append(directory);
  header.file_bytes = bytes.size();
  header.directory_bytes = directory.size();
  header.directory_xxh3 = hash64(directory);
  std::memcpy(bytes.data(), &header, sizeof header);
  header.header_xxh3 = hash64(std::string_view(bytes).substr(0, offsetof(PackedHeader, header_xxh3)));
  std::memcpy(bytes.data(), &header, sizeof header);
  return bytes;
}

volatile unsigned touched = 0;
void touch(const void* begin, size_t size) {
  if (begin == nullptr || size == 0) return;
  const auto* bytes = static_cast<const unsigned char*>(begin);
  touched = touched + bytes[0] + bytes[size - 1];
}
void touch(const Linear& l) {
  const auto n = static_cast<size_t>(l.n), k = static_cast<size_t>(l.k);
  touch(l.f32, n * k * sizeof(float));
  touch(l.bias, n * sizeof(float));
  if (l.s8.tiles == nullptr) return;
  touch(l.s8.tiles, kernels::weights_s8_tile_bytes(l.n, l.k));
  touch(l.s8.scale, static_cast<size_t>(kernels::padded_n(l.n)) * sizeof(float));
  touch(l.s8.sum, static_cast<size_t>(kernels::padded_n(l.n)) * sizeof(int32_t));
}
struct Toucher {
  const ModelConfig& config;
  void gain(const float* g, int width) const { touch(g, static_cast<size_t>(width) * sizeof(float)); }
  void operator()(const EmbedModule& m) const {
    const auto count = static_cast<size_t>(m.vocab) * static_cast<size_t>(m.width);
    touch(m.bf16, count * sizeof(uint16_t));
    touch(m.f32, count * sizeof(float));
  }
  void operator()(const AttentionModule& m) const {
    gain(m.norm_gain, config.hidden_size);
    gain(m.q_norm_gain, config.head_dim);
    gain(m.k_norm_gain, config.head_dim);
    touch(m.qkv);
    touch(m.o);
  }
  void operator()(const FfnModule& m) const {
    gain(m.norm_gain, config.hidden_size);
    touch(m.gate_up);
    touch(m.down);
  }
  void operator()(const HeadModule& m) const {
    gain(m.norm_gain, config.hidden_size);
    touch(m.head);
  }
};

}  // namespace
}  // namespace millrace::model

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace millrace::model;
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const std::string bytes = input.starts_with('{') ? with_directory(input) : std::string(input);
  // Aligned and exactly as long as the file, so that AddressSanitizer sees a read past its end.
  void* copy = nullptr;
  if (::posix_memalign(&copy, 4096, std::max<size_t>(bytes.size(), 1)) != 0) return 0;
  std::memcpy(copy, bytes.data(), bytes.size());
  for (const bool verify : {false, true}) {
    const auto model =
        PackedModel::parse({static_cast<const std::byte*>(copy), bytes.size()}, {.verify_checksums = verify});
    if (!model) continue;
    for (const Module& module : (*model)->graph().modules) std::visit(Toucher{(*model)->config()}, module);
  }
  std::free(copy);
  return 0;
}
