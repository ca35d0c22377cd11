// Runs a model::Graph over a step's rows, on INT8 or float32 weights, with a team of threads.
//
// Two ways to share a step among threads give the same bits (a row's arithmetic depends on that row alone):
//   by rows      many rows (prefill): a thread takes a panel of rows through everything up to the next
//                point where rows need each other's keys, so a panel's activations stay in its L2 and there
//                is one barrier a layer;
//   by columns   few rows (decode): threads share each product's output channels, so a weight is read
//                once, and attention by (sequence, KV head); a handful of barriers a layer.
// A mixture of experts is a stage of its own over all rows of the step (executor_moe.cc): a panel has too few
// rows an expert.
// The MTP layer (executor_mtp.cc) is a second walk over modules of its own, after the model's, on rows that
// go on from the model's states. No allocation after create(). run() and parallel() are called by one thread
// at a time.
#pragma once
#include <atomic>
#include <cstddef>
#include <limits>
#include <memory>
#include <optional>
#include <vector>

#include "base/memory.h"
#include "base/thread_team.h"
#include "engine/internal/expert_groups.h"
#include "engine/internal/rope_table.h"
#include "engine/internal/shares.h"
#include "engine/internal/step_model.h"
#include "engine/request.h"
#include "kernels/attention.h"
#include "kernels/isa.h"
#include "kernels/moe.h"
#include "kernels/rows.h"
#include "model/packed_model.h"

namespace millrace::engine {

// What a page of this model's cache looks like: BF16 with INT8 weights, F32 on the checking path. With
// `drafts` the MTP layer has its place after the model's layers.
kernels::KvShape kv_shape_of(const model::PackedModel& model, bool drafts = false);

// Sees what INT8 products read (calibration); called by compute threads.
class InputObserver {
 public:
  virtual ~InputObserver() = default;
  // Rows that are about to be multiplied by the channels from n_begin on of the matrix whose first tile this is (by rows:
  // once a row for each matrix, or for each range of its channels), or that came to the router with these weights.
  virtual void rows(const void* weights, int n_begin, const int8_t* values, int64_t stride, const float* scale,
                    int rows) = 0;
};

struct ExecutorOptions {
  std::vector<int> cpus = {-1};  // one thread each
  int max_rows = 512;
  int max_logit_rows = 64;
  int64_t max_positions = 2048;     // longest sequence
  std::optional<kernels::Isa> isa;  // none: the active level
  int panel_rows = 0;               // by-rows panel, a multiple of 32; 0: chosen for speed
  int column_rows_max = 0;      // steps up to this many rows run by columns; 0: chosen for speed, -1: never
  bool drafts = false;          // with the model's first MTP layer; refused where it has none
  InputObserver* observer = nullptr;  // for steps by rows of INT8 models (column_rows_max -1)
  bool record_experts = false;  // keep what the last step's routers chose, for chosen_experts()
};

class Executor final : public StepModel {
 public:
  static Expected<std::unique_ptr<Executor>> create(std::shared_ptr<const model::PackedModel> model,
                                                    const ExecutorOptions& options);
  int vocab_size() const override { return config_.vocab_size; }
  int max_rows() const override { return max_rows_; }
  int max_logit_rows() const override { return max_logit_rows_; }
  void run(const StepBatch& batch, std::byte* pool) override;
  const float* logits(int index) const override {
    return logits_.as<float>() + static_cast<int64_t>(index) * logits_stride_;
  }
  void parallel(int count, const std::function<void(int, int)>& f) override;
  int threads() const override { return team_.size(); }
  const kernels::KvShape& kv_shape() const { return shape_; }
  bool drafts() const override { return mtp_ != nullptr; }
  void draft(const DraftBatch& batch, std::byte* pool) override;
  TokenId guess(int index) const override { return guesses_[static_cast<size_t>(index)]; }
  float guess_probability(int index) const override {
    return guess_probabilities_[static_cast<size_t>(index)];
  }

  // Mixtures of experts, numbered from 0 in the graph's order, the MTP layer's last.
  int mixtures() const { return static_cast<int>(mixtures_.size()); }
  int mixture_layer(int mixture) const { return mixtures_[static_cast<size_t>(mixture)].router->layer; }
  // Rows that an expert has computed since create() or forget_expert_tokens(). In the last layer only rows
  // whose logits or state was wanted count. Any thread.
  uint64_t expert_tokens(int mixture, int expert) const {
    return expert_tokens_[static_cast<size_t>(mixture) * static_cast<size_t>(config_.moe.experts) +
                          static_cast<size_t>(expert)]
        .load(std::memory_order_relaxed);
  }
  void forget_expert_tokens();  // between steps
  std::vector<ExpertBalance> expert_balance() const;
  // With record_experts: what a row of the last step picked, in order of picking.
  std::span<const int32_t> chosen_experts(int mixture, int row) const;

 private:
  // Rows that a product reads: quantised, or floats on the float path. Views.
  struct ActRows {
    int8_t* q8 = nullptr;
    int64_t q8_stride = 0;  // bytes
    float* scale = nullptr;
    float* floats = nullptr;
    int64_t float_stride = 0;
    ActRows at(int row) const {
      if (q8 == nullptr) return {.floats = floats + row * float_stride, .float_stride = float_stride};
      return {.q8 = q8 + row * q8_stride, .q8_stride = q8_stride, .scale = scale + row};
    }
  };
  struct Scratch {              // activations of up to `rows` rows, private to a thread or shared by the team
    ActRows in;                 // input of the next product
    float* attended = nullptr;  // attention's output
    float* gate_up = nullptr;
    float* branch = nullptr;         // sandwich norm: a branch's output before it is normed and added
    float* normed = nullptr;         // mixtures: what the router reads (the float path's own `in`)
    float* router = nullptr;         // mixtures: the router's logits
    std::byte* attention = nullptr;  // the kernel's own scratch; per thread only
    ActRows latent;                  // MLA: the queries' latent, normed
    float* q = nullptr;       // MLA, of all heads or of mla_panel_heads_ of them: queries [nope | rotary]
    float* query = nullptr;   // the same absorbed: [latent | rotary | zeros]
    float* mixed = nullptr;   // what they attend to, in the latent
    float* joined = nullptr;  // MTP: [embedding | state], normed
    ActRows joined_in;        // the same as a product's input
  };
  struct Piece {  // rows of one segment that are processed together
    const StepSegment* segment = nullptr;
    int row_begin = 0, rows = 0;
    int64_t first_position = 0;
  };
  struct Panel {
    int row_begin = 0, rows = 0;
    int piece_begin = 0, piece_end = 0;
    bool needed = false;  // holds a row whose logits are wanted
  };
  struct MlaRows {  // rows of the step, and the pieces that cover them
    int begin = 0, rows = 0;
    std::span<const Piece> pieces;
  };
  // Router, experts and shared expert of one layer.
  struct Mixture {
    const model::RouterModule* router = nullptr;
    std::vector<const model::ExpertModule*> experts;
    const model::SharedExpertModule* shared = nullptr;
    kernels::RouterRule rule;
    int index = 0;  // among the model's mixtures
  };
  // What a mixture's experts read, of the step's rows; a thread's own where it does small work for itself.
  struct MixtureRows {
    ActRows in;                    // normed
    int32_t* chosen = nullptr;     // [rows][experts_per_token]
    float* weight = nullptr;       // likewise
    float* shared_gate = nullptr;  // [rows], where the shared expert has a gate
  };
  struct ThreadMixture {
    ExpertGroups groups;            // every thread groups for itself, which costs less than a barrier
    MixtureRows rows;               // where every thread norms and chooses for itself
    ActRows hidden, shared_hidden;  // and activates for itself
    float* out = nullptr;           // expert outputs of a range of columns
    const float** parts = nullptr;  // of one row's sum, [experts_per_token + 1], and their weights
    float* weights = nullptr;
  };
  // A stage is what a panel can go through without waiting for the others, or a mixture's experts.
  struct Op {
    enum class Kind {
      embed,
      join,
      attention_in,
      attention_out,
      mla_in,
      mla_out,
      ffn,
      route
    } kind = Kind::embed;
    const model::Module* module = nullptr;
    const Mixture* mixture = nullptr;
  };
  struct Stage {
    std::vector<Op> ops;
    const Mixture* mixture = nullptr;  // then no ops
    bool last = false;                 // nothing after it but the head: only panels with wanted rows run
  };
  struct Walk {  // over the model's modules, or over the MTP layer's
    std::vector<Stage> stages;
    const model::HeadModule* head = nullptr;
  };

  Executor(std::shared_ptr<const model::PackedModel> model, const ExecutorOptions& options);
  Expected<void> allocate();
  Expected<void> allocate_mixtures();
  Walk build_walk(std::span<const model::Module> modules, size_t& mixtures) const;
  void build_mixtures(std::span<const model::Module> modules);

  // executor_check.cc: a packed file is a file like any other.
  Expected<void> check_graph() const;
  Expected<void> check_mixtures(std::span<const model::Module> modules) const;
  Expected<void> check_mtp() const;

  // executor_plan.cc: how this step is shared out.
  void plan(const StepBatch& batch);
  // Rows whose state after the last module is wanted.
  std::span<const int32_t> wanted_rows() const {
    return batch_.state_rows.empty() ? batch_.logit_rows : batch_.state_rows;
  }
  void cut_panels(const StepBatch& batch);
  void cut_pieces(const StepBatch& batch, int rows_at_most);

  // executor_rows.cc: by rows.
  void run_by_rows(int thread);
  void run_panel(const Stage& stage, const Panel& panel, const Scratch& scratch);
  // executor_columns.cc: by columns.
  void run_by_columns(int thread);
  // Whether every thread does this work on some rows for itself, since that costs less than to share and to
  // wait.
  bool alone(int rows, int width) const {
    return rows == 1 || (rows <= panel_rows_ && int64_t{rows} * width <= kAloneFloats);
  }
  static constexpr int64_t kAloneFloats = 4096;
  void columns_attention_in(const model::AttentionModule& module, int thread);
  void columns_attention_out(const model::AttentionModule& module, int thread, std::atomic<int>& next);
  void columns_ffn(const model::FfnModule& module, int thread);
  ActRows columns_norm(const float* gain, int thread);
  void columns_branch(const model::Linear& weights, const ActRows& in, const float* post_norm_gain,
                      int thread);
  void run_head(int thread);
  void head_norm(const float* x, int thread, const ActRows& to) const;

  // executor_mtp.cc
  void join(int row_begin, int rows, float* joined, const ActRows& to) const;
  void columns_join(int thread);
  void turned_gain(const float* gain, float* state) const;
  void guess_norm(const float* x, float* normed, const ActRows& to) const;
  void run_guesses(int thread);

  // executor_mla.cc: latent attention.
  void mla_latent(const model::MlaModule& module, int row, int rows, const ActRows& to) const;
  void mla_write(const model::MlaModule& module, const Piece& piece) const;
  void mla_queries(const model::MlaModule& module, const ActRows& latent, const MlaRows& at, Range heads,
                   float* q, int64_t q_stride, float* query, int64_t query_stride, const Scratch& own) const;
  void mla_attend(const model::MlaModule& module, const Piece& piece, int q_heads, Range heads,
                  const float* query, int64_t query_stride, float* mixed, int64_t mixed_stride,
                  const Scratch& own) const;
  void mla_values(const model::MlaModule& module, int rows, Range heads, float* mixed, int64_t mixed_stride,
                  float* attended, const Scratch& own) const;
  void panel_mla_out(const model::MlaModule& module, const Panel& panel, const Scratch& scratch) const;
  void columns_mla_in(const model::MlaModule& module, int thread);
  void columns_mla_out(const model::MlaModule& module, int thread, std::atomic<int>& next);

  // executor_moe.cc: mixtures of experts. `rows`: those of the step that take part.
  void route(const Mixture& mixture, const float* x, int rows, const Scratch& scratch, const MixtureRows& to,
             int to_row) const;
  void normed_rows(const Mixture& mixture, const float* x, int rows, float* normed, const ActRows& to) const;
  ActRows router_input(float* normed, const ActRows& experts_in) const;
  void router_logits(const Mixture& mixture, const ActRows& normed, int rows, Range experts,
                     float* logits) const;
  void choose(const Mixture& mixture, const float* logits, const ActRows& normed, int rows,
              const MixtureRows& to, int to_row) const;
  MixtureRows columns_route(const Mixture& mixture, int thread);
  bool activates_alone(int rows) const;
  void run_mixture(const Stage& stage, const MixtureRows& in, int thread, std::atomic<int>* next);
  ActRows gather(const MixtureRows& in, const int32_t* rows, int count, const Scratch& scratch) const;
  void experts_up(const Mixture& mixture, const MixtureRows& in, std::span<const int32_t> rows, int thread,
                  std::atomic<int>& next);
  void columns_experts_up(const Mixture& mixture, const MixtureRows& in, std::span<const int32_t> rows,
                          int thread);
  void columns_activate(const Mixture& mixture, std::span<const int32_t> rows, int thread);
  void experts_down(const Mixture& mixture, const MixtureRows& in, std::span<const int32_t> rows,
                    const ThreadMixture& own, const ActRows& hidden, const ActRows& shared_hidden,
                    Range columns);
  void note_choice(const Mixture& mixture, const MixtureRows& in);

  // executor_ops.cc: one operation over some rows.
  void embed(const model::EmbedModule& module, int row_begin, int rows);
  void norm(const float* x, const float* gain, int rows, const ActRows& to) const;
  // x as a product's input: quantised into `to`, or on the float path itself.
  ActRows quantised(float* x, int64_t stride, int width, int rows, const ActRows& to) const;
  ActRows as_input(float* x, int64_t stride, const ActRows& quantised) const;
  void activate(const float* gate_up, int64_t stride, int rows, int width, int hadamard_block,
                const ActRows& to) const;
  // Columns [n_begin, n_end) of out (+)= in W^T; column n goes to out[n]. `after`: what this thread
  // multiplies next.
  struct After {
    const model::Linear* weights = nullptr;
    int n_begin = 0;
  };
  void linear(const model::Linear& weights, const ActRows& in, int rows, int n_begin, int n_end, float* out,
              int64_t out_stride, bool accumulate, const After& after) const;
  void linear(const model::Linear& weights, const ActRows& in, int rows, int n_begin, int n_end, float* out,
              int64_t out_stride, bool accumulate) const {
    linear(weights, in, rows, n_begin, n_end, out, out_stride, accumulate, {});
  }
  // residual += RMSNorm(branch), the sandwich norm
  void add_normed(float* branch, const float* gain, int rows, float* residual) const;
  void rope_and_write(const model::AttentionModule& module, const Piece& piece) const;
  void attend(const model::AttentionModule& module, const Piece& piece, const Scratch& scratch, float* out,
              int head_begin, int head_end) const;
  void embed_row(const model::EmbedModule& module, TokenId token, float* out) const;
  float* residual(int row) const { return stream_ + static_cast<int64_t>(row) * residual_stride_; }
  float* qkv(int row) const { return qkv_.as<float>() + static_cast<int64_t>(row) * qkv_stride_; }
  class Carver;
  Scratch carve_scratch(Carver& carver, int rows, int mla_rows, int mla_heads) const;

  // Constant after create().
  const std::shared_ptr<const model::PackedModel> model_;
  const model::ModelConfig& config_;
  const bool int8_;
  const kernels::Isa isa_;
  const kernels::RowKernels& rows_;
  const kernels::AttentionKernels& attention_;
  const kernels::MoeKernels& moe_;
  const kernels::KvShape shape_;
  const int max_rows_, max_logit_rows_;
  const bool record_experts_;
  InputObserver* const observer_;
  int panel_rows_ = 0, column_rows_max_ = 0, shared_rows_ = 0;
  int64_t act_stride_ = 0;  // bytes; the others in floats
  int64_t float_stride_ = 0, residual_stride_ = 0, qkv_stride_ = 0, attended_stride_ = 0, gate_up_stride_ = 0;
  int64_t logits_stride_ = 0;
  float attention_scale_ = 0;
  int mla_q_width_ = 0;      // of `in`: the queries, or their latent
  int mla_panel_heads_ = 0;  // that a panel takes at a time
  const model::EmbedModule* embed_ = nullptr;
  const model::MtpModule* mtp_ = nullptr;  // set: drafts
  std::vector<Mixture> mixtures_;
  Walk model_walk_, mtp_walk_;
  int64_t max_positions_ = 0;

  ThreadTeam team_;
  RopeTable rope_;
  Buffer residual_, qkv_, logits_, scratch_memory_;
  Buffer mtp_residual_;  // the MTP layer's stream: the model's stays for further guesses
  Buffer guess_state_;   // [guess][hidden]: the stream under each of the last draft()'s guesses
  std::vector<TokenId> guesses_;
  std::vector<float> guess_probabilities_;
  struct GuessPart {  // of a row's logits, what one thread made: the largest, its place, sum of e^(x - max)
    int token = 0;
    float max = -std::numeric_limits<float>::infinity(), sum = 0;
  };
  std::vector<GuessPart> guess_parts_;  // [thread][guess]
  int64_t joined_float_stride_ = 0, joined_act_stride_ = 0;
  std::vector<float> guess_gain_;  // [hidden], INT8: see guess_norm()
  std::vector<Scratch> scratch_;   // one a thread
  Scratch shared_;

  // Mixtures. Buffers are for the whole step; expert rows stand in grouped order (ExpertGroups).
  std::vector<ThreadMixture> thread_mixture_;
  MixtureRows mixture_rows_;
  ActRows hidden_, shared_hidden_;  // activated: [pairs][expert width], [rows][shared width]
  float *expert_gate_up_ = nullptr, *shared_gate_up_ = nullptr;  // by columns only
  int64_t router_stride_ = 0, expert_gate_up_stride_ = 0, shared_gate_up_stride_ = 0;
  float* mixture_sum_ = nullptr;   // sandwich norm: the mixture's output, stride residual_stride_
  int64_t expert_out_floats_ = 0;  // of ThreadMixture::out
  Buffer mixture_memory_;
  std::vector<int32_t> all_rows_;                           // 0, 1, 2, ...
  std::unique_ptr<std::atomic<uint64_t>[]> expert_tokens_;  // [mixture][expert]; thread 0 writes
  std::vector<int32_t> recorded_;                           // [mixture][row][slot]

  // This step.
  const Walk* walk_ = nullptr;
  float* stream_ = nullptr;  // residual_ or mtp_residual_
  StepBatch batch_;
  std::span<const int32_t> states_;  // of the MTP layer's rows
  bool again_ = false;
  std::byte* pool_ = nullptr;
  bool by_columns_ = false;
  bool whole_segments_ = false;  // by columns: a piece is a whole segment and waits for no other's keys
  std::vector<Panel> panels_;
  std::vector<Piece> pieces_;
  std::unique_ptr<std::atomic<int>[]> next_;  // by stage or attention: the next panel or task to take
  size_t counters_ = 0;
};

}  // namespace millrace::engine
