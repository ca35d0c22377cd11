// tiktoken.model (Kimi K2) to a TokenizerSpec: lines of "BASE64-OF-THE-TOKEN RANK".
//
// The file holds neither the split pattern nor the special tokens. The pattern stands in the Python file that
// comes with the model, so it is known here by that file's name; the special tokens stand in
// tokenizer_config.json.
#include <fmt/core.h>

#include <algorithm>
#include <array>
#include <charconv>

#include "model/internal/bpe.h"
#include "model/internal/split_scanners.h"
#include "model/internal/tokenizer_config.h"
#include "model/internal/tokenizer_limits.h"
#include "model/internal/vocabulary_builder.h"
#include "model/tokenizer.h"

namespace millrace::model {
namespace {

constexpr size_t kMaxFileBytes = size_t{16} << 20;  // five times Kimi K2's
constexpr size_t kMaxTokenBytes = 512;
constexpr int kReservedTokens =
    256;  // ids behind the ranks that Kimi's tokenizer makes special, named or not

std::unexpected<Status> refuse(size_t line, std::string_view what) {
  return invalid(fmt::format("tiktoken.model: line {} {}", line, what));
}

constexpr std::array<int8_t, 256> kBase64 = [] {
  std::array<int8_t, 256> values{};
  values.fill(-1);
  constexpr std::string_view kAlphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  for (size_t i = 0; i < kAlphabet.size(); ++i)
    values[static_cast<uint8_t>(kAlphabet[i])] = static_cast<int8_t>(i);
  return values;
}();

// RFC 4648 with padding, and nothing else. False: it is not that.
bool decode_base64(std::string_view text, std::string& out) {
  out.clear();
  if (text.empty() || text.size() % 4 != 0) return false;
  const size_t padding = text.ends_with("==") ? 2 : text.ends_with('=') ? 1 : 0;
  uint32_t bits = 0;
  for (size_t i = 0; i < text.size() - padding; ++i) {
    const int8_t value = kBase64[static_cast<uint8_t>(text[i])];
    if (value < 0) return false;
    bits = bits << 6 | static_cast<uint32_t>(value);
    if (i % 4 == 1) out += static_cast<char>(bits >> 4);
    if (i % 4 == 2) out += static_cast<char>(bits >> 2);
    if (i % 4 == 3) out += static_cast<char>(bits);
  }
  const uint32_t unused = padding == 2 ? bits & 0xF : padding == 1 ? bits & 0x3 : 0;
  return unused == 0;
}

// tokens[rank] in GPT-2's alphabet.
Expected<std::vector<std::string>> read_ranks(std::string_view file) {
  if (file.size() > kMaxFileBytes)
    return invalid(
        fmt::format("tiktoken.model has {} bytes, over the limit of {}", file.size(), kMaxFileBytes));
  std::vector<std::string> tokens;
  std::string bytes;
  size_t number = 0, count = 0;
  while (!file.empty()) {
    const size_t end = std::min(file.find('\n'), file.size());
    std::string_view line = file.substr(0, end);
    file.remove_prefix(std::min(end + 1, file.size()));
    ++number;
    if (line.ends_with('\r')) line.remove_suffix(1);
    if (line.empty()) continue;
    const size_t space = line.find(' ');
    if (space == line.npos) return refuse(number, "is not a token and a rank");
    if (space > (kMaxTokenBytes + 2) / 3 * 4)
      return refuse(number, fmt::format("has a token over the limit of {} bytes", kMaxTokenBytes));
    if (!decode_base64(line.substr(0, space), bytes)) return refuse(number, "has a token that is not base64");
    uint32_t rank = 0;
    const std::string_view digits = line.substr(space + 1);
    const auto [last, error] = std::from_chars(digits.data(), digits.data() + digits.size(), rank);
    if (error != std::errc() || last != digits.data() + digits.size() || rank >= internal::kMaxVocabulary)
      return refuse(number, fmt::format("has the rank '{}', which is not in 0..{}", digits.substr(0, 40),
                                        internal::kMaxVocabulary - 1));
    if (rank >= tokens.size()) tokens.resize(rank + 1);
    if (!tokens[rank].empty()) return refuse(number, fmt::format("has the rank {}, which is taken", rank));
    tokens[rank] = internal::bytes_to_alphabet(bytes);
    ++count;
  }
  if (count != tokens.size())
    return invalid(fmt::format("tiktoken.model has {} tokens but ranks up to {}", count, tokens.size() - 1));
  return tokens;
}

}  // namespace

Expected<TokenizerSpec> tokenizer_from_tiktoken(std::string_view ranks,
                                                std::string_view tokenizer_config_json) {
  const internal::TokenizerConfig config = MR_TRY(internal::read_tokenizer_config(tokenizer_config_json));
  // "owner/repo--module.Class" names the class of another repository: fine-tunes refer to the original's.
  std::string_view python_class = config.python_class;
  if (const size_t dashes = python_class.rfind("--"); dashes != python_class.npos)
    python_class.remove_prefix(dashes + 2);
  if (!python_class.starts_with("tokenization_kimi."))
    return invalid(
        fmt::format("tiktoken.model comes without its split pattern, which is known for "
                    "'tokenization_kimi.TikTokenTokenizer'; "
                    "tokenizer_config.json's auto_map says '{}'",
                    config.python_class));
  TokenizerSpec spec;
  spec.tokens = MR_TRY(read_ranks(ranks));
  internal::TokenIds ids = internal::ids_by_text(spec.tokens);
  if (ids.size() != spec.tokens.size()) return invalid("tiktoken.model has a token with two ranks");
  for (int byte = 0; byte < 256; ++byte) {
    const char text = static_cast<char>(byte);
    if (!ids.contains(internal::bytes_to_alphabet({&text, 1})))
      return invalid(fmt::format("tiktoken.model has no token for the byte 0x{:02X}", byte));
  }
  ids.clear();
  internal::add_rank_merges(spec.tokens.size(), spec);
  spec.splits.push_back(
      {.kind = SplitStep::Kind::regex, .pattern = std::string(internal::patterns::kKimiK2)});
  spec.ignore_merges = true;  // a piece that is a token is that token
  const size_t base = spec.tokens.size();
  spec.tokens.resize(base + kReservedTokens);
  MR_TRY(internal::add_config_tokens(config, spec));
  for (size_t id = base; id < spec.tokens.size(); ++id) {
    if (!spec.tokens[id].empty()) continue;
    spec.tokens[id] = fmt::format("<|reserved_token_{}|>", id);
    spec.added.push_back({.id = static_cast<TokenId>(id), .text = spec.tokens[id], .special = true});
  }
  std::ranges::sort(spec.added, {}, &AddedToken::id);
  return spec;
}

}  // namespace millrace::model
