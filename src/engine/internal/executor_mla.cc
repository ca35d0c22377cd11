// Multi-head latent attention in its absorbed form, for prefill and decode alike
// (docs/decisions/0005-mla-form.md).
//
// A token's key is [latent | rotary key | zeros], its value the latent, one KV head for all query heads. A
// head's query is [k_up_h(nope part) | rotary part | zeros]; what it attends to goes through v_up_h. Products
// into and out of the latent are per head, each on rows quantised for that head.
#include <algorithm>
#include <cstring>

#include "engine/internal/executor.h"
#include "engine/internal/shares.h"

namespace millrace::engine {

// The queries' latent, normed: what q_up reads.
void Executor::mla_latent(const model::MlaModule& module, int row, int rows, const ActRows& to) const {
  if (module.q_up.n == 0 || rows == 0) return;
  const float* x = qkv(row);
  const int width = config_.mla.q_lora_rank;
  if (int8_) {
    rows_.rmsnorm_quant(x, qkv_stride_, module.q_norm_gain, config_.mla.latent_norm_eps, rows, width,
                        {to.q8, to.q8_stride, to.scale});
  } else {
    rows_.rmsnorm(x, qkv_stride_, module.q_norm_gain, config_.mla.latent_norm_eps, rows, width, to.floats,
                  to.float_stride);
  }
}

void Executor::mla_write(const model::MlaModule& module, const Piece& piece) const {
  const auto& mla = config_.mla;
  float* key = qkv(piece.row_begin) + mla_q_width_;
  rows_.rmsnorm(key, qkv_stride_, module.latent_norm_gain, mla.latent_norm_eps, piece.rows, mla.kv_lora_rank,
                key, qkv_stride_);
  rows_.rope_half(key + mla.kv_lora_rank, qkv_stride_, piece.rows, 1, mla.rope_head_dim,
                  rope_.cos(piece.first_position), rope_.sin(piece.first_position), rope_.stride());
  for (int row = 0; row < piece.rows; ++row)
    std::fill(key + row * qkv_stride_ + mla.kv_lora_rank + mla.rope_head_dim,
              key + row * qkv_stride_ + shape_.key_dim, 0.0f);
  attention_.kv_write(shape_, {pool_, piece.segment->pages}, module.layer, piece.first_position, piece.rows,
                      key, qkv_stride_, key, qkv_stride_);
}

// Queries of some heads, of panel_rows_ rows at most: from the normed latent (or from the stream's own
// product) into query[0], rows `query_stride` apart, heads side by side from the first one on.
void Executor::mla_queries(const model::MlaModule& module, const ActRows& latent, const MlaRows& at,
                           Range heads, float* q, int64_t q_stride, float* query, int64_t query_stride,
                           const Scratch& own) const {
  const auto& mla = config_.mla;
  const int dim = config_.head_dim, nope = mla.nope_head_dim, rank = mla.kv_lora_rank;
  if (module.q_up.n == 0) {
    q = qkv(at.begin) + heads.begin * dim;
    q_stride = qkv_stride_;
  } else {
    linear(module.q_up, latent, at.rows, heads.begin * dim, heads.end * dim, q - heads.begin * dim, q_stride,
           false);
  }
  for (const Piece& piece : at.pieces) {
    const int begin = std::max(piece.row_begin, at.begin);
    const int rows = std::min(piece.row_begin + piece.rows, at.begin + at.rows) - begin;
    if (rows <= 0) continue;
    const int64_t position = piece.first_position + begin - piece.row_begin;
    for (int h = 0; h < heads.size(); ++h)
      rows_.rope_half(q + (begin - at.begin) * q_stride + h * dim + nope, q_stride, rows, 1,
                      mla.rope_head_dim, rope_.cos(position), rope_.sin(position), rope_.stride());
  }
  for (int h = 0; h < heads.size(); ++h) {
    float* out = query + h * shape_.key_dim;
    const int n = (heads.begin + h) * rank;
    linear(module.k_up, quantised(q + h * dim, q_stride, nope, at.rows, own.in), at.rows, n, n + rank,
           out - n, query_stride, false);
    for (int row = 0; row < at.rows; ++row) {
      float* rotary = out + row * query_stride + rank;
      std::copy_n(q + row * q_stride + h * dim + nope, mla.rope_head_dim, rotary);
      std::fill(rotary + mla.rope_head_dim, rotary + shape_.key_dim - rank, 0.0f);
    }
  }
}

void Executor::mla_attend(const model::MlaModule& module, const Piece& piece, int q_heads, Range heads,
                          const float* query, int64_t query_stride, float* mixed, int64_t mixed_stride,
                          const Scratch& own) const {
  attention_.attention({.shape = shape_,
                        .view = {pool_, piece.segment->pages},
                        .layer = module.layer,
                        .q_heads = q_heads,
                        .scale = attention_scale_,
                        .first_position = piece.first_position,
                        .rows = piece.rows,
                        .q = query,
                        .q_stride = query_stride,
                        .out = mixed,
                        .out_stride = mixed_stride,
                        .q_head_begin = heads.begin,
                        .q_head_end = heads.end,
                        .scratch = own.attention});
}

// From what some heads attended to, latents side by side, to their columns of `attended`; panel_rows_ rows at
// most.
void Executor::mla_values(const model::MlaModule& module, int rows, Range heads, float* mixed,
                          int64_t mixed_stride, float* attended, const Scratch& own) const {
  const int rank = config_.mla.kv_lora_rank, width = config_.mla.value_head_dim;
  for (int h = heads.begin; h < heads.end; ++h)
    linear(module.v_up, quantised(mixed + (h - heads.begin) * rank, mixed_stride, rank, rows, own.in), rows,
           h * width, (h + 1) * width, attended, attended_stride_, false);
}

// By rows: some heads at a time, so that their queries and latents stay in L2. The result is in
// scratch.attended.
void Executor::panel_mla_out(const model::MlaModule& module, const Panel& panel,
                             const Scratch& scratch) const {
  const int64_t query_stride = int64_t{mla_panel_heads_} * shape_.key_dim;
  const int64_t mixed_stride = int64_t{mla_panel_heads_} * shape_.value_dim;
  const MlaRows at{
      .begin = panel.row_begin,
      .rows = panel.rows,
      .pieces = std::span(pieces_).subspan(static_cast<size_t>(panel.piece_begin),
                                           static_cast<size_t>(panel.piece_end - panel.piece_begin))};
  mla_latent(module, panel.row_begin, panel.rows, scratch.latent);
  for (int begin = 0; begin < config_.q_heads; begin += mla_panel_heads_) {
    const Range heads{begin, std::min(begin + mla_panel_heads_, config_.q_heads)};
    mla_queries(module, scratch.latent, at, heads, scratch.q, int64_t{mla_panel_heads_} * config_.head_dim,
                scratch.query, query_stride, scratch);
    for (const Piece& piece : at.pieces) {
      const int row = piece.row_begin - panel.row_begin;
      mla_attend(module, piece, heads.size(), {0, heads.size()}, scratch.query + row * query_stride,
                 query_stride, scratch.mixed + row * mixed_stride, mixed_stride, scratch);
    }
    mla_values(module, panel.rows, heads, scratch.mixed, mixed_stride, scratch.attended, scratch);
  }
}

void Executor::columns_mla_in(const model::MlaModule& module, int thread) {
  const int rows = static_cast<int>(batch_.tokens.size());
  const ActRows input = columns_norm(module.norm_gain, thread);
  const Range columns = column_share(module.in.n, thread, team_.size());
  linear(module.in, input, rows, columns.begin, columns.end, qkv(0), qkv_stride_, false);
  team_.barrier();
  if (!whole_segments_)  // read after the queries' barrier
    for (size_t i = static_cast<size_t>(thread); i < pieces_.size(); i += static_cast<size_t>(team_.size()))
      mla_write(module, pieces_[i]);
  if (alone(rows, config_.mla.q_lora_rank)) return;
  const Range mine = share(rows, thread, team_.size());
  mla_latent(module, mine.begin, mine.size(), shared_.latent.at(mine.begin));
  team_.barrier();
}

// By columns: heads are shared out where their weights are read, for all rows. Attention is by sequence where
// there are many; where there are few, a thread attends with its own heads, which waits for nobody.
void Executor::columns_mla_out(const model::MlaModule& module, int thread, std::atomic<int>& next) {
  const int rows = static_cast<int>(batch_.tokens.size()), pieces = static_cast<int>(pieces_.size());
  const Scratch& own = scratch_[static_cast<size_t>(thread)];
  const Range mine = share(config_.q_heads, thread, team_.size());
  const int64_t query_stride = int64_t{config_.q_heads} * shape_.key_dim;
  const int64_t mixed_stride = int64_t{config_.q_heads} * shape_.value_dim;
  const int64_t q_stride = int64_t{config_.q_heads} * config_.head_dim;
  const auto each_chunk = [&](auto&& f) {
    for (int row = 0; row < rows && mine.size() > 0; row += panel_rows_)
      f(row, std::min(panel_rows_, rows - row));
  };
  const bool own_latent = alone(rows, config_.mla.q_lora_rank);
  if (own_latent) mla_latent(module, 0, rows, own.latent);
  each_chunk([&](int row, int count) {
    mla_queries(module, own_latent ? own.latent : shared_.latent.at(row), {row, count, pieces_}, mine,
                shared_.q + row * q_stride + mine.begin * config_.head_dim, q_stride,
                shared_.query + row * query_stride + mine.begin * shape_.key_dim, query_stride, own);
  });
  team_.barrier();

  const auto attend = [&](const Piece& piece, Range heads) {
    mla_attend(module, piece, config_.q_heads, heads, shared_.query + piece.row_begin * query_stride,
               query_stride, shared_.mixed + piece.row_begin * mixed_stride, mixed_stride, own);
  };
  if (whole_segments_) {
    for (int i; (i = next.fetch_add(1, std::memory_order_relaxed)) < pieces;) {
      const Piece& piece = pieces_[static_cast<size_t>(i)];
      mla_write(module, piece);  // a sequence's keys are written and read by the same thread
      attend(piece, {0, config_.q_heads});
    }
    team_.barrier();
  } else if (mine.size() > 0) {
    for (const Piece& piece : pieces_) attend(piece, mine);
  }
  each_chunk([&](int row, int count) {
    mla_values(module, count, mine, shared_.mixed + row * mixed_stride + mine.begin * shape_.value_dim,
               mixed_stride, shared_.attended + row * attended_stride_, own);
  });
  team_.barrier();

  ActRows input = as_input(shared_.attended, attended_stride_, shared_.in);
  if (alone(rows, module.o.k)) {
    input = quantised(shared_.attended, attended_stride_, module.o.k, rows, own.in);
  } else {
    const Range some = share(rows, thread, team_.size());
    quantised(shared_.attended + some.begin * attended_stride_, attended_stride_, module.o.k, some.size(),
              shared_.in.at(some.begin));
    team_.barrier();
  }
  columns_branch(module.o, input, module.post_norm_gain, thread);
}

}  // namespace millrace::engine
