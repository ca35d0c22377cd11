// A damaged compiled tokenizer: refused, or made into a tokenizer that works and serialises to the same
// bytes.
#include <cstdlib>

#include "model/tokenizer.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace millrace;
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  auto spec = model::deserialize_tokenizer(bytes);
  if (!spec) return 0;
  if (model::serialize(*spec) != bytes) std::abort();
  const auto tokenizer = model::Tokenizer::create(std::move(*spec));
  if (!tokenizer) return 0;
  std::vector<TokenId> ids;
  (void)(*tokenizer)
      ->encode("Hello, w\xC3\xB6rld 123 <s> \xE4\xBD\xA0\n", {.parse_special = true}, 1000, ids);
  (void)(*tokenizer)->decode(ids, false);
  return 0;
}
