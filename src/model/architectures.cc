#include <array>

#include "model/internal/architecture.h"

namespace millrace::model {
namespace {

constexpr std::array kPages = {
    // a new family: one more entry
    &kLlamaPage,    &kQwen2Page,    &kQwen3Page,         &kDeepSeekV2Page, &kDeepSeekV3Page,
    &kQwen2MoePage, &kQwen3MoePage, &kPanguEmbeddedPage, &kPanguMoePage,   &kPanguUltraPage,
};

}  // namespace

std::span<const ArchitecturePage* const> architecture_pages() { return kPages; }

const ArchitecturePage& architecture_page(Architecture architecture) {
  for (const ArchitecturePage* page : kPages)
    if (page->id == architecture) return *page;
  check_failed(__FILE__, __LINE__, "architecture", "a config names an architecture without a page");
}

std::string_view architecture_name(Architecture architecture) {
  return architecture_page(architecture).model_type;
}

}  // namespace millrace::model
