#include <array>

#include "model/internal/architecture.h"

namespace millrace::model {
namespace {

constexpr std::array kPages = {  // in the order of Architecture's values
#define MILLRACE_ARCHITECTURE(name, page) &page,
#include "model/architectures.inc"
#undef MILLRACE_ARCHITECTURE
};

}  // namespace

std::span<const ArchitecturePage* const> architecture_pages() { return kPages; }

const ArchitecturePage& architecture_page(Architecture architecture) {
  const auto index = static_cast<size_t>(architecture);
  MR_CHECK(index < kPages.size(), "a config names an architecture without a page");
  return *kPages[index];
}

Architecture architecture_of(const ArchitecturePage& page) {
  for (size_t i = 0; i < kPages.size(); ++i)
    if (kPages[i] == &page) return static_cast<Architecture>(i);
  check_failed(__FILE__, __LINE__, "page", "a page that architectures.inc does not have");
}

std::string_view architecture_name(Architecture architecture) {
  return architecture_page(architecture).model_type;
}

}  // namespace millrace::model
