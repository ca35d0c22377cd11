// The tile configurations of this room: eight tiles of 64 bytes a row, of 16 rows or, for few rows of A and
// C, of those.
#pragma once
#include <array>
#include <cstdint>

namespace millrace::kernels::internal {

// Load it with _tile_loadconfig(&kAmxConfig) at the start of a kernel and call _tile_release() at its end:
// idle tile state costs the kernel 8 KiB at every context switch and keeps the core out of its deep sleep
// states. A constant of the program rather than a local: GCC 12's intrinsic tells the compiler of its first
// eight bytes only, so the stores that fill a local one are removed as dead.
struct alignas(64) AmxConfig {
  uint8_t palette = 1, start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
static_assert(sizeof(AmxConfig) == 64);
inline constexpr AmxConfig kAmxConfig;

// By rows of a single panel, 1 to 32, as gemm_amx.cc names the tiles: 0, 1 and 4 hold its first 16 rows, 2, 3
// and 5 the others. A tile of fewer rows loads and multiplies in less time.
inline constexpr auto kAmxConfigOfRows = [] {
  std::array<AmxConfig, 33> configs;
  for (int rows = 1; rows <= 32; ++rows) {
    for (const int tile : {0, 1, 4}) configs[rows].rows[tile] = static_cast<uint8_t>(rows < 16 ? rows : 16);
    for (const int tile : {2, 3, 5})
      configs[rows].rows[tile] = static_cast<uint8_t>(rows > 16 ? rows - 16 : 16);
  }
  return configs;
}();

}  // namespace millrace::kernels::internal
