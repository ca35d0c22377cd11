// The packed file: one checkpoint, turned once into what a process maps and runs. Weights are rotated (Hadamard, design
// section 5), quantised and laid out in tiles; config, tokenizer and chat template travel inside, so nothing else is
// read at start. Read-only and shared: N processes hold one copy. The float32 form of the same file is the checking path.
//
// File: 4096-byte header (magic "MRPACK01", version, sizes, checksums), sections aligned to 4096 bytes, and at the end a
// JSON directory (config, sections with offset, size, XXH3). Written under another name, fsynced and renamed: a file under
// its final name is whole. A changed layout raises the version, and an old file is packed again, not misread.
#pragma once
#include <filesystem>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/status.h"
#include "model/calibration.h"
#include "model/config.h"
#include "model/graph.h"
#include "model/tokenizer.h"

namespace millrace::model {

enum class PackType { int8, float32 };

struct PackProgress {
  enum class Stage { waiting, checking, packing };  // for another process; what an earlier run left; the work
  Stage stage = Stage::checking;
  uint64_t bytes_done = 0, bytes_total = 0;  // of the packed file, and of copies that are only compared
  uint64_t bytes_found = 0;                  // of bytes_done: an earlier run's, so that a rate can leave them out
  int tensors_done = 0, tensors_total = 0;   // of the packed file
  std::string_view what;                     // the tensor at work
  double fraction() const;
};
// Called often, by one thread at a time but not always the same one; may be empty.
using Progress = std::function<void(const PackProgress&)>;

struct PackOptions {
  PackType type = PackType::int8;
  int threads = 1;
  Progress progress;
  // INT8: what a text showed of the inputs of linears, whose weights are then rounded for it
  // (docs/decisions/0008-calibrated-rounding.md). Null, or outlives the call.
  const CalibrationInputs* calibration = nullptr;
};

// Reads a checkpoint (a .gguf file, or a Hugging Face folder) and writes the packed file. Streams: whatever the
// checkpoint's size, the process holds at most 2 GiB (mapped pages included). A thread's job is some 16 MiB of float
// weights, or one rotated block of rows where that is more (64 MiB at 2,048 x 8,192); there are fewer threads where
// `threads` times that would be too much. Tensors that are missing, too many or of the wrong shape are refused by name
// before any work, ones that are not finite when they are read. So is a `packed` that is a folder or a file of the
// checkpoint.
//
// Until it is whole the file is <packed>.partial, with <packed>.journal beside it. After a kill, a full disk or a crash
// of the machine the next call with the same checkpoint and type continues there, having compared checksums, and the
// result is byte for byte that of an undisturbed run; another checkpoint starts anew. Two processes that pack the same
// file both succeed: the second waits for the first.
Expected<void> pack_checkpoint(const std::filesystem::path& checkpoint, const std::filesystem::path& packed,
                               const PackOptions& options);

// What a checkpoint says of its model and of text, as its packed file will: of its weights only names and shapes are read.
struct CheckpointFacts {
  ModelConfig config;
  TokenizerSpec tokenizer;
};
Expected<CheckpointFacts> checkpoint_facts(const std::filesystem::path& checkpoint);

// Removes what a killed pack_checkpoint() left beside `packed`, unless one is at work there.
void remove_unfinished_pack(const std::filesystem::path& packed);

// A name for the packed form of this checkpoint that changes when the checkpoint, the type or the layout changes:
// "<stem>-<16 hex digits>.<type>.mrpack". Reads metadata (size, mtime, header bytes), not the weights.
Expected<std::string> packed_file_name(const std::filesystem::path& checkpoint, PackType type);

// What its name becomes with a calibration: "<stem>-<16 hex digits>.int8.calibrated<version>-<16 hex digits>.mrpack".
std::string calibrated_file_name(std::string_view packed_file_name, uint64_t digest);
// The calibrated forms beside a packed file (which need not be there): usable ones, the newest first, then those that a
// killed pack_checkpoint() has begun or another kCalibrationVersion has made.
struct CalibratedFile {
  std::filesystem::path path;
  bool usable = false;
};
std::vector<CalibratedFile> calibrated_files(const std::filesystem::path& packed);

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
  // Over bytes that outlive the object, 64-byte aligned (tests, fuzzing).
  static Expected<std::shared_ptr<const PackedModel>> parse(std::span<const std::byte> bytes, const OpenOptions& options);
  virtual ~PackedModel() = default;

  virtual const ModelConfig& config() const = 0;
  virtual PackType type() const = 0;
  virtual const Graph& graph() const = 0;
  virtual const TokenizerSpec& tokenizer_spec() const = 0;
  virtual const std::string& chat_template() const = 0;  // Jinja source; empty if the checkpoint has none
  virtual size_t size_bytes() const = 0;
  // Equal iff weights, layout, tokenizer, chat template and what the config says of the graph are the same; the name and
  // the sampling defaults may differ, so that two hosts may keep a model under two names.
  virtual uint64_t fingerprint() const = 0;
  // Reads all of it where memory suffices, into memory of this process's own if it has at most so many bytes, else into the page
  // cache that all processes share (base/file.h); before it is served or measured, while nobody reads it; once, whoever asks again.
  virtual void bring_into_memory(size_t own_at_most) const = 0;
  // The name of the section whose first byte this is, such as a linear's tiles; "" for other addresses. The packed forms of
  // a checkpoint, and every layout of one version, have the same names.
  virtual std::string_view section_at(const void* first_byte) const = 0;
};

}  // namespace millrace::model
