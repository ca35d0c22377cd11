// Drives the tokenizer for test_equality.py: texts in, ids (or text, or seconds) out.
//
//   tokenizer_encode ids|decode|speed TOKENIZER TEXTS [parse_special] [no_add_special]
//
// TOKENIZER is a .gguf file, a tokenizer.json or a folder with one. TEXTS holds u32 length + bytes, again and
// again. ids: writes u32 count + i32 ids for each text. decode: TEXTS holds ids (i32 each); writes u32 length
// + bytes. speed: prints seconds of one pass over all texts, best of several, and the number of ids; and
// seconds to deserialise and create. Native byte order: it talks to a script on the same machine.
#include <fmt/core.h>

#include <chrono>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "base/file.h"
#include "model/gguf.h"
#include "model/tokenizer.h"

namespace {

using namespace millrace;
using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

Expected<model::TokenizerSpec> load(const std::string& path) {
  if (path.ends_with(".gguf")) return model::tokenizer_from_gguf(*MR_TRY(model::GgufFile::open(path)));
  if (std::filesystem::is_directory(path)) return model::tokenizer_from_hugging_face(path);
  return model::tokenizer_from_json(MR_TRY(read_file(path, size_t{64} << 20)), "");
}

std::vector<std::string_view> split_texts(std::string_view all) {
  std::vector<std::string_view> texts;
  while (all.size() >= 4) {
    uint32_t length;
    std::memcpy(&length, all.data(), 4);
    texts.push_back(all.substr(4, length));
    all.remove_prefix(4 + texts.back().size());
  }
  return texts;
}

void put(const void* data, uint32_t count, size_t each) {
  std::fwrite(&count, 4, 1, stdout);
  std::fwrite(data, each, count, stdout);
}

void speed(const model::Tokenizer& tokenizer, const std::vector<std::string_view>& texts,
           const model::EncodeOptions& options) {
  double best = 1e9;
  size_t ids = 0;
  std::vector<TokenId> out;
  for (int round = 0; round < 7; ++round) {
    const auto start = Clock::now();
    ids = 0;
    for (const std::string_view text : texts) {
      out.clear();
      (void)tokenizer.encode(text, options, 0, out);
      ids += out.size();
    }
    best = std::min(best, seconds_since(start));
  }
  const std::string blob = model::serialize(tokenizer.spec());
  const auto start = Clock::now();
  auto again = model::Tokenizer::create(*model::deserialize_tokenizer(blob));
  fmt::print("{:.6f} {} {:.6f}\n", best, ids, seconds_since(start));
  if (!again) std::abort();
}

Expected<void> run(const std::vector<std::string>& arguments) {
  if (arguments.size() < 3)
    return invalid("usage: tokenizer_encode ids|decode|speed TOKENIZER TEXTS [options]");
  model::EncodeOptions options;
  for (size_t i = 3; i < arguments.size(); ++i) {
    if (arguments[i] == "parse_special")
      options.parse_special = true;
    else if (arguments[i] == "no_add_special")
      options.add_special = false;
    else
      return invalid("unknown option " + arguments[i]);
  }
  // Through the compiled form, as the product runs it.
  const std::string blob = model::serialize(MR_TRY(load(arguments[1])));
  const auto tokenizer = MR_TRY(model::Tokenizer::create(MR_TRY(model::deserialize_tokenizer(blob))));
  const std::string data = MR_TRY(read_file(arguments[2], size_t{1} << 30));
  const std::vector<std::string_view> texts = split_texts(data);
  if (arguments[0] == "speed") {
    speed(*tokenizer, texts, options);
    return {};
  }
  for (const std::string_view text : texts) {
    if (arguments[0] == "ids") {
      std::vector<TokenId> ids;
      MR_TRY(tokenizer->encode(text, options, 0, ids));
      put(ids.data(), static_cast<uint32_t>(ids.size()), sizeof(TokenId));
    } else {
      std::vector<TokenId> ids(text.size() / sizeof(TokenId));
      std::memcpy(ids.data(), text.data(), ids.size() * sizeof(TokenId));
      const std::string decoded = tokenizer->decode(ids, true);
      // The stream must say the same, and never end inside a character.
      model::Detokenizer stream(tokenizer, true);
      std::string streamed;
      for (const TokenId id : ids) streamed += stream.push(id);
      streamed += stream.finish();
      if (streamed != decoded) return fail(Code::internal, "Detokenizer and decode differ");
      put(decoded.data(), static_cast<uint32_t>(decoded.size()), 1);
    }
  }
  return {};
}

}  // namespace

int main(int argc, char** argv) {
  const auto result = run({argv + 1, argv + argc});
  if (!result) fmt::print(stderr, "{}\n", result.error().to_string());
  return result ? 0 : 1;
}
