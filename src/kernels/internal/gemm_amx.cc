// INT8 GEMM on the matrix unit: C tiles of 16 x 16 int32, A tiles of 16 rows x 64 bytes, B tiles straight
// from the packed weights.
//
// The unit finishes a product of two tiles in 16 cycles, so feeding it is the work:
//   * 2 x 2 tiles of C share two A and two B loads per four products, and give four independent sums,
//     which hides the product's latency of 52 cycles.
//   * Up to kGemmFewRows rows are no work for the unit: gemm_avx512.cc reads their weights faster.
//   * Few rows more: A stays in L2 while B comes from memory, block by block, each used by all rows before the
//     next; the next block is fetched meanwhile, or with one panel of rows the next tile. Sums stay in
//     registers for all of k.
//   * Many rows: a panel of 32 rows x depth bytes stays in L1 while B streams from L2 (32 bytes a cycle,
//     about half of what L2 gives); a chunk of B stays in L2 while all panels pass over it, so memory sees
//     the weights once. The lines of the next chunk are fetched meanwhile, a share per step.
//   * The epilogue of one 32 x 32 block runs between the products of the next: it needs the vector units,
//     which the products leave idle.
// Sums are exact integers, so none of these choices can change a bit.
#include <immintrin.h>

#include <cstdint>

#include "kernels/internal/amx_config.h"
#include "kernels/internal/gemm_levels.h"
#include "kernels/internal/target.h"

MR_BEGIN_TARGET(MR_TARGET_AMX)

namespace millrace::kernels::internal {
namespace {

constexpr int64_t kTileBytes = 1024;
constexpr int64_t kAheadTiles = 1;          // of B, for few rows
constexpr int kBlock = 32;                  // rows and columns of a block of C: two tiles each way
constexpr int64_t kDepthMax = 10;           // tiles of k in an A panel: 32 x 64 x 10 = 20 KiB of an L1 of 48
constexpr int64_t kChunkBytes = 768 << 10;  // of B, in an L2 of 2 MiB beside A and the output
constexpr int64_t kFewBytes = 1 << 20;      // of A: up to these, all of it stays in L2 while B passes
constexpr int64_t kChunkBlocks = 16;        // bounds the sums kept between depths: 16 x 4 KiB

inline int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }
inline int64_t ceil_div64(int64_t a, int64_t b) { return (a + b - 1) / b; }

// A finished block of sums waiting for its epilogue: rows of 32 int32, two vectors each.
struct Pending {
  const int32_t* sums = nullptr;
  const float* a_scale = nullptr;
  const float* w_scale = nullptr;
  const float* bias = nullptr;
  float* out = nullptr;
  int64_t out_stride = 0;
  int rows = 0;
  bool accumulate = false;
  __mmask16 mask[2] = {};
};

// The epilogue's way through one pending block, a few rows at a time. Lives in registers.
class Drain {
 public:
  MR_ALWAYS_INLINE explicit Drain(const Pending& p)
      : sums_(p.sums),
        a_scale_(p.a_scale),
        out_(p.out),
        out_stride_(p.out_stride),
        left_(p.rows),
        bias_(p.bias != nullptr),
        accumulate_(p.accumulate),
        mask0_(p.mask[0]),
        mask1_(p.mask[1]),
        scale0_(_mm512_maskz_loadu_ps(mask0_, p.w_scale)),
        scale1_(_mm512_maskz_loadu_ps(mask1_, p.w_scale + 16)),
        bias0_(_mm512_maskz_loadu_ps(bias_ ? mask0_ : __mmask16{0}, p.bias)),
        bias1_(_mm512_maskz_loadu_ps(bias_ ? mask1_ : __mmask16{0}, p.bias + 16)) {}

  MR_ALWAYS_INLINE void rows(int count) {
    for (; count > 0 && left_ > 0; --count, --left_) {
      const __m512 a_scale = _mm512_set1_ps(*a_scale_++);
      write(sums_, out_, a_scale, scale0_, bias0_, mask0_);
      write(sums_ + 16, out_ + 16, a_scale, scale1_, bias1_, mask1_);
      sums_ += kBlock;
      out_ += out_stride_;
    }
  }

 private:
  MR_ALWAYS_INLINE void write(const int32_t* sums, float* out, __m512 a_scale, __m512 w_scale, __m512 bias,
                              __mmask16 mask) const {
    __m512 y = _mm512_mul_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_load_si512(sums)), a_scale), w_scale);
    if (bias_) y = _mm512_add_ps(y, bias);
    if (accumulate_) y = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, out), y);
    _mm512_mask_storeu_ps(out, mask, y);
  }

  const int32_t* sums_;
  const float* a_scale_;
  float* out_;
  const int64_t out_stride_;
  int left_;
  const bool bias_, accumulate_;
  const __mmask16 mask0_, mask1_;
  const __m512 scale0_, scale1_, bias0_, bias1_;
};

// Brings lines of B into L2 before they are needed, some per step.
struct Fetch {
  const char* next = nullptr;
  const char* end = nullptr;
  int lines = 0;               // a step, a multiple of 4
  int64_t beside = 0;          // bytes to as many lines that go along; 0: none
  const char* then = nullptr;  // where it goes on after the end
  const char* then_end = nullptr;
  int64_t then_beside = 0;
};

MR_ALWAYS_INLINE inline void fetch_lines(const char* from, int lines) {
  for (int line = 0; line < lines; line += 4) {
    _mm_prefetch(from + line * 64, _MM_HINT_T1);
    _mm_prefetch(from + line * 64 + 64, _MM_HINT_T1);
    _mm_prefetch(from + line * 64 + 128, _MM_HINT_T1);
    _mm_prefetch(from + line * 64 + 192, _MM_HINT_T1);
  }
}

MR_ALWAYS_INLINE inline void fetch_some(Fetch& f) {
  if (f.next >= f.end) {
    if (f.then == nullptr) return;
    f = {f.then, f.then_end, f.lines, f.then_beside};
  }
  fetch_lines(f.next, f.lines);
  if (f.beside != 0) fetch_lines(f.next + f.beside, f.lines);
  f.next += f.lines * 64;
}

struct Operands {
  const int8_t* a = nullptr;  // the panel's first A tile at this depth
  int64_t a_stride = 0;
  const int8_t* b = nullptr;  // the block's first B tile at this depth
  int64_t b_next = 0;         // bytes to the second column of B tiles
  int64_t tiles = 0;          // of k
};

// sums (32 x 32) = or += A * B; the pending block's epilogue and the fetching run in between.
template <bool kTwoRows, bool kTwoColumns>
void multiply(const Operands& s, bool add, int32_t* sums, const Pending& pending, Fetch& fetch_state) {
  constexpr int64_t kSumsStride = kBlock * 4;
  int32_t* const lower = sums + 16 * kBlock;
  if (add) {
    _tile_loadd(0, sums, kSumsStride);
    if (kTwoColumns) _tile_loadd(1, sums + 16, kSumsStride);
    if (kTwoRows) _tile_loadd(2, lower, kSumsStride);
    if (kTwoRows && kTwoColumns) _tile_loadd(3, lower + 16, kSumsStride);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  Drain drain(pending);
  Fetch fetch = fetch_state;
  const int share = static_cast<int>(ceil_div64(pending.rows, s.tiles));
  const int8_t* a0 = s.a;
  const int8_t* a1 = s.a + 16 * s.a_stride;
  const int8_t* b0 = s.b;
  const int8_t* b1 = s.b + s.b_next;
  for (int64_t tile = 0; tile < s.tiles; ++tile) {
    _tile_loadd(6, b0, 64);
    _tile_loadd(4, a0, s.a_stride);
    _tile_dpbssd(0, 4, 6);
    if (kTwoRows) {
      _tile_loadd(5, a1, s.a_stride);
      _tile_dpbssd(2, 5, 6);
    }
    if (kTwoColumns) {
      _tile_loadd(7, b1, 64);
      _tile_dpbssd(1, 4, 7);
      if (kTwoRows) _tile_dpbssd(3, 5, 7);
    }
    fetch_some(fetch);
    drain.rows(share);
    a0 += kGemmKBlock;
    a1 += kGemmKBlock;
    b0 += kTileBytes;
    b1 += kTileBytes;
  }
  fetch_state = fetch;
  drain.rows(kBlock);
  _tile_stored(0, sums, kSumsStride);
  if (kTwoColumns) _tile_stored(1, sums + 16, kSumsStride);
  if (kTwoRows) _tile_stored(2, lower, kSumsStride);
  if (kTwoRows && kTwoColumns) _tile_stored(3, lower + 16, kSumsStride);
}

inline __mmask16 column_mask(int columns) {
  return columns >= 16 ? 0xffff : columns <= 0 ? 0 : static_cast<__mmask16>((1u << columns) - 1);
}

class Gemm {
 public:
  explicit Gemm(const GemmS8Args& args)
      : args_(args),
        w_(*args.w),
        k_tiles_(padded_k(w_.k) / kGemmKBlock),
        column_bytes_(k_tiles_ * kTileBytes),
        depths_(ceil_div64(k_tiles_, kDepthMax)),
        columns_(static_cast<int>(min64(args.n_end, padded_n(w_.n)))) {}

  void run() {
    const bool deep = depths_ > 1, fits = padded_m(args_.m) * k_tiles_ * kGemmKBlock <= kFewBytes;
    if (args_.m <= kBlock || (deep && fits)) return run_few_rows();
    const int64_t panels = ceil_div64(args_.m, kBlock);
    const int64_t chunk_blocks = max64(1, min64(kChunkBlocks, kChunkBytes / (2 * column_bytes_)));
    const int64_t chunk = chunk_blocks * kBlock;
    for (int64_t n = args_.n_begin; n < columns_; n += chunk) {
      const int64_t end = min64(n + chunk, columns_);
      // Nothing has fetched the first chunk: its first panel does, in its own order.
      const bool first = n == args_.n_begin;
      if (!first) set_fetch(end, chunk, panels);
      for (int64_t row = 0; row < args_.m; row += kBlock) {
        if (first && row == kBlock) set_fetch(end, chunk, panels - 1);
        panel(row, n, end, first && row == 0);
      }
    }
    Drain(pending_).rows(kBlock);
  }

 private:
  // All panels take a block of B, both columns of tiles to their end, before the next block begins; that one
  // is fetched meanwhile, tile by tile in the order of its use, or with one panel each tile a tile ahead. A
  // comes from L2.
  void run_few_rows() {
    const int64_t panels = ceil_div64(args_.m, kBlock);
    int64_t slot = 0;
    for (int64_t n = args_.n_begin; n < columns_; n += kBlock) {
      if (panels == 1) {
        fetch_ahead(n);
      } else if (n + kBlock < columns_) {
        fetch_block(n + kBlock, 0, k_tiles_, panels);
      } else {
        fetch_next(panels);
      }
      for (int64_t row = 0; row < args_.m; row += kBlock, slot ^= 1) {
        int32_t* sums = sums_ + slot * kBlock * kBlock;
        block(row, n, columns_, 0, k_tiles_, sums, false);
        set_pending(row, n, sums);
      }
    }
    Drain(pending_).rows(kBlock);
  }

  const char* tile_bytes(int64_t column) const {
    return reinterpret_cast<const char*>(w_.tiles + column / kGemmNBlock * column_bytes_);
  }

  // One panel: memory's speed decides. A stream read 1 or 2 KiB ahead of its use makes a fifth more of the
  // memory's bandwidth than one read by the block (34 against 28 GB/s by two cores; from 4 KiB on, a page,
  // the gain is gone). Behind the block's end come the first tiles of the next block, or of the caller's next
  // matrix.
  void fetch_ahead(int64_t n) {
    const bool two = columns_ - n > kGemmNBlock;
    const char* const begin = tile_bytes(n);
    fetch_ = {begin + kAheadTiles * kTileBytes, begin + column_bytes_, kTileBytes / 64,
              two ? column_bytes_ : 0};
    if (n + kBlock < columns_) {
      fetch_.then = tile_bytes(n + kBlock);
      fetch_.then_beside = columns_ - n - kBlock > kGemmNBlock ? column_bytes_ : 0;
    } else if (args_.next != nullptr) {
      const int64_t bytes = padded_k(args_.next->k) * kGemmNBlock;
      fetch_.then = reinterpret_cast<const char*>(args_.next->tiles + args_.next_begin / kGemmNBlock * bytes);
      fetch_.then_beside = next_has_two() ? bytes : 0;
    }
    if (fetch_.then != nullptr) fetch_.then_end = fetch_.then + kAheadTiles * kTileBytes;
  }

  // The first block of what the caller multiplies next.
  void fetch_next(int64_t panels) {
    fetch_ = {};
    if (args_.next == nullptr) return;
    const int64_t bytes = padded_k(args_.next->k) * kGemmNBlock;
    const char* first =
        reinterpret_cast<const char*>(args_.next->tiles + args_.next_begin / kGemmNBlock * bytes);
    const auto lines = static_cast<int>(ceil_div64(bytes / 64, k_tiles_ * panels * 4) * 4);
    fetch_ = {first, first + bytes, lines, next_has_two() ? bytes : 0};
  }

  bool next_has_two() const { return padded_n(args_.next->n) - args_.next_begin > kGemmNBlock; }

  // Spreads the chunk that starts at column `n` over the steps of `panels` panels.
  void set_fetch(int64_t n, int64_t chunk, int64_t panels) {
    const int64_t end = min64(n + chunk, columns_);
    fetch_ = {tile_bytes(n), n < end ? tile_bytes(end) : tile_bytes(n),
              static_cast<int>(ceil_div64(8, panels) * 4)};
  }

  // The tiles [first, last) of k of a block's two columns, over the steps of `panels` panels.
  void fetch_block(int64_t n, int64_t first, int64_t last, int64_t panels) {
    const char* begin = tile_bytes(n) + first * kTileBytes;
    const auto lines = static_cast<int>(ceil_div64(kTileBytes / 256, panels) * 4);
    fetch_ = {begin, begin + (last - first) * kTileBytes, lines, column_bytes_};
  }

  void panel(int64_t row, int64_t n_begin, int64_t n_end, bool fetching) {
    const auto tile_of = [&](int64_t depth) { return k_tiles_ * depth / depths_; };
    for (int64_t depth = 0; depth < depths_; ++depth) {
      const int64_t first = tile_of(depth), last = tile_of(depth + 1);
      for (int64_t n = n_begin; n < n_end; n += kBlock) {
        if (fetching && n + kBlock < n_end) {
          fetch_block(n + kBlock, first, last, 1);
        } else if (fetching && depth + 1 < depths_) {
          fetch_block(n_begin, last, tile_of(depth + 2), 1);
        }
        const int64_t slot = depths_ > 1 ? (n - n_begin) / kBlock : (n / kBlock) % 2;
        int32_t* sums = sums_ + slot * kBlock * kBlock;
        block(row, n, n_end, first, last, sums, depth > 0);
        if (depth + 1 == depths_) set_pending(row, n, sums);
      }
    }
  }

  // sums = or += the products of a block of C over tiles [first, last) of k. What was pending is drained, and
  // may have been pending in this very slot: multiply() drains before it stores.
  void block(int64_t row, int64_t n, int64_t n_end, int64_t first, int64_t last, int32_t* sums, bool add) {
    const bool two_rows = args_.m - row > 16, two_columns = n_end - n > 16;
    const Operands s{.a = args_.a + row * args_.a_stride + first * kGemmKBlock,
                     .a_stride = args_.a_stride,
                     .b = w_.tiles + n / kGemmNBlock * column_bytes_ + first * kTileBytes,
                     .b_next = column_bytes_,
                     .tiles = last - first};
    if (two_rows && two_columns) {
      multiply<true, true>(s, add, sums, pending_, fetch_);
    } else if (two_rows) {
      multiply<true, false>(s, add, sums, pending_, fetch_);
    } else if (two_columns) {
      multiply<false, true>(s, add, sums, pending_, fetch_);
    } else {
      multiply<false, false>(s, add, sums, pending_, fetch_);
    }
    pending_.rows = 0;  // drained
  }

  void set_pending(int64_t row, int64_t n, const int32_t* sums) {
    pending_.sums = sums;
    pending_.a_scale = args_.a_scale + row;
    pending_.w_scale = w_.scale + n;
    pending_.bias = args_.bias != nullptr ? args_.bias + n : nullptr;
    pending_.out = args_.out + row * args_.out_stride + n;
    pending_.out_stride = args_.out_stride;
    pending_.rows = static_cast<int>(min64(kBlock, args_.m - row));
    pending_.accumulate = args_.accumulate;
    const int left = static_cast<int>(min64(columns_, w_.n) - n);
    pending_.mask[0] = column_mask(left);
    pending_.mask[1] = column_mask(left - 16);
  }

  const GemmS8Args& args_;
  const WeightsS8& w_;
  const int64_t k_tiles_, column_bytes_, depths_;
  const int columns_;
  Pending pending_;
  Fetch fetch_;
  alignas(64)
      int32_t sums_[kChunkBlocks * kBlock * kBlock];  // left unset: every block is stored before it is read
};

}  // namespace

void gemm_s8_amx(const GemmS8Args& args) {
  if (args.m <= kGemmFewRows) return gemm_s8_few_rows_avx512(args);
  _tile_loadconfig(args.m <= kBlock ? &kAmxConfigOfRows[static_cast<size_t>(args.m)] : &kAmxConfig);
  Gemm(args).run();
  _tile_release();
}

}  // namespace millrace::kernels::internal

MR_END_TARGET
