// The compiled form of a TokenizerSpec: little-endian, counts before arrays, strings as all lengths and then
// all bytes.
//
//   "MRTOKEN2" | kind, flags, leading_space, bos, eos, unknown (u32 each)
//   tokens: u32 count, u32 lengths[], bytes | merges: u32 count, {u32 left, right, result}[], with flag 8:
//   u32 ranks[] added: u32 count, {u32 id, flags, string}[] | normalizer: u32 count, {u32 kind, string,
//   string}[] splits: u32 count, {u32 kind, behavior, invert, prepend, split_words, string}[] | prefix,
//   suffix: u32 count, u32[]
#include <fmt/core.h>

#include <bit>
#include <cstring>

#include "model/internal/tokenizer_limits.h"
#include "model/tokenizer.h"

namespace millrace::model {
namespace {

static_assert(std::endian::native == std::endian::little);
static_assert(sizeof(Merge) == 12);
constexpr std::string_view kMagic = "MRTOKEN2";

class Writer {
 public:
  void u32(uint32_t value) { out_.append(reinterpret_cast<const char*>(&value), sizeof(value)); }
  void id(TokenId value) { u32(static_cast<uint32_t>(value)); }
  void count(size_t value) { u32(static_cast<uint32_t>(value)); }
  void bytes(const void* data, size_t size) { out_.append(static_cast<const char*>(data), size); }
  void text(std::string_view value) {
    count(value.size());
    out_ += value;
  }
  void ids(const std::vector<TokenId>& values) {
    count(values.size());
    bytes(values.data(), values.size() * sizeof(TokenId));
  }
  std::string out_;
};

// Reads within bounds; after the first failure everything reads as zero and ok() is false.
class Reader {
 public:
  explicit Reader(std::string_view in) : in_(in) {}
  bool ok() const { return ok_; }
  bool at_end() const { return in_.empty(); }
  uint32_t u32() {
    uint32_t value = 0;
    copy(&value, sizeof(value));
    return value;
  }
  TokenId id() { return static_cast<TokenId>(u32()); }
  // An enumerator in [low, high].
  template <class Enum>
  Enum one_of(uint32_t low, uint32_t high) {
    const uint32_t value = u32();
    if (value < low || value > high) ok_ = false;
    return static_cast<Enum>(ok_ ? value : low);
  }
  bool flag() { return one_of<uint32_t>(0, 1) != 0; }
  // A count of things that take at least `each` bytes of what is left.
  size_t count(size_t each) {
    const size_t value = u32();
    if (value > in_.size() / each) ok_ = false;
    return ok_ ? value : 0;
  }
  std::string_view bytes(size_t size) {
    if (size > in_.size()) ok_ = false;
    if (!ok_) return {};
    const std::string_view result = in_.substr(0, size);
    in_.remove_prefix(size);
    return result;
  }
  bool fits(size_t size) { return ok_ = ok_ && size <= in_.size(); }
  std::string_view text() { return bytes(count(1)); }
  void copy(void* out, size_t size) {
    const std::string_view from = bytes(size);
    if (!from.empty()) std::memcpy(out, from.data(), size);
  }
  std::vector<TokenId> ids() {
    std::vector<TokenId> result(count(sizeof(TokenId)));
    copy(result.data(), result.size() * sizeof(TokenId));
    return result;
  }

 private:
  std::string_view in_;
  bool ok_ = true;
};

void read_tokens(Reader& in, TokenizerSpec& spec) {
  std::vector<uint32_t> lengths(in.count(sizeof(uint32_t)));
  in.copy(lengths.data(), lengths.size() * sizeof(uint32_t));
  if (!in.ok()) return;
  spec.tokens.reserve(lengths.size());
  for (const uint32_t length : lengths) spec.tokens.emplace_back(in.bytes(length));
}

void read_steps(Reader& in, TokenizerSpec& spec) {
  spec.added.resize(in.count(12));
  for (AddedToken& token : spec.added) {
    token.id = in.id();
    const uint32_t flags = in.one_of<uint32_t>(0, 31);
    token.special = (flags & 1) != 0;
    token.lstrip = (flags & 2) != 0;
    token.rstrip = (flags & 4) != 0;
    token.single_word = (flags & 8) != 0;
    token.normalized = (flags & 16) != 0;
    token.text = in.text();
  }
  spec.normalizer.resize(in.count(12));
  for (NormalizerStep& step : spec.normalizer) {
    step.kind = in.one_of<NormalizerStep::Kind>(1, 3);
    step.pattern = in.text();
    step.content = in.text();
  }
  spec.splits.resize(in.count(24));
  for (SplitStep& step : spec.splits) {
    step.kind = in.one_of<SplitStep::Kind>(1, 4);
    step.behavior = in.one_of<SplitStep::Behavior>(1, 5);
    step.invert = in.flag();
    step.prepend = in.one_of<SplitStep::Prepend>(0, 2);
    step.split_words = in.flag();
    step.pattern = in.text();
  }
}

}  // namespace

std::string serialize(const TokenizerSpec& spec) {
  Writer out;
  out.bytes(kMagic.data(), kMagic.size());
  out.u32(static_cast<uint32_t>(spec.kind));
  out.u32((spec.ignore_merges ? 1u : 0u) | (spec.byte_fallback ? 2u : 0u) | (spec.fuse_unknown ? 4u : 0u) |
          (spec.merge_ranks.empty() ? 0u : 8u));
  out.u32(static_cast<uint32_t>(spec.leading_space));
  for (const TokenId id : {spec.bos, spec.eos, spec.unknown}) out.id(id);
  out.count(spec.tokens.size());
  for (const std::string& token : spec.tokens) out.count(token.size());
  for (const std::string& token : spec.tokens) out.bytes(token.data(), token.size());
  out.count(spec.merges.size());
  out.bytes(spec.merges.data(), spec.merges.size() * sizeof(Merge));
  out.bytes(spec.merge_ranks.data(), spec.merge_ranks.size() * sizeof(uint32_t));
  out.count(spec.added.size());
  for (const AddedToken& token : spec.added) {
    out.id(token.id);
    out.u32((token.special ? 1u : 0u) | (token.lstrip ? 2u : 0u) | (token.rstrip ? 4u : 0u) |
            (token.single_word ? 8u : 0u) | (token.normalized ? 16u : 0u));
    out.text(token.text);
  }
  out.count(spec.normalizer.size());
  for (const NormalizerStep& step : spec.normalizer) {
    out.u32(static_cast<uint32_t>(step.kind));
    out.text(step.pattern);
    out.text(step.content);
  }
  out.count(spec.splits.size());
  for (const SplitStep& step : spec.splits) {
    out.u32(static_cast<uint32_t>(step.kind));
    out.u32(static_cast<uint32_t>(step.behavior));
    out.u32(step.invert ? 1 : 0);
    out.u32(static_cast<uint32_t>(step.prepend));
    out.u32(step.split_words ? 1 : 0);
    out.text(step.pattern);
  }
  out.ids(spec.prefix);
  out.ids(spec.suffix);
  return std::move(out.out_);
}

Expected<TokenizerSpec> deserialize_tokenizer(std::string_view bytes) {
  if (!bytes.starts_with(kMagic))
    return fail(Code::data_loss, "the compiled tokenizer does not start with its magic");
  Reader in(bytes.substr(kMagic.size()));
  TokenizerSpec spec;
  spec.kind = in.one_of<TokenizerSpec::Kind>(1, 2);
  const uint32_t flags = in.one_of<uint32_t>(0, 15);
  spec.ignore_merges = (flags & 1) != 0;
  spec.byte_fallback = (flags & 2) != 0;
  spec.fuse_unknown = (flags & 4) != 0;
  spec.leading_space = in.one_of<TokenizerSpec::LeadingSpace>(0, 2);
  spec.bos = in.id();
  spec.eos = in.id();
  spec.unknown = in.id();
  read_tokens(in, spec);
  spec.merges.resize(in.count(sizeof(Merge)));
  in.copy(spec.merges.data(), spec.merges.size() * sizeof(Merge));
  if ((flags & 8) != 0 && in.fits(spec.merges.size() * sizeof(uint32_t))) {
    spec.merge_ranks.resize(spec.merges.size());
    in.copy(spec.merge_ranks.data(), spec.merge_ranks.size() * sizeof(uint32_t));
  }
  read_steps(in, spec);
  spec.prefix = in.ids();
  spec.suffix = in.ids();
  const bool unranked = (flags & 8) != 0 && spec.merge_ranks.empty();  // ranks of no merges
  if (!in.ok() || !in.at_end() || unranked)
    return fail(Code::data_loss,
                fmt::format("the compiled tokenizer of {} bytes is cut short or damaged", bytes.size()));
  return spec;
}

}  // namespace millrace::model
