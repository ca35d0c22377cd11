// Hostile config.json and generation_config.json (split at the first zero byte): whatever validates has a
// plan of bounded size, finite RoPE frequencies, and survives the packed file's directory unchanged.
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "model/config.h"
#include "model/internal/packed_layout.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace millrace::model;
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const size_t split = std::min(text.find('\0'), size);
  const auto config =
      config_from_hugging_face(text.substr(0, split), split < size ? text.substr(split + 1) : "");
  if (!config) return 0;
  for (const double frequency : config->rope.inverse_frequencies(config->head_dim))
    if (!std::isfinite(frequency) || frequency < 0) __builtin_trap();
  const Plan plan = architecture_page(config->architecture).plan(*config);
  for (const PackType type : {PackType::int8, PackType::float32}) {
    uint64_t total = 0;
    for (const PlannedSection& section : planned_sections(plan, type)) {
      if (section.size == 0 || section.size > uint64_t{1} << 44) __builtin_trap();
      total += section.size;
    }
    if (total > uint64_t{1} << 50) __builtin_trap();
    const auto directory = directory_to_json(type, *config, {});
    const auto back = directory_from_json(directory);
    if (!back || directory_to_json(type, back->config, {}) != directory) __builtin_trap();
  }
  return 0;
}
