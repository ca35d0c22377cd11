#include "model/internal/tokenizer_config.h"

#include <fmt/core.h>

#include <algorithm>
#include <charconv>
#include <unordered_map>

#include "base/json.h"
#include "model/internal/json_fields.h"
#include "model/internal/tokenizer_limits.h"

namespace millrace::model::internal {
namespace {

constexpr size_t kMaxConfigBytes = size_t{16} << 20;

std::unexpected<Status> refuse(std::string_view what) {
  return invalid(fmt::format("tokenizer_config.json: {}", what));
}

// "text", or {"content": "text", ...}.
Expected<std::string> token_text(const json::object& root, std::string_view key) {
  const json::value* value = field_of(root, key);
  if (value == nullptr) return std::string();
  if (value->is_object()) return read_text(value->get_object(), "content");
  return read_text(root, key);
}

Expected<void> read_added(const json::object& decoder, std::vector<AddedToken>& added) {
  if (decoder.size() > kMaxVocabulary)
    return refuse(fmt::format("added_tokens_decoder has {} entries, over the limit of {}", decoder.size(),
                              kMaxVocabulary));
  for (const auto& [key, value] : decoder) {
    AddedToken token;
    const std::string_view digits(key.data(), key.size());
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), token.id);
    if (error != std::errc() || end != digits.data() + digits.size() || token.id < 0 ||
        static_cast<size_t>(token.id) >= kMaxVocabulary)
      return refuse(fmt::format("added_tokens_decoder has the key '{}', which is no id in 0..{}",
                                digits.substr(0, 40), kMaxVocabulary - 1));
    if (!value.is_object()) return refuse(fmt::format("added_tokens_decoder.{} is not an object", digits));
    const json::object& fields = value.get_object();
    token.text = MR_TRY(read_text(fields, "content"));
    token.special = MR_TRY(read_bool(fields, "special", false));
    token.single_word = MR_TRY(read_bool(fields, "single_word", false));
    token.lstrip = MR_TRY(read_bool(fields, "lstrip", false));
    token.rstrip = MR_TRY(read_bool(fields, "rstrip", false));
    // `normalized` is about a normaliser that the vocabularies read here do not have before added tokens.
    if (!token.text.empty()) added.push_back(std::move(token));
  }
  std::ranges::sort(added, {}, &AddedToken::id);
  return {};
}

Expected<TokenizerConfig> read_fields(const json::object& root) {
  TokenizerConfig config;
  if (const json::value* decoder = field_of(root, "added_tokens_decoder")) {
    if (!decoder->is_object()) return refuse("added_tokens_decoder is not an object");
    MR_TRY(read_added(decoder->get_object(), config.added));
  }
  config.bos = MR_TRY(token_text(root, "bos_token"));
  config.eos = MR_TRY(token_text(root, "eos_token"));
  config.unknown = MR_TRY(token_text(root, "unk_token"));
  const auto flag = [&](std::string_view key, std::optional<bool>& out) -> Expected<void> {
    if (field_of(root, key) != nullptr) out = MR_TRY(read_bool(root, key, false));
    return {};
  };
  MR_TRY(flag("add_bos_token", config.add_bos));
  MR_TRY(flag("add_eos_token", config.add_eos));
  MR_TRY(flag("legacy", config.legacy));
  const json::value* map = field_of(root, "auto_map");
  const json::value* entry =
      map != nullptr && map->is_object() ? field_of(map->get_object(), "AutoTokenizer") : nullptr;
  if (entry != nullptr && entry->is_array() && !entry->get_array().empty()) entry = &entry->get_array()[0];
  if (entry != nullptr && entry->is_string())
    config.python_class.assign(entry->get_string().data(), entry->get_string().size());
  return config;
}

}  // namespace

Expected<TokenizerConfig> read_tokenizer_config(std::string_view json_text) {
  if (json_text.empty()) return TokenizerConfig{};
  const json::value document = MR_TRY(parse_json(json_text, {.max_bytes = kMaxConfigBytes}));
  if (!document.is_object()) return refuse("it is not an object");
  auto config = read_fields(document.get_object());
  if (!config && !config.error().message.starts_with("tokenizer_config.json"))
    config.error().message = "tokenizer_config.json: " + config.error().message;
  return config;
}

Expected<void> add_config_tokens(const TokenizerConfig& config, TokenizerSpec& spec) {
  std::unordered_map<TokenId, size_t> known;  // id -> place in spec.added
  for (size_t i = 0; i < spec.added.size(); ++i) known.emplace(spec.added[i].id, i);
  for (const AddedToken& token : config.added) {
    const auto id = static_cast<size_t>(token.id);
    if (id >= spec.tokens.size()) spec.tokens.resize(id + 1);
    // The vocabulary keeps its own name of a token that the config adds again, in what the spec's users see
    // as one.
    std::string& text = spec.tokens[id];
    if (!text.empty() && text != token.text)
      return refuse(fmt::format("added token '{}' has the id {} of '{}'", token.text, token.id, text));
    text = token.text;
    const auto [place, is_new] = known.try_emplace(token.id, spec.added.size());
    if (is_new) {
      spec.added.push_back(token);
    } else {
      spec.added[place->second] = token;
    }
  }
  std::ranges::sort(spec.added, {}, &AddedToken::id);
  const auto id_of = [&](std::string_view text) {
    const auto found = text.empty() ? spec.tokens.end() : std::ranges::find(spec.tokens, text);
    return found == spec.tokens.end() ? TokenId{-1} : static_cast<TokenId>(found - spec.tokens.begin());
  };
  if (!config.bos.empty()) spec.bos = id_of(config.bos);
  if (!config.eos.empty()) spec.eos = id_of(config.eos);
  return {};
}

}  // namespace millrace::model::internal
