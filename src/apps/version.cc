#include "apps/version.h"

#include <fmt/core.h>

#include "kernels/isa.h"

#ifndef MILLRACE_COMMIT
#define MILLRACE_COMMIT "unknown"
#endif

namespace millrace::apps {

std::string version_line() {
  const auto isa = kernels::choose_isa();
  return fmt::format("millrace {} (commit {}, {})", MILLRACE_VERSION, MILLRACE_COMMIT,
                     isa ? kernels::isa_name(*isa) : "no usable instruction-set level");
}

}  // namespace millrace::apps
