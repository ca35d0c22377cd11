// What stands where in a packed file: shared by the writer and the reader. Private to the room.
//
//   byte 0      header, 4096 bytes (PackedHeader, then zeros)
//   byte 4096   sections, each at a multiple of 4096
//   at the end  the directory: JSON {"type", "config", "sections": [{"name", "offset", "size", "xxh3"}]}
//
// A section is a linear, an embedding, a gain, the tokenizer ("tokenizer") or the chat template
// ("chat_template"). The sections of a linear hold several arrays at fixed places (LinearLayout), a function
// of its shape alone.
#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "model/config.h"
#include "model/graph.h"
#include "model/internal/architecture.h"
#include "model/packed_model.h"

namespace millrace::model {

inline constexpr uint64_t kPackedMagic = 0x31304B434150524Dull;  // "MRPACK01" in the file's byte order
inline constexpr uint32_t kPackedVersion = 6;  // raise with any change of layout, rotation, rounding or Plan
inline constexpr size_t kPackedHeaderBytes = 4096;
inline constexpr size_t kSectionAlignment = 4096;
inline constexpr size_t kMaxDirectoryBytes = size_t{16} << 20;

struct PackedHeader {
  uint64_t magic = kPackedMagic;
  uint32_t version = kPackedVersion;
  uint32_t header_bytes = kPackedHeaderBytes;
  uint64_t file_bytes = 0;
  uint64_t directory_offset = 0, directory_bytes = 0;
  uint64_t directory_xxh3 = 0;
  uint64_t header_xxh3 = 0;  // of the bytes before this field
};
static_assert(sizeof(PackedHeader) == 56);

struct Section {
  std::string name;
  uint64_t offset = 0, size = 0;
  uint64_t checksum = 0;
};

// Offsets of a linear's arrays within its section; each is a multiple of 64. INT8: tiles, scale, sum, bias.
// float32: weights (at 0), bias.
struct LinearLayout {
  LinearLayout(PackType type, int64_t n, int64_t k, bool has_bias);
  uint64_t scale = 0, sum = 0, bias = 0, size = 0;
};

// name -> size of each weight section of the plan, in file order.
struct PlannedSection {
  std::string name;
  uint64_t size = 0;
};
std::vector<PlannedSection> planned_sections(const Plan& plan, PackType type);
// How many those are, without making them: a config of a few hundred bytes can ask for millions.
int64_t planned_section_count(const Plan& plan, PackType type);

// The graph of a plan over sections that are known to have their planned sizes; at(name) is a section's first
// byte.
Graph bind_graph(const Plan& plan, PackType type,
                 const std::function<const std::byte*(const std::string&)>& at);

// A section's checksum: XXH3-64 of each MiB, seeded with the one before; so it can be computed in pieces.
inline constexpr size_t kChecksumPiece = size_t{1} << 20;
uint64_t section_checksum(std::span<const std::byte> bytes);

std::string directory_to_json(PackType type, const ModelConfig& config, const std::vector<Section>& sections);
struct Directory {
  PackType type = PackType::int8;
  ModelConfig config;
  std::vector<Section> sections;
};
Expected<Directory> directory_from_json(std::string_view text);  // config validated; sections not yet
// Equal for directories that differ at most in what no logit depends on: the model's name and sampling defaults.
uint64_t fingerprint_of(const Directory& directory);

}  // namespace millrace::model
