#include "kernels/isa.h"

#include <cpuid.h>
#include <fmt/format.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <string>

namespace millrace::kernels {
namespace {

struct Leaf {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
};

Leaf cpuid(unsigned leaf, unsigned subleaf) {
  Leaf r;
  if (!__get_cpuid_count(leaf, subleaf, &r.eax, &r.ebx, &r.ecx, &r.edx)) return {};
  return r;
}

constexpr bool bit(uint64_t word, int index) { return (word >> index) & 1; }

// Register state that the operating system saves on a context switch (XCR0); 0 without XSAVE.
uint64_t enabled_state() {
  if (!bit(cpuid(1, 0).ecx, 27)) return 0;  // OSXSAVE
  uint32_t low = 0, high = 0;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return uint64_t{high} << 32 | low;
}

// Linux hands out AMX's 8 KiB of tile data per process, on request (Documentation/arch/x86/xstate.rst).
bool ask_for_tile_data() {
  constexpr int kArchReqXcompPerm = 0x1023;
  constexpr int kXfeatureXtileData = 18;
  return syscall(SYS_arch_prctl, kArchReqXcompPerm, kXfeatureXtileData) == 0;
}

Isa detect() {
  // Bit positions: Intel SDM volume 2A, CPUID, leaves 1 and 7; XCR0: volume 1, section 13.3.
  constexpr uint64_t kAvxState = 0x6, kAvx512State = 0xe6, kTileState = 0x60000;
  const Leaf one = cpuid(1, 0), seven = cpuid(7, 0);
  const uint64_t state = enabled_state();
  const auto has_state = [&](uint64_t mask) { return (state & mask) == mask; };

  const bool fma = bit(one.ecx, 12), f16c = bit(one.ecx, 29), avx = bit(one.ecx, 28),
             avx2 = bit(seven.ebx, 5);
  if (!(avx && avx2 && fma && f16c && has_state(kAvxState))) return Isa::scalar;

  const bool f = bit(seven.ebx, 16), dq = bit(seven.ebx, 17), bw = bit(seven.ebx, 30),
             vl = bit(seven.ebx, 31);
  const bool vnni = bit(seven.ecx, 11);
  if (!(f && dq && bw && vl && vnni && has_state(kAvx512State))) return Isa::avx2;

  const bool bf16 = bit(seven.edx, 22), tile = bit(seven.edx, 24), int8 = bit(seven.edx, 25);
  const bool vector_bf16 = bit(cpuid(7, 1).eax, 5);
  if (!(bf16 && vector_bf16 && tile && int8 && has_state(kTileState) && ask_for_tile_data())) return Isa::avx512;
  return Isa::amx;
}

Isa best_isa() {
  static const Isa best = detect();
  return best;
}

constexpr Isa kAll[] = {Isa::scalar, Isa::avx2, Isa::avx512, Isa::amx};

std::string supported_names() {
  std::string names;
  for (const Isa isa : supported_isas()) names += (names.empty() ? "" : ", ") + std::string(isa_name(isa));
  return names;
}

}  // namespace

std::string_view isa_name(Isa isa) {
  switch (isa) {
    case Isa::scalar:
      return "scalar";
    case Isa::avx2:
      return "avx2";
    case Isa::avx512:
      return "avx512";
    case Isa::amx:
      return "amx";
  }
  return "unknown";
}

bool isa_supported(Isa isa) { return isa <= best_isa(); }

std::vector<Isa> supported_isas() {
  std::vector<Isa> isas;
  for (const Isa isa : kAll)
    if (isa_supported(isa)) isas.push_back(isa);
  return isas;
}

Expected<Isa> choose_isa() {
  const char* forced = std::getenv("MILLRACE_ISA");
  if (forced == nullptr || *forced == '\0') return best_isa();
  for (const Isa isa : kAll) {
    if (isa_name(isa) != forced) continue;
    if (isa_supported(isa)) return isa;
    return std::unexpected(
        Status{.code = Code::failed_precondition,
               .message = fmt::format("MILLRACE_ISA={} asks for a level that this machine lacks; it has: {}",
                                      forced, supported_names()),
               .param = "MILLRACE_ISA"});
  }
  return invalid(fmt::format("MILLRACE_ISA={:.40} is no instruction-set level; this machine has: {}", forced,
                             supported_names()),
                 "MILLRACE_ISA");
}

Isa active_isa() {
  static const Isa active = [] {
    const auto chosen = choose_isa();
    MR_CHECK(chosen.has_value(), chosen.error().message);
    return *chosen;
  }();
  return active;
}

}  // namespace millrace::kernels
