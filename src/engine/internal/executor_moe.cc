// A mixture of experts over all rows of a step.
//
//   route    norm, the router's logits, the choice: by panels, or with the columns of the router shared out
//   group    rows sorted by expert, by every thread for itself
//   up       by rows, or where many experts are picked: a task is an expert's (or the shared expert's) next
//            rows, through gate_up and the activation
//            by columns: the columns of all picked experts' gate_up in one sequence, shared out evenly
//   down     tasks are ranges of the stream's columns: every expert's product over that range into scratch,
//            then a row's outputs are added in the order of its slots, the shared expert's last
// A weight is read once a step (by rows: once for each panel_rows_ of an expert's rows), and only by what
// picked it. Slot order is what makes the sum's bits independent of where experts run.
#include <algorithm>
#include <cstring>

#include "engine/internal/executor.h"
#include "engine/internal/shares.h"

namespace millrace::engine {

// Normed rows, for the router and for the experts, and what the router makes of them.
void Executor::route(const Mixture& mixture, const float* x, int rows, const Scratch& scratch,
                     const MixtureRows& to, int to_row) const {
  normed_rows(mixture, x, rows, scratch.normed, to.in.at(to_row));
  router_logits(mixture, router_input(scratch.normed, to.in.at(to_row)), rows, {0, config_.moe.experts},
                scratch.router);
  choose(mixture, scratch.router, router_input(scratch.normed, to.in.at(to_row)), rows, to, to_row);
}

void Executor::normed_rows(const Mixture& mixture, const float* x, int rows, float* normed,
                           const ActRows& to) const {
  if (rows == 0) return;
  const ActRows out = router_input(normed, to);
  rows_.rmsnorm(x, residual_stride_, mixture.router->norm_gain, config_.rms_norm_eps, rows,
                config_.hidden_size, out.floats, out.float_stride);
  if (int8_) quantised(out.floats, out.float_stride, config_.hidden_size, rows, to);
}

// Normed rows in floats: on the float path the experts read them too.
Executor::ActRows Executor::router_input(float* normed, const ActRows& experts_in) const {
  return int8_ ? ActRows{.floats = normed, .float_stride = residual_stride_} : experts_in;
}

void Executor::router_logits(const Mixture& mixture, const ActRows& normed, int rows, Range experts,
                             float* logits) const {
  kernels::gemm_f32_at(isa_, {.a = normed.floats,
                              .a_stride = normed.float_stride,
                              .m = rows,
                              .w = mixture.router->weight,
                              .n = config_.moe.experts,
                              .k = config_.hidden_size,
                              .n_begin = experts.begin,
                              .n_end = experts.end,
                              .out = logits,
                              .out_stride = router_stride_});
}

void Executor::choose(const Mixture& mixture, const float* logits, const ActRows& normed, int rows,
                      const MixtureRows& to, int to_row) const {
  const int64_t first = int64_t{to_row} * mixture.rule.per_token;
  moe_.route(mixture.rule, logits, router_stride_, rows, to.chosen + first, to.weight + first);
  if (mixture.shared == nullptr || mixture.shared->gate == nullptr) return;
  float* gate = to.shared_gate + to_row;
  kernels::gemm_f32_at(isa_, {.a = normed.floats,
                              .a_stride = normed.float_stride,
                              .m = rows,
                              .w = mixture.shared->gate,
                              .n = 1,
                              .k = config_.hidden_size,
                              .n_begin = 0,
                              .n_end = 1,
                              .out = gate,
                              .out_stride = 1});
  moe_.sigmoid(gate, rows, gate);
}

Executor::MixtureRows Executor::columns_route(const Mixture& mixture, int thread) {
  const int rows = static_cast<int>(batch_.tokens.size());
  const Range mine = share(rows, thread, team_.size());
  const Range experts = share(config_.moe.experts, thread, team_.size());
  const Scratch& own = scratch_[static_cast<size_t>(thread)];
  const bool own_rows = alone(rows, config_.hidden_size);
  const MixtureRows to = own_rows ? thread_mixture_[static_cast<size_t>(thread)].rows : mixture_rows_;
  float* normed = own_rows ? own.normed : shared_.normed;
  const auto normed_at = [&](int row) { return int8_ ? normed + row * residual_stride_ : nullptr; };
  const Range norms = own_rows ? Range{0, rows} : mine;
  normed_rows(mixture, residual(norms.begin), norms.size(), normed_at(norms.begin), to.in.at(norms.begin));
  if (!own_rows) team_.barrier();
  // A small router too is cheaper to read twice than to wait for.
  const bool own_router =
      own_rows && int64_t{rows} * config_.moe.experts * config_.hidden_size <= 8 * kAloneFloats;
  float* logits = own_router ? own.router : shared_.router;
  router_logits(mixture, router_input(normed, to.in), rows,
                own_router ? Range{0, config_.moe.experts} : experts, logits);
  if (!own_router) team_.barrier();
  choose(mixture, logits + norms.begin * router_stride_,
         router_input(normed_at(norms.begin), to.in.at(norms.begin)), norms.size(), to, norms.begin);
  if (!own_rows) team_.barrier();
  return to;
}

// By columns: whether a step's activations are so small that every thread makes them for itself.
bool Executor::activates_alone(int rows) const {
  const auto& moe = config_.moe;
  return int64_t{rows} * moe.experts_per_token * moe.ffn_size + int64_t{rows} * moe.shared_ffn_size <=
         kAloneFloats / 4;  // an activation costs more than a norm
}

// A step's picked experts for each thread from which on they are claimed one by one, not shared out by
// columns: the last one may keep the others waiting.
constexpr int kClaimedExperts = 24;

void Executor::run_mixture(const Stage& stage, const MixtureRows& in, int thread, std::atomic<int>* next) {
  const Mixture& mixture = *stage.mixture;
  const auto rows = stage.last ? wanted_rows() : std::span(all_rows_).first(batch_.tokens.size());
  if (rows.empty()) return;
  ThreadMixture& own = thread_mixture_[static_cast<size_t>(thread)];
  own.groups.build(in.chosen, config_.moe.experts_per_token, rows);
  if (thread == 0) note_choice(mixture, in);
  if (thread == 0 && observer_ != nullptr)
    for (const int32_t row : rows)
      observer_->rows(mixture.router->weight, 0, in.in.at(row).q8, 0, in.in.at(row).scale, 1);
  // By columns too where experts are many: their weights come from memory at a pace that differs from core to
  // core and from moment to moment.
  const bool claims = !by_columns_ || std::ssize(own.groups.groups()) >= kClaimedExperts * team_.size();
  if (claims) {
    experts_up(mixture, in, rows, thread, next[0]);
  } else {
    columns_experts_up(mixture, in, rows, thread);
    team_.barrier();
    columns_activate(mixture, rows, thread);
  }
  const bool own_hidden = !claims && activates_alone(static_cast<int>(rows.size()));
  const ActRows& hidden = own_hidden ? own.hidden : hidden_;
  const ActRows& shared_hidden = own_hidden ? own.shared_hidden : shared_hidden_;
  if (!own_hidden) team_.barrier();

  const int columns = static_cast<int>(kernels::padded_n(config_.hidden_size));
  const int64_t outs =
      own.groups.pairs() + (mixture.shared != nullptr ? static_cast<int64_t>(rows.size()) : 0);
  const int fits = static_cast<int>(expert_out_floats_ / outs) / kernels::kGemmNBlock * kernels::kGemmNBlock;
  if (claims) {
    // Ranges enough that the last ones keep no thread waiting long.
    const int even = (columns / (4 * team_.size()) + kernels::kGemmNBlock - 1) / kernels::kGemmNBlock *
                     kernels::kGemmNBlock;
    const int width = std::min(fits, std::max(even, 4 * kernels::kGemmNBlock));
    for (int begin; (begin = next[1].fetch_add(1, std::memory_order_relaxed) * width) < columns;)
      experts_down(mixture, in, rows, own, hidden, shared_hidden, {begin, std::min(begin + width, columns)});
  } else {
    const Range mine = column_share(config_.hidden_size, thread, team_.size());
    for (int begin = mine.begin; begin < mine.end; begin += fits)
      experts_down(mixture, in, rows, own, hidden, shared_hidden, {begin, std::min(begin + fits, mine.end)});
  }
  team_.barrier();
  if (mixture.router->post_norm_gain == nullptr) return;
  const Range mine = share(static_cast<int>(rows.size()), thread, team_.size());
  for (int i = mine.begin; i < mine.end; ++i)
    add_normed(mixture_sum_ + i * residual_stride_, mixture.router->post_norm_gain, 1,
               residual(rows[static_cast<size_t>(i)]));
  team_.barrier();
}

// These rows of the mixture's input side by side: where they are, or copied into scratch.
Executor::ActRows Executor::gather(const MixtureRows& in, const int32_t* rows, int count,
                                   const Scratch& scratch) const {
  if (rows[count - 1] - rows[0] == count - 1) return in.in.at(rows[0]);  // ascending, so consecutive
  for (int i = 0; i < count; ++i) {
    const ActRows from = in.in.at(rows[i]), to = scratch.in.at(i);
    if (int8_) {
      std::memcpy(to.q8, from.q8, static_cast<size_t>(kernels::padded_k(config_.hidden_size)));
      *to.scale = *from.scale;
    } else {
      std::copy_n(from.floats, config_.hidden_size, to.floats);
    }
  }
  return scratch.in;
}

// Tasks are claimed one ahead, so that a product can ask for the first weights of the one after it.
void Executor::experts_up(const Mixture& mixture, const MixtureRows& in, std::span<const int32_t> rows,
                          int thread, std::atomic<int>& next) {
  const Scratch& scratch = scratch_[static_cast<size_t>(thread)];
  const ExpertGroups& groups = thread_mixture_[static_cast<size_t>(thread)].groups;
  // Tasks are numbered through the shared expert's rows, then each group's; a thread's numbers ascend.
  struct Part {
    const model::Linear* gate_up;
    const int32_t* rows;
    int count, width, hadamard_block;
    ActRows to;
    int tasks(int panel_rows) const { return (count + panel_rows - 1) / panel_rows; }
  };
  const size_t shared = mixture.shared != nullptr ? 1 : 0, parts = groups.groups().size() + shared;
  const auto part_at = [&](size_t index) -> Part {
    if (index < shared)
      return {&mixture.shared->gate_up,       rows.data(),
              static_cast<int>(rows.size()),  config_.moe.shared_ffn_size,
              mixture.shared->hadamard_block, shared_hidden_};
    const auto& group = groups.groups()[index - shared];
    const model::ExpertModule& expert = *mixture.experts[static_cast<size_t>(group.expert)];
    return {&expert.gate_up,      groups.rows_at(group.begin), group.count,
            config_.moe.ffn_size, expert.hadamard_block,       hidden_.at(group.begin)};
  };
  size_t index = 0;
  int passed = 0;  // tasks of the parts before
  const auto seek = [&](int number) {
    for (; index < parts; ++index) {
      const int tasks = part_at(index).tasks(panel_rows_);
      if (number < passed + tasks) return;
      passed += tasks;
    }
  };
  int number = next.fetch_add(1, std::memory_order_relaxed);
  seek(number);
  while (index < parts) {
    const Part part = part_at(index);
    const int first = (number - passed) * panel_rows_, count = std::min(panel_rows_, part.count - first);
    number = next.fetch_add(1, std::memory_order_relaxed);
    seek(number);
    const After after{index < parts ? part_at(index).gate_up : nullptr};
    linear(*part.gate_up, gather(in, part.rows + first, count, scratch), count, 0,
           static_cast<int>(kernels::padded_n(part.gate_up->n)), scratch.gate_up, gate_up_stride_, false,
           after);
    activate(scratch.gate_up, gate_up_stride_, count, part.width, part.hadamard_block, part.to.at(first));
  }
}

void Executor::columns_experts_up(const Mixture& mixture, const MixtureRows& in,
                                  std::span<const int32_t> rows, int thread) {
  const Scratch& scratch = scratch_[static_cast<size_t>(thread)];
  const ExpertGroups& groups = thread_mixture_[static_cast<size_t>(thread)].groups;
  const bool shared = mixture.shared != nullptr;
  const int shared_columns = shared ? static_cast<int>(kernels::padded_n(mixture.shared->gate_up.n)) : 0;
  const int columns = static_cast<int>(kernels::padded_n(2 * config_.moe.ffn_size));
  const Range mine =
      column_share(shared_columns + columns * static_cast<int>(groups.groups().size()), thread, team_.size());
  const auto expert = [&](size_t group) -> const model::ExpertModule& {
    return *mixture.experts[static_cast<size_t>(groups.groups()[group].expert)];
  };
  int passed = 0;
  // My part of the next `width` columns of the sequence: a product of these rows. `after`: the matrix that
  // follows.
  const auto up = [&](const model::Linear& gate_up, int width, const int32_t* group_rows, int count,
                      const After& after, float* out, int64_t stride) {
    const int begin = std::max(mine.begin - passed, 0), end = std::min(mine.end - passed, width);
    passed += width;
    for (int first = 0; begin < end && first < count; first += panel_rows_) {
      const int some = std::min(panel_rows_, count - first);
      linear(gate_up, gather(in, group_rows + first, some, scratch), some, begin, end, out + first * stride,
             stride, false, after);
    }
  };
  const After then{&expert(0).down, column_share(config_.hidden_size, thread, team_.size()).begin};
  const auto after_columns = [&](int end, size_t group) {
    return end < mine.end ? After{&expert(group).gate_up} : then;
  };
  if (shared)
    up(mixture.shared->gate_up, shared_columns, rows.data(), static_cast<int>(rows.size()),
       after_columns(shared_columns, 0), shared_gate_up_, shared_gate_up_stride_);
  for (size_t i = 0; i < groups.groups().size(); ++i) {
    const auto& group = groups.groups()[i];
    up(expert(i).gate_up, columns, groups.rows_at(group.begin), group.count,
       after_columns(passed + columns, i + 1), expert_gate_up_ + group.begin * expert_gate_up_stride_,
       expert_gate_up_stride_);
  }
}

void Executor::columns_activate(const Mixture& mixture, std::span<const int32_t> rows, int thread) {
  const ThreadMixture& own = thread_mixture_[static_cast<size_t>(thread)];
  const int count = static_cast<int>(rows.size());
  const bool alone = activates_alone(count);
  const auto part = [&](int of) { return alone ? Range{0, of} : share(of, thread, team_.size()); };
  const Range pairs = part(own.groups.pairs());
  activate(expert_gate_up_ + pairs.begin * expert_gate_up_stride_, expert_gate_up_stride_, pairs.size(),
           config_.moe.ffn_size, mixture.experts[0]->hadamard_block,
           (alone ? own.hidden : hidden_).at(pairs.begin));
  if (mixture.shared == nullptr) return;
  const Range some = part(count);
  activate(shared_gate_up_ + some.begin * shared_gate_up_stride_, shared_gate_up_stride_, some.size(),
           config_.moe.shared_ffn_size, mixture.shared->hadamard_block,
           (alone ? own.shared_hidden : shared_hidden_).at(some.begin));
}

// Columns [n.begin, n.end) of the mixture's output, for all rows.
void Executor::experts_down(const Mixture& mixture, const MixtureRows& in, std::span<const int32_t> rows,
                            const ThreadMixture& own, const ActRows& hidden, const ActRows& shared_hidden,
                            Range n) {
  const int64_t width = n.size();
  const ExpertGroups& groups = own.groups;
  const int count = static_cast<int>(rows.size()), k = config_.moe.experts_per_token;
  const auto down = [&](size_t group) -> const model::Linear* {
    if (group < groups.groups().size())
      return &mixture.experts[static_cast<size_t>(groups.groups()[group].expert)]->down;
    return mixture.shared != nullptr ? &mixture.shared->down : nullptr;
  };
  for (size_t i = 0; i < groups.groups().size(); ++i) {
    const auto& group = groups.groups()[i];
    linear(*down(i), hidden.at(group.begin), group.count, n.begin, n.end,
           own.out + group.begin * width - n.begin, width, false, {down(i + 1), n.begin});
  }
  float* shared = own.out + groups.pairs() * width;
  if (mixture.shared != nullptr)
    linear(mixture.shared->down, shared_hidden, count, n.begin, n.end, shared - n.begin, width, false);

  const int wanted = std::min(n.end, config_.hidden_size) - n.begin;
  const bool sandwich = mixture.router->post_norm_gain != nullptr;
  for (int i = 0; i < count; ++i) {
    const int row = rows[static_cast<size_t>(i)];
    int parts = k;
    for (int slot = 0; slot < k; ++slot) own.parts[slot] = own.out + groups.place(i, slot) * width;
    std::copy_n(in.weight + int64_t{row} * k, k, own.weights);
    if (mixture.shared != nullptr) {
      own.parts[k] = shared + i * width;
      own.weights[k] = mixture.shared->gate != nullptr ? in.shared_gate[row] : 1;
      ++parts;
    }
    moe_.combine(own.parts, own.weights, parts, wanted,
                 (sandwich ? mixture_sum_ + i * residual_stride_ : residual(row)) + n.begin, !sandwich);
  }
}

void Executor::note_choice(const Mixture& mixture, const MixtureRows& in) {
  const auto& moe = config_.moe;
  std::atomic<uint64_t>* counts =
      &expert_tokens_[static_cast<size_t>(mixture.index) * static_cast<size_t>(moe.experts)];
  for (const auto& group : thread_mixture_[0].groups.groups()) {
    auto& count = counts[group.expert];  // one writer
    count.store(count.load(std::memory_order_relaxed) + static_cast<uint64_t>(group.count),
                std::memory_order_relaxed);
  }
  if (recorded_.empty()) return;
  const size_t k = static_cast<size_t>(moe.experts_per_token);
  std::copy_n(in.chosen, batch_.tokens.size() * k,
              recorded_.begin() + static_cast<std::ptrdiff_t>(static_cast<size_t>(mixture.index) *
                                                              static_cast<size_t>(max_rows_) * k));
}

void Executor::forget_expert_tokens() {
  const size_t counts = mixtures_.size() * static_cast<size_t>(config_.moe.experts);
  for (size_t i = 0; i < counts; ++i) expert_tokens_[i].store(0, std::memory_order_relaxed);
}

std::vector<ExpertBalance> Executor::expert_balance() const {
  std::vector<ExpertBalance> balance;
  for (int m = 0; m < mixtures(); ++m) {
    uint64_t all = 0, busiest = 0;
    for (int e = 0; e < config_.moe.experts; ++e) {
      all += expert_tokens(m, e);
      busiest = std::max(busiest, expert_tokens(m, e));
    }
    const double mean = static_cast<double>(all) / config_.moe.experts;
    balance.push_back(
        {.layer = mixture_layer(m),
         .rows = all,
         .busiest_rows = busiest,
         .imbalance = all > 0 ? static_cast<float>(static_cast<double>(busiest) / mean) : 0.0f});
  }
  return balance;
}

std::span<const int32_t> Executor::chosen_experts(int mixture, int row) const {
  if (recorded_.empty()) return {};
  const size_t k = static_cast<size_t>(config_.moe.experts_per_token);
  const size_t at =
      (static_cast<size_t>(mixture) * static_cast<size_t>(max_rows_) + static_cast<size_t>(row)) * k;
  return std::span(recorded_).subspan(at, k);
}

}  // namespace millrace::engine
