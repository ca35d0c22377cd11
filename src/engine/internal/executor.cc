#include "engine/internal/executor.h"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/units.h"
#include "kernels/gemm_s8.h"
#include "model/kv_shape.h"

namespace millrace::engine {
namespace {

constexpr size_t kAlign = 64;
size_t aligned(size_t bytes) { return (bytes + kAlign - 1) / kAlign * kAlign; }
// Rows apart by a multiple of 4096 bytes share L1 sets; one more line between them spreads the rows of a
// tile.
int64_t spread_floats(int64_t width) {
  const int64_t stride = round_up(width, 16);
  return stride % 1024 == 0 ? stride + 16 : stride;
}
int64_t spread_bytes(int64_t width) {
  const int64_t stride = kernels::padded_k(width);
  return stride % 4096 == 0 ? stride + 64 : stride;
}

}  // namespace

kernels::KvShape kv_shape_of(const model::PackedModel& model, bool drafts) {
  kernels::KvShape shape = model::kv_shape_of(model.config(), model.type());
  if (drafts) ++shape.layers;
  return shape;
}

Executor::Executor(std::shared_ptr<const model::PackedModel> model, const ExecutorOptions& options)
    : model_(std::move(model)),
      config_(model_->config()),
      int8_(model_->type() == model::PackType::int8),
      isa_(options.isa ? *options.isa : kernels::active_isa()),
      rows_(kernels::row_kernels_at(isa_)),
      attention_(kernels::attention_kernels_at(isa_)),
      moe_(kernels::moe_kernels_at(isa_)),
      shape_(kv_shape_of(*model_, options.drafts)),
      max_rows_(options.max_rows),
      max_logit_rows_(options.max_logit_rows),
      record_experts_(options.record_experts),
      observer_(options.observer),
      mtp_(options.drafts && !model_->graph().mtp.empty() ? &model_->graph().mtp.front() : nullptr),
      max_positions_(options.max_positions),
      team_(options.cpus) {
  panel_rows_ = options.panel_rows > 0 ? options.panel_rows : 64;
  column_rows_max_ = options.column_rows_max != 0 ? options.column_rows_max : 80;
  if (team_.size() == 1) column_rows_max_ = -1;  // one thread has nobody to share columns with
  shared_rows_ = std::clamp(column_rows_max_, 0, max_rows_);
}

namespace {
// The model's head has model_norm_gain folded in. Channels that it hardly reads tell a guess nothing either:
// their quotients would drown the others in the row's INT8 scale, or be infinite.
std::vector<float> guess_gain_of(const model::MtpModule& mtp, int width) {
  std::vector<float> gain(static_cast<size_t>(width));
  float largest = 0;
  for (size_t i = 0; i < gain.size(); ++i) largest = std::max(largest, std::abs(mtp.model_norm_gain[i]));
  for (size_t i = 0; i < gain.size(); ++i) {
    const float folded = mtp.model_norm_gain[i];
    gain[i] = std::abs(folded) > model::kGuessGainLeast * largest ? mtp.head_norm_gain[i] / folded : 0;
  }
  return gain;
}
}  // namespace

Expected<std::unique_ptr<Executor>> Executor::create(std::shared_ptr<const model::PackedModel> model,
                                                     const ExecutorOptions& options) {
  if (options.cpus.empty() || options.max_rows < 1 || options.max_logit_rows < 1 || options.max_positions < 1)
    return invalid("the executor needs at least one thread, row, logit row and position");
  if (options.panel_rows % kernels::kPageTokens != 0) return invalid("panel_rows must be a multiple of 32");
  if (options.drafts && model->graph().mtp.empty())
    return invalid(fmt::format("{} has no MTP layer to guess with", model->config().name));
  std::unique_ptr<Executor> executor(new Executor(std::move(model), options));
  MR_TRY(executor->check_graph());
  const model::Graph& graph = executor->model_->graph();
  executor->build_mixtures(graph.modules);
  if (executor->mtp_ != nullptr) executor->build_mixtures(executor->mtp_->modules);
  size_t mixtures = 0;
  executor->model_walk_ = executor->build_walk(graph.modules, mixtures);
  if (executor->mtp_ != nullptr) {
    executor->mtp_walk_ = executor->build_walk(executor->mtp_->modules, mixtures);
    executor->mtp_walk_.head = &executor->mtp_->head;
    if (executor->int8_)
      executor->guess_gain_ = guess_gain_of(*executor->mtp_, executor->config_.hidden_size);
  }
  executor->embed_ = &std::get<model::EmbedModule>(graph.modules.front());
  MR_TRY(executor->allocate());
  return executor;
}

namespace {
kernels::RouterRule rule_of(const model::MoeConfig& moe, const model::RouterModule& router) {
  using Rule = kernels::RouterRule;
  return {
      .experts = moe.experts,
      .per_token = moe.experts_per_token,
      .score = moe.score == model::MoeConfig::Score::softmax ? Rule::Score::softmax : Rule::Score::sigmoid,
      .groups = moe.groups,
      .groups_kept = moe.groups_kept,
      .group_score = moe.group_score == model::MoeConfig::GroupScore::max ? Rule::GroupScore::max
                                                                          : Rule::GroupScore::top2_sum,
      .one_per_group = moe.one_per_group,
      .normalise = moe.normalise,
      .epsilon = moe.weight_epsilon,
      .scale = moe.weight_scale,
      .selection_bias = router.selection_bias,
      .expert_scale = router.expert_scale};
}
}  // namespace

void Executor::build_mixtures(std::span<const model::Module> modules) {
  for (const auto& module : modules) {
    if (const auto* router = std::get_if<model::RouterModule>(&module)) {
      mixtures_.push_back({.router = router,
                           .rule = rule_of(config_.moe, *router),
                           .index = static_cast<int>(mixtures_.size())});
    } else if (const auto* expert = std::get_if<model::ExpertModule>(&module)) {
      mixtures_.back().experts.push_back(expert);
    } else if (const auto* shared = std::get_if<model::SharedExpertModule>(&module)) {
      mixtures_.back().shared = shared;
    }
  }
}

// `mixtures`: of mixtures_, how many stand before these modules; counted on. Modules without an embedding are
// the MTP layer's, which start from joined states.
Executor::Walk Executor::build_walk(std::span<const model::Module> modules, size_t& mixtures) const {
  Walk walk;
  auto& stages = walk.stages;
  size_t last_attention = 0;
  stages.emplace_back();
  const auto add = [&stages](Op::Kind kind, const model::Module& module) {
    stages.back().ops.push_back({.kind = kind, .module = &module});
  };
  if (!std::holds_alternative<model::EmbedModule>(modules.front()))
    stages.back().ops.push_back({.kind = Op::Kind::join});
  for (const auto& module : modules) {
    if (std::holds_alternative<model::EmbedModule>(module)) {
      add(Op::Kind::embed, module);
    } else if (std::holds_alternative<model::AttentionModule>(module)) {
      add(Op::Kind::attention_in, module);
      stages.emplace_back();
      last_attention = stages.size() - 1;
      add(Op::Kind::attention_out, module);
    } else if (std::holds_alternative<model::MlaModule>(module)) {
      add(Op::Kind::mla_in, module);
      stages.emplace_back();
      last_attention = stages.size() - 1;
      add(Op::Kind::mla_out, module);
    } else if (std::holds_alternative<model::FfnModule>(module)) {
      add(Op::Kind::ffn, module);
    } else if (std::holds_alternative<model::RouterModule>(module)) {
      const Mixture* mixture = &mixtures_[mixtures++];
      stages.back().ops.push_back({.kind = Op::Kind::route, .mixture = mixture});
      stages.push_back({.mixture = mixture});
      stages.emplace_back();
    } else if (const auto* head = std::get_if<model::HeadModule>(&module)) {
      walk.head = head;
    }
  }
  for (size_t s = std::max<size_t>(last_attention, 1); s < stages.size(); ++s) stages[s].last = true;
  std::erase_if(stages, [](const Stage& stage) { return stage.ops.empty() && stage.mixture == nullptr; });
  return walk;
}

// Hands out aligned parts of a block; with no block, only adds up their sizes.
class Executor::Carver {
 public:
  explicit Carver(std::byte* memory) : memory_(memory) {}
  template <class T>
  T* take(size_t count) {
    T* at = memory_ == nullptr ? nullptr : reinterpret_cast<T*>(memory_ + used_);
    used_ += aligned(count * sizeof(T));
    return at;
  }
  float* floats(int64_t rows, int64_t stride) {
    return take<float>(static_cast<size_t>(kernels::padded_m(rows) * stride));
  }
  ActRows act_rows(bool int8, int64_t rows, int64_t q8_stride, int64_t float_stride) {
    if (!int8) return {.floats = floats(rows, float_stride), .float_stride = float_stride};
    return {.q8 = take<int8_t>(static_cast<size_t>(kernels::padded_m(rows) * q8_stride)),
            .q8_stride = q8_stride,
            .scale = floats(rows, 1)};
  }
  size_t used() const { return used_; }

 private:
  std::byte* memory_;
  size_t used_ = 0;
};

Executor::Scratch Executor::carve_scratch(Carver& carver, int rows, int mla_rows, int mla_heads) const {
  Scratch scratch;
  scratch.in = carver.act_rows(int8_, rows, act_stride_, float_stride_);
  scratch.attended = carver.floats(rows, attended_stride_);
  scratch.gate_up = carver.floats(rows, gate_up_stride_);
  if (config_.sandwich_norm) scratch.branch = carver.floats(rows, residual_stride_);
  if (!mixtures_.empty()) {
    if (int8_) scratch.normed = carver.floats(rows, residual_stride_);
    scratch.router = carver.floats(rows, router_stride_);
  }
  if (config_.mla.used()) {
    const int q_lora = config_.mla.q_lora_rank;
    scratch.latent = carver.act_rows(int8_, mla_rows, spread_bytes(q_lora), spread_floats(q_lora));
    if (q_lora > 0) scratch.q = carver.floats(mla_rows, int64_t{mla_heads} * config_.head_dim);
    scratch.query = carver.floats(mla_rows, int64_t{mla_heads} * shape_.key_dim);
    scratch.mixed = carver.floats(mla_rows, int64_t{mla_heads} * shape_.value_dim);
  }
  if (mtp_ != nullptr) {
    scratch.joined = carver.floats(mla_rows, joined_float_stride_);
    scratch.joined_in = int8_ ? carver.act_rows(true, mla_rows, joined_act_stride_, 0)
                              : ActRows{.floats = scratch.joined, .float_stride = joined_float_stride_};
  }
  scratch.attention = carver.take<std::byte>(kernels::attention_scratch_bytes(shape_, config_.q_heads));
  return scratch;
}

Expected<void> Executor::allocate() {
  const auto& moe = config_.moe;
  const auto& mla = config_.mla;
  const int q_width = config_.q_heads * config_.head_dim, kv_width = config_.kv_heads * config_.head_dim;
  const int attended = mla.used() ? config_.q_heads * mla.value_head_dim : q_width;
  const int widest_ffn = std::max({config_.ffn_size, moe.ffn_size, moe.shared_ffn_size});
  const int widest =
      std::max({config_.hidden_size, attended, config_.ffn_size, mla.nope_head_dim, mla.kv_lora_rank});
  act_stride_ = spread_bytes(widest);
  float_stride_ = spread_floats(widest);
  residual_stride_ = spread_floats(config_.hidden_size);
  mla_q_width_ = mla.q_lora_rank > 0 ? mla.q_lora_rank : q_width;
  qkv_stride_ = spread_floats(mla.used() ? mla_q_width_ + shape_.key_dim : q_width + 2 * kv_width);
  attended_stride_ = spread_floats(attended);
  gate_up_stride_ = spread_floats(2 * widest_ffn);
  router_stride_ = spread_floats(moe.experts);
  attention_scale_ = config_.attention_scale != 0 ? config_.attention_scale
                                                  : 1.0f / std::sqrt(static_cast<float>(config_.head_dim));
  logits_stride_ = spread_floats(kernels::padded_n(config_.vocab_size));
  const auto floats = [](int64_t rows, int64_t stride) {
    return static_cast<size_t>(kernels::padded_m(rows) * stride) * sizeof(float);
  };
  residual_ = MR_TRY(Buffer::allocate(floats(max_rows_, residual_stride_)));
  qkv_ = MR_TRY(Buffer::allocate(floats(max_rows_, qkv_stride_)));
  logits_ = MR_TRY(Buffer::allocate(floats(max_logit_rows_, logits_stride_)));
  if (mtp_ != nullptr) {
    joined_float_stride_ = spread_floats(int64_t{2} * config_.hidden_size);
    joined_act_stride_ = spread_bytes(int64_t{2} * config_.hidden_size);
    mtp_residual_ = MR_TRY(Buffer::allocate(floats(max_rows_, residual_stride_)));
    guess_state_ = MR_TRY(Buffer::allocate(floats(max_logit_rows_, residual_stride_)));
    guesses_.resize(static_cast<size_t>(max_logit_rows_));
    guess_probabilities_.resize(static_cast<size_t>(max_logit_rows_));
    guess_parts_.resize(static_cast<size_t>(team_.size()) * static_cast<size_t>(max_logit_rows_));
  }
  rope_ = MR_TRY(
      RopeTable::create(config_.rope, mla.used() ? mla.rope_head_dim : config_.head_dim, max_positions_));

  // A thread's scratch serves panels, and the head's rows in shared_ (rows of a step by columns, or wanted
  // rows).
  const int thread_rows = std::min(panel_rows_, max_rows_);
  const int shared_rows = std::max(shared_rows_, max_logit_rows_);
  // A panel's queries and latents of these heads together take about a MiB.
  const int64_t head_floats = config_.head_dim + shape_.key_dim + shape_.value_dim;
  mla_panel_heads_ =
      static_cast<int>(std::clamp<int64_t>((1 << 20) / (thread_rows * head_floats * 4), 1, config_.q_heads));
  const auto carve = [&](Carver carver) {
    scratch_.clear();
    for (int thread = 0; thread < team_.size(); ++thread) {
      scratch_.push_back(carve_scratch(carver, thread_rows, thread_rows, mla_panel_heads_));
      carver.take<std::byte>(4096);  // apart in the cache's sets
    }
    shared_ = carve_scratch(carver, shared_rows, shared_rows_, config_.q_heads);
    return carver.used();
  };
  scratch_memory_ = MR_TRY(Buffer::allocate(carve(Carver(nullptr))));
  carve(Carver(scratch_memory_.data()));
  if (!mixtures_.empty()) MR_TRY(allocate_mixtures());

  counters_ = 2 * std::max(model_walk_.stages.size(), mtp_walk_.stages.size());
  next_ = std::make_unique<std::atomic<int>[]>(counters_);
  panels_.reserve(static_cast<size_t>(max_rows_));
  pieces_.reserve(static_cast<size_t>(max_rows_) * 2);
  return {};
}

// Of the order of, on the INT8 path, max_rows * (hidden + experts_per_token * expert width) bytes, and for
// each row of a step by columns 8 * experts_per_token * expert width; for DeepSeek-V3 and 512 rows: 13 MB and
// 11 MB.
Expected<void> Executor::allocate_mixtures() {
  const auto& moe = config_.moe;
  const int k = moe.experts_per_token;
  const int64_t pairs = int64_t{max_rows_} * k, column_pairs = int64_t{shared_rows_} * k;
  const bool shared = moe.shared_ffn_size > 0;
  const int alone_rows = std::clamp(static_cast<int>(kAloneFloats / config_.hidden_size), 1, panel_rows_);
  const int64_t alone_pairs = kAloneFloats / moe.ffn_size;
  // Expert outputs of a range of columns should stay in L2, and a range be wide enough for the matrix unit.
  constexpr int64_t kOutFloats = (int64_t{5} << 20) / 4 / sizeof(float);
  expert_out_floats_ = std::max((pairs + max_rows_) * kernels::kGemmNBlock, kOutFloats);
  expert_gate_up_stride_ = spread_floats(2 * moe.ffn_size);
  shared_gate_up_stride_ = spread_floats(2 * moe.shared_ffn_size);
  const auto carve = [&](Carver carver) {
    const auto choices = [&](int rows, MixtureRows& to) {
      to.chosen = carver.take<int32_t>(static_cast<size_t>(rows) * static_cast<size_t>(k));
      to.weight = carver.floats(rows, k);
      to.shared_gate = carver.floats(rows, 1);
    };
    mixture_rows_.in = carver.act_rows(int8_, max_rows_, spread_bytes(config_.hidden_size), float_stride_);
    choices(max_rows_, mixture_rows_);
    hidden_ = carver.act_rows(int8_, pairs, spread_bytes(moe.ffn_size), spread_floats(moe.ffn_size));
    expert_gate_up_ = carver.floats(column_pairs, expert_gate_up_stride_);
    if (shared) {
      shared_hidden_ = carver.act_rows(int8_, max_rows_, spread_bytes(moe.shared_ffn_size),
                                       spread_floats(moe.shared_ffn_size));
      shared_gate_up_ = carver.floats(shared_rows_, shared_gate_up_stride_);
    }
    if (config_.sandwich_norm) mixture_sum_ = carver.floats(max_rows_, residual_stride_);
    for (size_t thread = 0; thread < thread_mixture_.size(); ++thread) {
      ThreadMixture& own = thread_mixture_[thread];
      choices(alone_rows, own.rows);
      own.rows.in = carver.act_rows(int8_, alone_rows, spread_bytes(config_.hidden_size), float_stride_);
      own.hidden =
          carver.act_rows(int8_, alone_pairs, spread_bytes(moe.ffn_size), spread_floats(moe.ffn_size));
      if (shared)
        own.shared_hidden = carver.act_rows(int8_, alone_rows, spread_bytes(moe.shared_ffn_size),
                                            spread_floats(moe.shared_ffn_size));
      own.parts = carver.take<const float*>(static_cast<size_t>(k) + 1);
      own.weights = carver.floats(1, k + 1);
      own.out = carver.floats(1, expert_out_floats_ / kernels::kGemmMPad);
    }
    return carver.used();
  };
  thread_mixture_.resize(static_cast<size_t>(team_.size()));
  mixture_memory_ = MR_TRY(Buffer::allocate(carve(Carver(nullptr))));
  carve(Carver(mixture_memory_.data()));
  for (ThreadMixture& own : thread_mixture_) own.groups.reserve(max_rows_, k, moe.experts);
  all_rows_.resize(static_cast<size_t>(max_rows_));
  std::iota(all_rows_.begin(), all_rows_.end(), 0);
  const size_t counts = mixtures_.size() * static_cast<size_t>(moe.experts);
  expert_tokens_ = std::make_unique<std::atomic<uint64_t>[]>(counts);
  if (record_experts_) recorded_.resize(mixtures_.size() * static_cast<size_t>(pairs));
  return {};
}

void Executor::run(const StepBatch& batch, std::byte* pool) {
  pool_ = pool;
  walk_ = &model_walk_;
  stream_ = residual_.as<float>();
  plan(batch);
  team_.run([this](int thread) {
    if (by_columns_) {
      run_by_columns(thread);
    } else {
      run_by_rows(thread);
    }
    if (!batch_.logit_rows.empty()) run_head(thread);
  });
}

void Executor::parallel(int count, const std::function<void(int, int)>& f) {
  if (count == 1) {
    const FlushDenormals flush;
    return f(0, 0);
  }
  std::atomic<int> next{0};
  team_.run([&](int thread) {
    for (int index; (index = next.fetch_add(1, std::memory_order_relaxed)) < count;) f(index, thread);
  });
}

}  // namespace millrace::engine
