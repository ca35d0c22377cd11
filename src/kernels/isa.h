// Instruction-set levels. One is chosen at start, named in the log, and used by every kernel of the process.
//
// All levels give the same bits (docs/decisions/0001-canonical-arithmetic.md), so the choice is about speed alone.
#pragma once
#include <string_view>
#include <vector>

#include "base/status.h"

namespace millrace::kernels {

enum class Isa { scalar = 0, avx2 = 1, avx512 = 2, amx = 3 };
// What each needs: avx2 = AVX2, FMA, F16C; avx512 = F, BW, VL, DQ and VNNI; amx = avx512's and AVX512-BF16,
// AMX-TILE, AMX-INT8, AMX-BF16, and the kernel's permission for tile data (asked for on first use).

std::string_view isa_name(Isa isa);
bool isa_supported(Isa isa);         // by this CPU and this operating system
std::vector<Isa> supported_isas();   // ascending; scalar is always there
// The best supported level, or the one that MILLRACE_ISA names. An unknown name or an unsupported level is an error
// that lists what this machine has: `millrace` calls this first and stops on the error.
Expected<Isa> choose_isa();
// The level in use. The first call chooses (and stops the process if the environment forces an impossible one).
Isa active_isa();

}  // namespace millrace::kernels
