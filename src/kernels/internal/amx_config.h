// The one tile configuration of this room: eight tiles of 16 rows x 64 bytes.
#pragma once
#include <cstdint>

namespace millrace::kernels::internal {

// Load it with _tile_loadconfig(&kAmxConfig) at the start of a kernel and call _tile_release() at its end: idle tile
// state costs the kernel 8 KiB at every context switch and keeps the core out of its deep sleep states.
// A constant of the program rather than a local: GCC 12's intrinsic tells the compiler of its first eight bytes only,
// so the stores that fill a local one are removed as dead.
struct alignas(64) AmxConfig {
  uint8_t palette = 1, start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
static_assert(sizeof(AmxConfig) == 64);
inline constexpr AmxConfig kAmxConfig;

}  // namespace millrace::kernels::internal
