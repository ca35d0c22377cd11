// Text to tokens and back. A TokenizerSpec is plain data, read from GGUF metadata or tokenizer.json (or the compiled
// form inside a packed file); a Tokenizer is built from it once and is then immutable and thread-safe.
//
// Ids equal those of the Hugging Face `tokenizers` package on the same vocabulary. Input that is not UTF-8 is repaired
// first (base/utf8.h), as Python's errors="replace" does.
#pragma once
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/status.h"
#include "base/strong_id.h"

namespace millrace::model {

class GgufFile;

struct AddedToken {
  TokenId id = 0;
  std::string text;
  bool special = false;  // control tokens: hidden by skip_special, matched in text only where specials are parsed
  bool lstrip = false, rstrip = false, single_word = false, normalized = false;
};

struct TokenizerSpec {
  enum class Kind : uint32_t { byte_bpe = 1, sentencepiece_bpe = 2 } kind = Kind::byte_bpe;
  std::vector<std::string> tokens;                    // by id; byte_bpe: in GPT-2's byte-to-character alphabet
  std::vector<std::pair<TokenId, TokenId>> merges;    // in rank order (byte_bpe)
  std::vector<float> scores;                          // sentencepiece_bpe from GGUF, where merges are not given
  std::vector<AddedToken> added;
  std::vector<std::string> split_patterns;            // PCRE2 regexes applied one after the other; pieces are the matches and the gaps
  bool normalize_nfc = false;
  bool ignore_merges = false;      // Llama 3: a piece that is a token is that token
  bool byte_fallback = false;      // sentencepiece_bpe
  bool add_prefix_space = false;
  bool add_bos = false, add_eos = false;
  TokenId bos = -1, eos = -1, unknown = -1;
};

Expected<TokenizerSpec> tokenizer_from_gguf(const GgufFile& file);
// The folder's tokenizer.json and, if there, tokenizer_config.json.
Expected<TokenizerSpec> tokenizer_from_hugging_face(const std::filesystem::path& folder);
Expected<TokenizerSpec> tokenizer_from_json(std::string_view tokenizer_json, std::string_view tokenizer_config_json);
// The compiled form: bounded, checksummed by its container, fast to load.
std::string serialize(const TokenizerSpec& spec);
Expected<TokenizerSpec> deserialize_tokenizer(std::string_view bytes);

struct EncodeOptions {
  bool add_special = true;     // bos/eos as the spec says
  bool parse_special = false;  // special tokens written out in the text become their ids; otherwise they are text
};

class Tokenizer {
 public:
  static Expected<std::shared_ptr<const Tokenizer>> create(TokenizerSpec spec);
  virtual ~Tokenizer() = default;

  // Appends the ids of text to out. Fails only if more than max_tokens would be made (0: no limit).
  virtual Expected<void> encode(std::string_view text, const EncodeOptions& options, size_t max_tokens,
                                std::vector<TokenId>& out) const = 0;
  std::vector<TokenId> encode(std::string_view text, const EncodeOptions& options = {}) const;

  // The bytes a token stands for; "" for ids outside the vocabulary. Bytes of one token may be part of a character.
  virtual std::string_view token_bytes(TokenId id) const = 0;
  virtual bool is_special(TokenId id) const = 0;
  virtual TokenId id_of(std::string_view token_text) const = 0;  // an added token or vocabulary entry; -1 if none
  virtual int vocab_size() const = 0;
  virtual const TokenizerSpec& spec() const = 0;
  std::string decode(std::span<const TokenId> ids, bool skip_special) const;  // broken UTF-8 repaired
};

// Turns a stream of tokens into a stream of text that never ends inside a UTF-8 sequence. The text is a pure function
// of the tokens: the concatenation of all push() and finish() results equals Tokenizer::decode of all ids.
class Detokenizer {
 public:
  Detokenizer(std::shared_ptr<const Tokenizer> tokenizer, bool skip_special);
  std::string push(TokenId id);
  std::string finish();  // what was held back, repaired

 private:
  std::shared_ptr<const Tokenizer> tokenizer_;
  bool skip_special_;
  bool at_start_ = true;
  std::string pending_;
};

}  // namespace millrace::model
