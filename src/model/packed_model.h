// The packed file: one checkpoint, turned once into what a process maps and runs. Weights are rotated (Hadamard, design
// section 5), quantised and laid out in tiles; config, tokenizer and chat template travel inside, so nothing else is
// read at start. Read-only and shared: N processes hold one copy. The float32 form of the same file is the checking path.
//
// File: 4096-byte header (magic "MRPACK01", version, sizes, checksums), a JSON directory (config, sections with offset,
// size, XXH3), then sections aligned to 4096 bytes. Written to a temporary name, fsynced and renamed: a file under its
// final name is whole. A changed layout raises the version, and an old file is packed again, not misread.
#pragma once
#include <filesystem>
#include <functional>
#include <memory>
#include <string>

#include "base/status.h"
#include "model/config.h"
#include "model/graph.h"
#include "model/tokenizer.h"

namespace millrace::model {

enum class PackType { int8, float32 };

using Progress = std::function<void(double fraction, std::string_view what)>;  // called often; may be empty

struct PackOptions {
  PackType type = PackType::int8;
  int threads = 1;
  Progress progress;
};

// Reads a checkpoint (a .gguf file, or a Hugging Face folder) and writes the packed file. Resident memory stays within
// one layer's float weights plus a constant.
Expected<void> pack_checkpoint(const std::filesystem::path& checkpoint, const std::filesystem::path& packed,
                               const PackOptions& options);

// A name for the packed form of this checkpoint that changes when the checkpoint, the type or the layout changes:
// "<stem>-<16 hex digits>.<type>.mrpack". Reads metadata (size, mtime, header bytes), not the weights.
Expected<std::string> packed_file_name(const std::filesystem::path& checkpoint, PackType type);

class PackedModel {
 public:
  struct OpenOptions {
    bool verify_checksums = false;  // reads the whole file; the header and directory are always verified
  };
  static Expected<std::shared_ptr<const PackedModel>> open(const std::filesystem::path& path,
                                                           const OpenOptions& options);
  static Expected<std::shared_ptr<const PackedModel>> open(const std::filesystem::path& path) {
    return open(path, OpenOptions{});
  }
  virtual ~PackedModel() = default;

  virtual const ModelConfig& config() const = 0;
  virtual PackType type() const = 0;
  virtual const Graph& graph() const = 0;
  virtual const TokenizerSpec& tokenizer_spec() const = 0;
  virtual const std::string& chat_template() const = 0;  // Jinja source; empty if the checkpoint has none
  virtual size_t size_bytes() const = 0;
  virtual uint64_t fingerprint() const = 0;  // of the directory: equal iff the same weights and layout
  virtual void advise_will_need() const = 0;
};

}  // namespace millrace::model
