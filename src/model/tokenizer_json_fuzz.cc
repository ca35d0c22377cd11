// A hostile tokenizer.json, and text for the tokenizer it makes: no crash, no hang, and what is made decodes.
// Input: u16 length of the text, the text, the file.
#include <cstdlib>
#include <cstring>

#include "base/utf8.h"
#include "model/tokenizer.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace millrace;
  if (size < 2) return 0;
  const std::string_view all(reinterpret_cast<const char*>(data) + 2, size - 2);
  const size_t length =
      std::min<size_t>(static_cast<size_t>(data[0]) | static_cast<size_t>(data[1]) << 8, all.size());
  const std::string_view text = all.substr(0, length);
  auto spec = model::tokenizer_from_json(all.substr(length), "");
  if (!spec) return 0;
  const auto tokenizer = model::Tokenizer::create(std::move(*spec));
  if (!tokenizer) return 0;
  for (const bool parse_special : {false, true}) {
    std::vector<TokenId> ids;
    (void)(*tokenizer)->encode(text, {.parse_special = parse_special}, 100'000, ids);
    model::Detokenizer stream(*tokenizer, parse_special);
    std::string streamed;
    for (const TokenId id : ids) {
      if (id < 0 || id >= (*tokenizer)->vocab_size()) std::abort();
      streamed += stream.push(id);
      if (!utf8_valid(streamed)) std::abort();
    }
    if (streamed + stream.finish() != (*tokenizer)->decode(ids, parse_special)) std::abort();
  }
  return 0;
}
