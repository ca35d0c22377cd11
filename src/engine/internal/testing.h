// Test doubles of the engine's tests: a byte tokenizer, a tiny random model, and a fake step model. Tests
// only.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "base/hash.h"
#include "base/random.h"
#include "engine/internal/engine_core.h"
#include "engine/internal/step_model.h"
#include "model/packed_model.h"

namespace millrace::engine::testing {

inline constexpr int kVocab = 320;
inline constexpr TokenId kEos = 256;

// Ids 0 to 255 are bytes, 256 is the special <eos>, the rest are two letters each.
class ByteTokenizer final : public model::Tokenizer {
 public:
  ByteTokenizer() {
    for (int id = 0; id < kVocab; ++id) {
      if (id < 256) {
        pieces_.emplace_back(1, static_cast<char>(id));
      } else if (id == kEos) {
        pieces_.emplace_back("<eos>");
      } else {
        pieces_.push_back({static_cast<char>('a' + id % 7), static_cast<char>('a' + id % 5)});
      }
    }
    spec_.eos = kEos;
    spec_.added.push_back({.id = kEos, .text = "<eos>", .special = true});
  }
  using Tokenizer::encode;
  Expected<void> encode(std::string_view text, const model::EncodeOptions& options, size_t max_tokens,
                        std::vector<TokenId>& out) const override {
    while (!text.empty()) {
      if (max_tokens > 0 && out.size() >= max_tokens) return fail(Code::out_of_range, "too many tokens");
      const bool special = options.parse_special && text.starts_with("<eos>");
      out.push_back(special ? kEos : static_cast<unsigned char>(text[0]));
      text.remove_prefix(special ? 5 : 1);
    }
    return {};
  }
  std::string_view token_bytes(TokenId id) const override {
    return id >= 0 && id < kVocab ? std::string_view(pieces_[static_cast<size_t>(id)]) : std::string_view();
  }
  bool is_special(TokenId id) const override { return id == kEos; }
  TokenId id_of(std::string_view text) const override { return text == "<eos>" ? kEos : -1; }
  int vocab_size() const override { return kVocab; }
  const model::TokenizerSpec& spec() const override { return spec_; }

 private:
  std::vector<std::string> pieces_;
  model::TokenizerSpec spec_;
};

// The same vocabulary as a spec that Tokenizer::create takes (bytes in GPT-2's alphabet).
inline model::TokenizerSpec byte_spec() {
  model::TokenizerSpec spec;
  int extra = 256;
  for (int byte = 0; byte < 256; ++byte) {
    const bool shown = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
    const int code_point = shown ? byte : extra++;
    std::string text;
    if (code_point < 128) {
      text += static_cast<char>(code_point);
    } else {
      text += static_cast<char>(0xC0 | code_point >> 6);
      text += static_cast<char>(0x80 | (code_point & 63));
    }
    spec.tokens.push_back(text);
  }
  spec.tokens.emplace_back("<eos>");
  for (int id = 257; id < kVocab; ++id) spec.tokens.push_back("zq" + std::to_string(id));
  spec.added.push_back({.id = kEos, .text = "<eos>", .special = true});
  spec.eos = kEos;
  return spec;
}

struct TinySizes {
  int layers = 2, hidden = 96, q_heads = 6, kv_heads = 3, head_dim = 32, ffn = 160;
  int hadamard_block = 32;
  bool qkv_bias = false, qk_norm = false;
  int64_t max_position = 2048;
  bool sandwich_norm = false;
  // Mixtures of experts from layer `dense_layers` on, where moe.used().
  model::MoeConfig moe;
  int dense_layers = 1;
  model::MlaConfig mla;
  bool mtp = false;  // a layer that guesses, like the last one
};

// DeepSeek-V3's switches: groups of experts, a selection bias, a shared expert.
inline TinySizes tiny_mixture() {
  TinySizes sizes{.layers = 3};
  sizes.moe = {.experts = 8,
               .experts_per_token = 3,
               .ffn_size = 64,
               .shared_ffn_size = 96,
               .score = model::MoeConfig::Score::sigmoid,
               .selection_bias = true,
               .groups = 4,
               .groups_kept = 2,
               .group_score = model::MoeConfig::GroupScore::top2_sum,
               .normalise = true,
               .weight_scale = 2.5f};
  return sizes;
}
// And its latent attention.
inline TinySizes tiny_deepseek() {
  TinySizes sizes = tiny_mixture();
  sizes.kv_heads = 1;
  sizes.head_dim = 48;
  sizes.mla = {
      .kv_lora_rank = 64, .q_lora_rank = 80, .nope_head_dim = 32, .rope_head_dim = 16, .value_head_dim = 32};
  return sizes;
}
// Pangu Pro's choice (one expert of each group, scaled), Qwen2-MoE's gated shared expert, Pangu Ultra's
// sandwich norm and queries straight from the stream, at once.
inline TinySizes tiny_other_switches() {
  TinySizes sizes = tiny_deepseek();
  sizes.sandwich_norm = true;
  sizes.mla.q_lora_rank = 0;
  sizes.moe = {.experts = 9,
               .experts_per_token = 3,
               .ffn_size = 64,
               .shared_ffn_size = 32,
               .shared_gate = true,
               .groups = 3,
               .groups_kept = 3,
               .one_per_group = true,
               .expert_scale = true};
  return sizes;
}

// A model with random weights, in memory; the INT8 and the float32 form come from the same floats.
class TinyModel final : public model::PackedModel {
 public:
  explicit TinyModel(model::PackType type, TinySizes sizes = {}, uint32_t seed = 1)
      : type_(type), random_(seed) {
    config_.name = "tiny";
    config_.vocab_size = kVocab;
    config_.hidden_size = sizes.hidden;
    config_.layers = sizes.layers;
    config_.q_heads = sizes.q_heads;
    config_.kv_heads = sizes.kv_heads;
    config_.head_dim = sizes.head_dim;
    config_.ffn_size = sizes.ffn;
    config_.max_position = sizes.max_position;
    config_.eos = {kEos};
    spec_ = byte_spec();
    const bool int8 = type == model::PackType::int8;
    auto embedding = floats(size_t(kVocab) * size_t(sizes.hidden), 1.0f);
    model::EmbedModule embed{.vocab = kVocab, .width = sizes.hidden};
    if (int8) {
      std::vector<uint16_t>& bits = bf16_.emplace_back();
      for (const float value : embedding)
        bits.push_back(static_cast<uint16_t>(std::bit_cast<uint32_t>(value) >> 16));
      embed.bf16 = bits.data();
    } else {
      embed.f32 = keep(std::move(embedding));
    }
    modules_->emplace_back(embed);
    config_.mla = sizes.mla;
    config_.moe = sizes.moe;
    config_.sandwich_norm = sizes.sandwich_norm;
    for (int layer = 0; layer < sizes.layers; ++layer) {
      add_layer(layer, sizes);
      config_.moe.layers.push_back(is_mixture(layer, sizes));
    }
    const model::HeadModule model_head = head(sizes);
    modules_->emplace_back(model_head);
    if (!sizes.mtp) return;
    model::MtpModule& mtp = graph_.mtp.emplace_back();
    mtp.layer = sizes.layers;
    mtp.hadamard_block = int8 ? sizes.hadamard_block : 1;
    auto folded = floats(size_t(sizes.hidden), 0.2f, 1.0f);
    folded[3] = 1e-30f;  // a channel that the head does not read: its quotient must not drown the others
    mtp.model_norm_gain = keep(std::move(folded));
    mtp.embed_norm_gain = gain(sizes.hidden);
    mtp.hidden_norm_gain = gain(sizes.hidden);
    mtp.eh = linear(sizes.hidden, 2 * sizes.hidden);
    modules_ = &mtp.modules;
    add_layer(sizes.layers, sizes);
    mtp.head_norm_gain = gain(sizes.hidden);
    mtp.head = {.norm_gain = int8 ? nullptr : mtp.head_norm_gain, .head = model_head.head};
    config_.mtp_layers = 1;
  }

  const model::ModelConfig& config() const override { return config_; }
  model::PackType type() const override { return type_; }
  const model::Graph& graph() const override { return graph_; }
  const model::TokenizerSpec& tokenizer_spec() const override { return spec_; }
  const std::string& chat_template() const override { return template_; }
  size_t size_bytes() const override { return 0; }
  uint64_t fingerprint() const override { return 1; }
  void bring_into_memory(size_t) const override {}
  std::string_view section_at(const void*) const override { return {}; }

 private:
  static bool is_mixture(int layer, const TinySizes& sizes) {
    return sizes.moe.used() && layer >= sizes.dense_layers;
  }
  void add_layer(int layer, const TinySizes& sizes) {
    if (sizes.mla.used()) {
      add_mla(layer, sizes);
    } else {
      add_attention(layer, sizes);
    }
    if (is_mixture(layer, sizes)) return add_mixture(layer, sizes);
    model::FfnModule ffn{.layer = layer};
    ffn.norm_gain = gain(sizes.hidden);
    add_ffn(ffn, sizes.ffn, sizes);
    ffn.post_norm_gain = post_norm(sizes);
    modules_->emplace_back(ffn);
  }
  model::HeadModule head(const TinySizes& sizes) {
    model::HeadModule head;
    head.norm_gain = gain(sizes.hidden);
    head.head = linear(kVocab, sizes.hidden);
    return head;
  }
  std::vector<float> floats(size_t count, float spread, float middle = 0) {
    std::normal_distribution<float> normal(middle, spread);
    std::vector<float> values(count);
    for (float& value : values) value = normal(random_);
    return values;
  }
  const float* gain(int width) { return keep(floats(size_t(width), 0.2f, 1.0f)); }
  const float* post_norm(const TinySizes& sizes) {
    return sizes.sandwich_norm ? gain(sizes.hidden) : nullptr;
  }
  void add_attention(int layer, const TinySizes& sizes) {
    const int q = sizes.q_heads * sizes.head_dim, kv = sizes.kv_heads * sizes.head_dim;
    model::AttentionModule attention{.layer = layer};
    attention.norm_gain = gain(sizes.hidden);
    attention.qkv = linear(q + 2 * kv, sizes.hidden);
    if (sizes.qkv_bias) attention.qkv.bias = keep(floats(size_t(q + 2 * kv), 0.5f));
    if (sizes.qk_norm) {
      attention.q_norm_gain = keep(floats(size_t(sizes.head_dim), 0.3f, 1.0f));
      attention.k_norm_gain = keep(floats(size_t(sizes.head_dim), 0.3f, 1.0f));
    }
    attention.o = linear(sizes.hidden, q);
    attention.post_norm_gain = post_norm(sizes);
    modules_->emplace_back(attention);
  }
  void add_mla(int layer, const TinySizes& sizes) {
    const auto& mla = sizes.mla;
    const int q = sizes.q_heads * sizes.head_dim;
    model::MlaModule module{.layer = layer};
    module.norm_gain = gain(sizes.hidden);
    module.in = linear((mla.q_lora_rank > 0 ? mla.q_lora_rank : q) + mla.kv_lora_rank + mla.rope_head_dim,
                       sizes.hidden);
    if (mla.q_lora_rank > 0) {
      module.q_norm_gain = gain(mla.q_lora_rank);
      module.q_up = linear(q, mla.q_lora_rank);
    }
    module.latent_norm_gain = gain(mla.kv_lora_rank);
    module.k_up = linear(sizes.q_heads * mla.kv_lora_rank, mla.nope_head_dim);
    module.v_up = linear(sizes.q_heads * mla.value_head_dim, mla.kv_lora_rank);
    module.o = linear(sizes.hidden, sizes.q_heads * mla.value_head_dim);
    module.post_norm_gain = post_norm(sizes);
    modules_->emplace_back(module);
  }
  template <class Module>
  void add_ffn(Module& ffn, int width, const TinySizes& sizes) {
    ffn.gate_up = linear(2 * width, sizes.hidden);
    ffn.hadamard_block = type_ == model::PackType::int8 ? sizes.hadamard_block : 1;
    ffn.down = linear(sizes.hidden, width);
  }
  void add_mixture(int layer, const TinySizes& sizes) {
    const auto& moe = sizes.moe;
    const auto experts = size_t(moe.experts), hidden = size_t(sizes.hidden);
    model::RouterModule router{.layer = layer};
    router.norm_gain = gain(sizes.hidden);
    router.weight = keep(floats(experts * hidden, 1.5f / std::sqrt(static_cast<float>(hidden))));
    if (moe.selection_bias) router.selection_bias = keep(floats(experts, 0.1f));
    if (moe.expert_scale) router.expert_scale = gain(moe.experts);
    router.post_norm_gain = post_norm(sizes);
    modules_->emplace_back(router);
    for (int number = 0; number < moe.experts; ++number) {
      model::ExpertModule expert{.layer = layer, .expert = number};
      add_ffn(expert, moe.ffn_size, sizes);
      modules_->emplace_back(expert);
    }
    if (moe.shared_ffn_size == 0) return;
    model::SharedExpertModule shared{.layer = layer};
    add_ffn(shared, moe.shared_ffn_size, sizes);
    if (moe.shared_gate) shared.gate = keep(floats(hidden, 0.2f));
    modules_->emplace_back(shared);
  }
  const float* keep(std::vector<float> values) { return kept_.emplace_back(std::move(values)).data(); }
  model::Linear linear(int n, int k) {
    auto weights = floats(size_t(n) * size_t(k), 1.5f / std::sqrt(static_cast<float>(k)));
    model::Linear linear{.n = n, .k = k};
    if (type_ == model::PackType::float32) {
      linear.f32 = keep(std::move(weights));
      return linear;
    }
    auto& tiles = buffers_.emplace_back(Buffer::allocate(kernels::weights_s8_tile_bytes(n, k)).value());
    auto& scale = kept_.emplace_back(size_t(kernels::padded_n(n)));
    auto& sum = sums_.emplace_back(size_t(kernels::padded_n(n)));
    kernels::pack_s8(weights.data(), k, n, k, 0, n, tiles.as<int8_t>(), scale.data(), sum.data());
    linear.s8 = {.tiles = tiles.as<int8_t>(), .scale = scale.data(), .sum = sum.data(), .n = n, .k = k};
    return linear;
  }

  const model::PackType type_;
  std::mt19937 random_;
  model::ModelConfig config_;
  model::Graph graph_;
  std::vector<model::Module>* modules_ = &graph_.modules;  // where layers are added
  model::TokenizerSpec spec_;
  std::string template_;
  std::vector<Buffer> buffers_;
  std::vector<std::vector<float>> kept_;
  std::vector<std::vector<int32_t>> sums_;
  std::vector<std::vector<uint16_t>> bf16_;
};

// "Computes" by writing each token into its place in its page, and makes logits from a hash of all tokens
// that the page table shows for a row. A page that is shared wrongly, freed early or skipped changes what it
// says.
class FakeModel final : public StepModel {
 public:
  // A page: its tokens, then what the MTP layer was told of its positions.
  static constexpr size_t kPageBytes = 2 * kernels::kPageTokens * sizeof(TokenId);
  explicit FakeModel(int max_rows, int max_logit_rows, bool drafts = false)
      : max_rows_(max_rows),
        max_logit_rows_(max_logit_rows),
        drafts_(drafts),
        logits_(size_t(max_logit_rows) * kVocab) {}
  int vocab_size() const override { return kVocab; }
  int max_rows() const override { return max_rows_; }
  int max_logit_rows() const override { return max_logit_rows_; }
  int threads() const override { return 1; }
  const float* logits(int index) const override { return logits_.data() + size_t(index) * kVocab; }
  void parallel(int count, const std::function<void(int, int)>& f) override {
    for (int index = 0; index < count; ++index) f(index, 0);
  }
  static void logits_of(std::span<const TokenId> tokens, float* out) {
    const uint64_t key = hash64(std::as_bytes(tokens));
    for (uint64_t i = 0; i < kVocab; ++i) out[i] = static_cast<float>(8 * uniform_at(key, i) - 4);
  }
  void run(const StepBatch& batch, std::byte* pool) override {
    MR_CHECK(static_cast<int>(batch.tokens.size()) <= max_rows_, "too many rows");
    MR_CHECK(static_cast<int>(batch.logit_rows.size()) <= max_logit_rows_, "too many logit rows");
    rows += batch.tokens.size();
    states_.assign(batch.tokens.size(), {});
    MR_CHECK(batch.state_rows.empty() || std::ranges::includes(batch.state_rows, batch.logit_rows),
             "rows with logits, and no state");
    const auto slot = [&](const StepSegment& segment, int64_t position) {
      return slot_at(segment, position, pool);
    };
    for (const auto& segment : batch.segments)
      for (int row = 0; row < segment.rows; ++row) {
        const int32_t number = segment.row_begin + row;
        *slot(segment, segment.first_position + row) = batch.tokens[size_t(number)];
        if (!std::ranges::binary_search(batch.state_rows, number)) continue;
        for (int64_t p = 0; p <= segment.first_position + row; ++p)
          states_[size_t(number)].push_back(*slot(segment, p));
      }
    int index = 0;
    for (const int32_t row : batch.logit_rows) {
      for (const auto& segment : batch.segments) {
        if (row < segment.row_begin || row >= segment.row_begin + segment.rows) continue;
        std::vector<TokenId> seen;
        for (int64_t p = 0; p <= segment.first_position + row - segment.row_begin; ++p)
          seen.push_back(*slot(segment, p));
        logits_of(last_of(seen), logits_.data() + size_t(index) * kVocab);
      }
      ++index;
    }
  }
  bool drafts() const override { return drafts_; }
  // Guesses what the model would say, but for one in four: some other token. A state is the tokens before it.
  void draft(const DraftBatch& batch, std::byte* pool) override {
    MR_CHECK(static_cast<int>(batch.tokens.size()) <= max_rows_, "too many rows");
    MR_CHECK(static_cast<int>(batch.guess_rows.size()) <= max_logit_rows_, "too many guesses");
    std::vector<std::vector<TokenId>> now;
    for (size_t row = 0; row < batch.tokens.size(); ++row) {
      now.push_back((batch.again ? guess_states_ : states_).at(size_t(batch.states[row])));
      MR_CHECK(!now.back().empty(), "a state that was not kept");
      now.back().push_back(batch.tokens[row]);
    }
    for (const auto& segment : batch.segments)
      for (int row = 0; row < segment.rows; ++row) {
        const auto& seen = now[size_t(segment.row_begin + row)];
        const int64_t position = segment.first_position + row;
        *(slot_at(segment, position, pool) + kernels::kPageTokens) = seen.back();
        // All that it attends to is of this sequence, but for a shared page's end, whose next token may be
        // another's.
        const auto skipped = std::ssize(seen) - 2 - position;
        MR_CHECK(skipped >= 0 && skipped % kernels::kPageTokens == 0, "a window that starts within a page");
        for (int64_t p = 0; p <= position; ++p)
          if (p % kernels::kPageTokens != kernels::kPageTokens - 1)
            MR_CHECK(*(slot_at(segment, p, pool) + kernels::kPageTokens) == seen[size_t(skipped + p + 1)],
                     "attention to what is not this sequence's");
      }
    guess_states_.clear();
    guesses_.clear();
    std::vector<float> logits(kVocab);
    for (const int32_t row : batch.guess_rows) {
      const auto& seen = guess_states_.emplace_back(now[size_t(row)]);
      logits_of(last_of(seen), logits.data());
      const auto best = std::ranges::max_element(logits) - logits.begin();
      const bool wrong = hash64(std::as_bytes(std::span(seen)), 5) % 4 == 0;
      guesses_.push_back(static_cast<TokenId>((best + (wrong ? 1 : 0)) % kVocab));
    }
    std::ranges::fill(logits_, 0.0f);  // as the real one overwrites them
    guessed += guesses_.size();
  }
  TokenId guess(int index) const override { return guesses_.at(size_t(index)); }
  size_t sees = SIZE_MAX;  // the last tokens that decide what it says: if few, it soon repeats itself
  uint64_t rows = 0;       // computed so far
  uint64_t guessed = 0;    // likewise

 private:
  std::span<const TokenId> last_of(const std::vector<TokenId>& seen) const {
    return std::span(seen).last(std::min(sees, seen.size()));
  }
  static TokenId* slot_at(const StepSegment& segment, int64_t position, std::byte* pool) {
    const int32_t page = segment.pages[position / kernels::kPageTokens];
    return reinterpret_cast<TokenId*>(pool + size_t(page) * kPageBytes) + position % kernels::kPageTokens;
  }
  const int max_rows_, max_logit_rows_;
  const bool drafts_;
  std::vector<float> logits_;
  std::vector<std::vector<TokenId>> states_, guess_states_;  // tokens up to there
  std::vector<TokenId> guesses_;
};

// What a request's events add up to.
struct Reply {
  std::vector<TokenId> tokens;
  std::vector<TokenOut> outs;
  std::string text;
  FinishReason finish = FinishReason::none;
  std::string stop_match;
  TokenId stop_token = -1;
  Status error;
  int64_t prompt_tokens = -1, cached_tokens = -1;
  std::vector<TokenId> prompt_ids;
  std::vector<TokenOut> prompt_logprobs;
  int events = 0, finishes = 0, announcements = 0;
};
class Replies {
 public:
  void take(std::span<GenerateEvent> events) {
    for (auto& event : events) {
      Reply& reply = replies_[event.id.value];
      ++reply.events;
      if (event.has_prompt) {
        ++reply.announcements;
        reply.prompt_tokens = event.prompt_tokens;
        reply.cached_tokens = event.cached_tokens;
        reply.prompt_ids = event.prompt_ids;
        reply.prompt_logprobs = event.prompt_logprobs;
      }
      for (auto& token : event.tokens) {
        reply.tokens.push_back(token.token);
        reply.outs.push_back(token);
      }
      reply.text += event.text;
      if (event.finish == FinishReason::none) continue;
      ++reply.finishes;
      reply.finish = event.finish;
      reply.stop_match = event.stop_match;
      reply.stop_token = event.stop_token;
      reply.error = event.error;
    }
  }
  Reply& operator[](uint64_t id) { return replies_[id]; }
  size_t size() const { return replies_.size(); }

 private:
  std::map<uint64_t, Reply> replies_;
};

inline std::vector<TokenId> random_tokens(std::mt19937& random, size_t count) {
  std::vector<TokenId> tokens(count);
  for (TokenId& token : tokens) token = static_cast<TokenId>(random() % 256);
  return tokens;
}

}  // namespace millrace::engine::testing
