#include "model/tokenizer.h"

#include <fmt/core.h>

#include <algorithm>
#include <atomic>

#include "base/utf8.h"
#include "model/internal/added_tokens.h"
#include "model/internal/bpe.h"
#include "model/internal/normalizer.h"
#include "model/internal/piece_cache.h"
#include "model/internal/pretokenizer.h"
#include "model/internal/tokenizer_limits.h"

namespace millrace::model {
namespace {

using internal::Piece;

constexpr std::string_view kMetaspace = "\xE2\x96\x81";

uint64_t next_serial() {
  static std::atomic<uint64_t> counter{0};
  return ++counter;
}

class BpeTokenizer final : public Tokenizer {
 public:
  BpeTokenizer(TokenizerSpec spec, internal::PreTokenizer splits)
      : spec_(std::move(spec)),
        splits_(std::move(splits)),
        vocabulary_(spec_),
        bpe_(spec_, vocabulary_),
        cut_words_(spec_.kind == TokenizerSpec::Kind::sentencepiece_bpe && !spec_.ignore_merges &&
                   bpe_.may_cut_before_metaspace()),
        special_(spec_.tokens.size(), false) {
    for (const AddedToken& token : spec_.added) special_[static_cast<size_t>(token.id)] = token.special;
  }

  Expected<void> add_matchers() {
    for (const AddedToken& token : spec_.added) {
      if (!token.normalized) {
        as_given_.add(token.text, &token);
        continue;
      }
      std::string storage;
      const std::string_view text = MR_TRY(internal::normalize(spec_.normalizer, token.text, storage));
      if (!text.empty()) normalized_.add(text, &token);
    }
    return {};
  }

  Expected<void> encode(std::string_view text, const EncodeOptions& options, size_t max_tokens,
                        std::vector<TokenId>& out) const override;
  using Tokenizer::encode;

  std::string_view token_bytes(TokenId id) const override { return vocabulary_.bytes(id); }
  bool is_special(TokenId id) const override {
    return id >= 0 && static_cast<size_t>(id) < special_.size() && special_[static_cast<size_t>(id)];
  }
  TokenId id_of(std::string_view text) const override { return vocabulary_.find_text(text); }
  int vocab_size() const override { return static_cast<int>(spec_.tokens.size()); }
  const TokenizerSpec& spec() const override { return spec_; }

 private:
  struct Run;
  Expected<void> encode_stretch(Piece text, Run& run) const;
  void encode_piece(std::string_view piece, Run& run) const;
  bool emit_piece(std::string_view piece, Run& run) const;

  // Constant after construction.
  TokenizerSpec spec_;
  internal::PreTokenizer splits_;
  internal::Vocabulary vocabulary_;
  internal::Bpe bpe_;
  internal::AddedTokenMatcher as_given_, normalized_;
  bool cut_words_;  // sentencepiece_bpe: words can be merged one by one
  std::vector<bool> special_;
  uint64_t serial_ = next_serial();
};

struct BpeTokenizer::Run {
  const EncodeOptions& options;
  std::vector<TokenId>& out;
  size_t most;  // out.size() may not pass this
  internal::PieceCache& cache;
  bool over() const { return out.size() > most; }
};

void BpeTokenizer::encode_piece(std::string_view piece, Run& run) const {
  if (piece.size() > internal::PieceCache::kMaxBytes) return bpe_.encode(piece, run.out);
  const internal::PieceCache::Key key = run.cache.key(piece);
  const std::span<const TokenId> known = run.cache.find(key);
  if (!known.empty()) {
    run.out.insert(run.out.end(), known.begin(), known.end());
    return;
  }
  const size_t begin = run.out.size();
  bpe_.encode(piece, run.out);
  run.cache.store(key, std::span(run.out).subspan(begin));
}

bool BpeTokenizer::emit_piece(std::string_view piece, Run& run) const {
  if (!cut_words_) {
    encode_piece(piece, run);
    return !run.over();
  }
  for (size_t at = 0; at < piece.size() && !run.over();) {
    size_t end = at;  // a run of U+2581, then everything up to the next one
    while (piece.substr(end, kMetaspace.size()) == kMetaspace) end += kMetaspace.size();
    end = std::min(piece.find(kMetaspace, end), piece.size());
    encode_piece(piece.substr(at, end - at), run);
    at = end;
  }
  return !run.over();
}

// A stretch between added tokens that are matched in the text as given.
Expected<void> BpeTokenizer::encode_stretch(Piece text, Run& run) const {
  std::string storage;
  const std::string_view normal = MR_TRY(internal::normalize(spec_.normalizer, text.text, storage));
  Expected<void> result;
  normalized_.split(normal, run.options.parse_special,
                    [&](const AddedToken* token, size_t begin, size_t end) {
                      if (token != nullptr) {
                        run.out.push_back(token->id);
                      } else {
                        result = splits_.run({normal.substr(begin, end - begin), text.at_start && begin == 0},
                                             [&](std::string_view piece) { return emit_piece(piece, run); });
                      }
                      return result.has_value() && !run.over();
                    });
  return result;
}

Expected<void> BpeTokenizer::encode(std::string_view text, const EncodeOptions& options, size_t max_tokens,
                                    std::vector<TokenId>& out) const {
  const size_t begin = out.size();
  Run run{.options = options,
          .out = out,
          .most = max_tokens == 0 ? SIZE_MAX : begin + max_tokens,
          .cache = internal::PieceCache::of(serial_)};
  std::string repaired;
  if (!utf8_valid(text)) {
    repaired = utf8_repair(text);
    text = repaired;
  }
  if (options.add_special) out.insert(out.end(), spec_.prefix.begin(), spec_.prefix.end());
  Expected<void> result;
  as_given_.split(text, options.parse_special, [&](const AddedToken* token, size_t from, size_t to) {
    if (token != nullptr)
      out.push_back(token->id);
    else
      result = encode_stretch({text.substr(from, to - from), from == 0}, run);
    return result.has_value() && !run.over();
  });
  if (!result) return result;
  if (options.add_special) out.insert(out.end(), spec_.suffix.begin(), spec_.suffix.end());
  if (run.over())
    return fail(Code::resource_exhausted,
                fmt::format("the text has more than {} tokens ({} bytes)", max_tokens, text.size()));
  return {};
}

Expected<void> check_id(TokenId id, const TokenizerSpec& spec, std::string_view what) {
  if (id >= 0 && static_cast<size_t>(id) < spec.tokens.size()) return {};
  return invalid(
      fmt::format("{} has token id {}, outside the vocabulary of {}", what, id, spec.tokens.size()));
}

Expected<void> validate(const TokenizerSpec& spec) {
  using internal::kMaxAddedTokenBytes, internal::kMaxAddedBytes, internal::kMaxVocabulary,
      internal::kMaxVocabularyBytes, internal::kMaxNormalizerSteps;
  if (spec.tokens.empty() || spec.tokens.size() > kMaxVocabulary)
    return invalid(
        fmt::format("a vocabulary of {} tokens is outside 1..{}", spec.tokens.size(), kMaxVocabulary));
  size_t bytes = 0;
  for (const std::string& token : spec.tokens) {
    bytes += token.size();
    if (!utf8_valid(token)) return invalid("a token's text is not UTF-8");
  }
  if (bytes > kMaxVocabularyBytes)
    return invalid(
        fmt::format("a vocabulary of {} bytes is over the limit of {}", bytes, kMaxVocabularyBytes));
  for (const Merge& merge : spec.merges)
    for (const TokenId id : {merge.left, merge.right, merge.result}) MR_TRY(check_id(id, spec, "a merge"));
  if (!spec.merge_ranks.empty() && spec.merge_ranks.size() != spec.merges.size())
    return invalid(fmt::format("{} merges have {} ranks", spec.merges.size(), spec.merge_ranks.size()));
  if (std::ranges::find(spec.merge_ranks, ~0U) != spec.merge_ranks.end())
    return invalid("a merge's rank is 2^32 - 1, which stands for no merge");
  size_t added_bytes = 0;
  for (const AddedToken& token : spec.added) {
    added_bytes += token.text.size();
    MR_TRY(check_id(token.id, spec, "an added token"));
    if (token.text.empty() || token.text.size() > kMaxAddedTokenBytes)
      return invalid(fmt::format("added token {} has {} bytes, outside 1..{}", token.id, token.text.size(),
                                 kMaxAddedTokenBytes));
    if (spec.tokens[static_cast<size_t>(token.id)] != token.text)
      return invalid(fmt::format("added token {} is '{}' but the vocabulary says '{}'", token.id, token.text,
                                 spec.tokens[static_cast<size_t>(token.id)]));
  }
  if (added_bytes > kMaxAddedBytes)
    return invalid(
        fmt::format("added tokens of {} bytes are over the limit of {}", added_bytes, kMaxAddedBytes));
  for (const TokenId id : spec.prefix) MR_TRY(check_id(id, spec, "the prefix"));
  for (const TokenId id : spec.suffix) MR_TRY(check_id(id, spec, "the suffix"));
  for (const TokenId id : {spec.bos, spec.eos, spec.unknown})
    if (id != -1) MR_TRY(check_id(id, spec, "bos, eos or unknown"));
  if (spec.normalizer.size() > kMaxNormalizerSteps)
    return invalid(fmt::format("a normalizer of {} steps is over the limit of {}", spec.normalizer.size(),
                               kMaxNormalizerSteps));
  for (const NormalizerStep& step : spec.normalizer)
    if (!utf8_valid(step.pattern) || !utf8_valid(step.content))
      return invalid("a normalizer's text is not UTF-8");
  return {};
}

}  // namespace

Expected<std::shared_ptr<const Tokenizer>> Tokenizer::create(TokenizerSpec spec) {
  MR_TRY(validate(spec));
  internal::PreTokenizer splits = MR_TRY(internal::PreTokenizer::create(spec.splits));
  auto tokenizer = std::make_shared<BpeTokenizer>(std::move(spec), std::move(splits));
  MR_TRY(tokenizer->add_matchers());
  return tokenizer;
}

std::vector<TokenId> Tokenizer::encode(std::string_view text, const EncodeOptions& options) const {
  std::vector<TokenId> out;
  // Without a limit only a hostile regex can fail; its tokens so far are then the result.
  (void)encode(text, options, 0, out);
  return out;
}

std::string Tokenizer::decode(std::span<const TokenId> ids, bool skip_special) const {
  std::string bytes;
  bool at_start = true;
  for (const TokenId id : ids) internal::append_token(*this, id, skip_special, at_start, bytes);
  return utf8_repair(bytes);
}

namespace internal {

void append_token(const Tokenizer& tokenizer, TokenId id, bool skip_special, bool& at_start,
                  std::string& out) {
  std::string_view bytes = tokenizer.token_bytes(id);
  if (bytes.empty() || (skip_special && tokenizer.is_special(id))) return;
  if (at_start) {
    at_start = false;
    using LeadingSpace = TokenizerSpec::LeadingSpace;
    const LeadingSpace leading = tokenizer.spec().leading_space;
    if (leading == LeadingSpace::drop_one && bytes.starts_with(' ')) bytes.remove_prefix(1);
    if (leading == LeadingSpace::drop_in_first_token) {
      for (const char c : bytes)
        if (c != ' ') out += c;
      return;
    }
  }
  out += bytes;
}

}  // namespace internal

Detokenizer::Detokenizer(std::shared_ptr<const Tokenizer> tokenizer, bool skip_special,
                         std::vector<TokenId> shown)
    : tokenizer_(std::move(tokenizer)), skip_special_(skip_special), shown_(std::move(shown)) {}

std::string Detokenizer::push(TokenId id) {
  const bool skip = skip_special_ && std::ranges::find(shown_, id) == shown_.end();
  internal::append_token(*tokenizer_, id, skip, at_start_, pending_);
  // Text behind a marker was a stretch of its own when it was encoded, with a leading space of its own.
  if (skip_special_ && !skip && !shown_.empty()) at_start_ = true;
  const size_t whole = utf8_complete_prefix(pending_);
  std::string out = utf8_repair(std::string_view(pending_).substr(0, whole));
  pending_.erase(0, whole);
  return out;
}

std::string Detokenizer::finish() {
  std::string out = utf8_repair(pending_);
  pending_.clear();
  return out;
}

}  // namespace millrace::model
