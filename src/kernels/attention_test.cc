#include "kernels/attention.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

#include "base/thread_team.h"

namespace millrace::kernels {
namespace {

using Floats = std::vector<float>;

float to_bf16(float x) {
  uint32_t bits = std::bit_cast<uint32_t>(x);
  bits += 0x7fff + (bits >> 16 & 1);
  return std::bit_cast<float>(bits & 0xffff0000u);
}

// A sequence with everything about it: inputs, a pool with scattered pages, and calls over parts of it.
struct Sequence {
  KvShape shape;
  int q_heads;
  int64_t tokens;
  Floats q, k, v;
  std::vector<int32_t> pages;
  std::vector<std::byte> pool;
  int layer = 1;

  Sequence(KvType type, int kv_heads, int group, int head_dim, int64_t count, uint32_t seed, float spread = 2)
      : Sequence(
            KvShape{
                .layers = 2, .kv_heads = kv_heads, .key_dim = head_dim, .value_dim = head_dim, .type = type},
            group, count, seed, spread) {}
  Sequence(const KvShape& cache, int group, int64_t count, uint32_t seed, float spread = 2)
      : shape(cache), q_heads(cache.kv_heads * group), tokens(count) {
    std::mt19937 generator(seed);
    std::normal_distribution<float> normal(0, 1);
    const auto fill = [&](Floats& x, size_t size, float scale) {
      x.resize(size);
      for (float& value : x) value = scale * normal(generator);
    };
    fill(q, size_t(tokens) * size_t(q_width()), spread);
    fill(k, size_t(tokens) * size_t(k_width()), 1);
    fill(v, size_t(tokens) * size_t(v_width()), 1);
    pages.resize(size_t(tokens + kPageTokens - 1) / kPageTokens);
    std::iota(pages.begin(), pages.end(), 2);  // pages 0 and 1 belong to nobody
    std::shuffle(pages.begin(), pages.end(), generator);
    pool.resize((pages.size() + 2) * shape.page_bytes());
  }
  int q_width() const { return q_heads * shape.key_dim; }
  int out_width() const { return q_heads * shape.value_dim; }
  int k_width() const { return shape.kv_heads * shape.key_dim; }
  int v_width() const { return shape.kv_heads * shape.value_dim; }
  KvView view() { return {pool.data(), pages.data()}; }

  void write(Isa isa, int64_t begin, int64_t end) {
    attention_kernels_at(isa).kv_write(shape, view(), layer, begin, static_cast<int>(end - begin),
                                       k.data() + begin * k_width(), k_width(), v.data() + begin * v_width(),
                                       v_width());
  }
  float scale() const { return 1 / std::sqrt(static_cast<float>(shape.key_dim)); }
  // Query heads [head_begin, head_end); all by default.
  void attend(Isa isa, int64_t begin, int64_t end, Floats& out, int head_begin = 0, int head_end = -1) {
    std::vector<float> scratch(attention_scratch_bytes(shape, q_heads) / 4 + 16, std::nanf(""));
    const auto address = (reinterpret_cast<uintptr_t>(scratch.data()) + 63) / 64 * 64;
    out.resize(size_t(tokens) * size_t(out_width()));
    attention_kernels_at(isa).attention({.shape = shape,
                                         .view = view(),
                                         .layer = layer,
                                         .q_heads = q_heads,
                                         .scale = scale(),
                                         .first_position = begin,
                                         .rows = static_cast<int>(end - begin),
                                         .q = q.data() + begin * q_width(),
                                         .q_stride = q_width(),
                                         .out = out.data() + begin * out_width(),
                                         .out_stride = out_width(),
                                         .q_head_begin = head_begin,
                                         .q_head_end = head_end < 0 ? q_heads : head_end,
                                         .scratch = reinterpret_cast<std::byte*>(address)});
  }
  Floats prefill(Isa isa) {
    Floats out;
    write(isa, 0, tokens);
    attend(isa, 0, tokens, out);
    return out;
  }
};

bool same_bits(const Floats& a, const Floats& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

class Attention : public testing::TestWithParam<Isa> {
 protected:
  const Isa isa = GetParam();
  FlushDenormals flush;
};
INSTANTIATE_TEST_SUITE_P(Levels, Attention, testing::ValuesIn(supported_isas()),
                         [](const auto& level) { return std::string(isa_name(level.param)); });

// Against double precision on the same rounded inputs. A score is a sum of D products: D roundings of 2^-24
// of the sum of magnitudes, and a few on the way to the exponent, where an error e changes p by the factor
// 2^e or so; rounding p to BF16 changes it by 2^-9. If every p is off by a factor 1 + d, |d| <= D, the
// weighted mean is off by 2 D max|v|.
void expect_near_double(Sequence& s, Isa isa, int64_t begin) {
  Floats out;
  s.write(isa, 0, s.tokens);
  s.attend(isa, begin, s.tokens, out);
  const bool bf16 = s.shape.type == KvType::bf16;
  const auto rounded = [&](float x) { return double(bf16 ? to_bf16(x) : x); };
  const int dim = s.shape.key_dim, value_dim = s.shape.value_dim, group = s.q_heads / s.shape.kv_heads;
  const double scale = 1 / std::sqrt(double(dim));
  double worst = 0;
  for (int64_t t = begin; t < s.tokens; ++t) {
    for (int head = 0; head < s.q_heads; ++head) {
      const float* q = s.q.data() + t * s.q_width() + head * dim;
      std::vector<double> score(size_t(t) + 1);
      double largest = -1e30, magnitude = 0, v_max = 0;
      for (int64_t j = 0; j <= t; ++j) {
        const float* k = s.k.data() + j * s.k_width() + head / group * dim;
        double sum = 0, sizes = 0;
        for (int d = 0; d < dim; ++d) {
          sum += rounded(q[d]) * rounded(k[d]);
          sizes += std::abs(rounded(q[d]) * rounded(k[d]));
        }
        score[size_t(j)] = sum * scale;
        largest = std::max(largest, score[size_t(j)]);
        magnitude = std::max(magnitude, sizes * scale);
      }
      std::vector<double> o(size_t(value_dim), 0.0);
      double total = 0;
      for (int64_t j = 0; j <= t; ++j) {
        const double p = std::exp(score[size_t(j)] - largest);
        total += p;
        const float* v = s.v.data() + j * s.v_width() + head / group * value_dim;
        for (int d = 0; d < value_dim; ++d) {
          o[size_t(d)] += p * rounded(v[d]);
          v_max = std::max(v_max, std::abs(rounded(v[d])));
        }
      }
      const double of_p = (dim + 8) * 0x1p-24 * magnitude * 2 + (bf16 ? 0x1p-9 + 2e-4 : 1e-6);
      const double of_sums = (double(t) + 8) * 0x1p-24;
      for (int d = 0; d < value_dim; ++d) {
        const double error =
            std::abs(out[size_t(t * s.out_width() + head * value_dim + d)] - o[size_t(d)] / total);
        worst = std::max(worst, error / (2.05 * (of_p + of_sums) * v_max));
      }
    }
  }
  EXPECT_LE(worst, 1);
  // A bound that nothing comes near checks nothing; wide sums' errors cancel, while the bound grows with the
  // width.
  EXPECT_GE(worst, std::min(1e-4, 1e-2 / dim));
}

TEST_P(Attention, AgreesWithDouble) {
  for (const KvType type : {KvType::bf16, KvType::f32}) {
    Sequence one(type, 1, 1, 64, 1, 1), short_one(type, 3, 3, 64, 45, 2), wide(type, 2, 2, 128, 70, 3),
        odd(type, 1, 5, 96, 40, 4), widest(type, 1, 1, 256, 33, 5), long_one(type, 1, 3, 64, 600, 6);
    for (Sequence* s : {&short_one, &wide, &odd, &widest}) expect_near_double(*s, isa, 0);
    expect_near_double(long_one, isa, 560);  // three chunks
  }
  Sequence tiny(KvType::f32, 2, 2, 6, 40, 7), uneven(KvType::f32, 1, 2, 50, 40, 8);
  expect_near_double(tiny, isa, 0);
  expect_near_double(uneven, isa, 0);
}

constexpr KvShape latent(KvType type, int key_dim, int value_dim, int kv_heads = 1) {
  return {.layers = 2, .kv_heads = kv_heads, .key_dim = key_dim, .value_dim = value_dim, .type = type};
}

TEST_P(Attention, ValuesMayBeOfAnotherWidthThanKeys) {
  for (const KvType type : {KvType::bf16, KvType::f32}) {
    Sequence tiny(latent(type, 96, 64), 4, 45, 70), sixteen(latent(type, 32, 16), 3, 37, 71),
        odd_tile(latent(type, 64, 112, 2), 2, 70, 72), wider(latent(type, 32, 256), 5, 33, 73),
        deepseek(latent(type, 576, 512), 16, 300, 74);
    for (Sequence* s : {&tiny, &sixteen, &odd_tile, &wider}) expect_near_double(*s, isa, 0);
    expect_near_double(deepseek, isa, 296);
  }
  Sequence any(latent(KvType::f32, 7, 3), 2, 40, 75);
  expect_near_double(any, isa, 0);
}

TEST_P(Attention, EqualsScalarWhereWidthsDiffer) {
  for (const KvType type : {KvType::bf16, KvType::f32}) {
    // One row of 128 heads is a panel; 3 rows of 43 heads are one and a block of one row; 35 heads end in
    // three rows.
    for (const auto& [kv_heads, group, key, value, tokens] : {std::array{1, 4, 96, 64, 270},
                                                              {1, 128, 64, 16, 3},
                                                              {1, 43, 32, 48, 3},
                                                              {2, 35, 96, 80, 7},
                                                              {1, 2, 576, 512, 40}}) {
      Sequence a(latent(type, key, value, kv_heads), group, tokens, 76), b = a;
      EXPECT_TRUE(same_bits(a.prefill(isa), b.prefill(Isa::scalar))) << key << ' ' << value << ' ' << tokens;
      EXPECT_EQ(a.pool, b.pool);
    }
  }
}

// Latent attention: a page without a V part gives the bits of one that holds the value a second time.
TEST_P(Attention, AValueThatIsTheKeysPrefixNeedNotBeStored) {
  for (const KvType type : {KvType::bf16, KvType::f32}) {
    for (const auto& [kv_heads, group, key, value, tokens] :
         {std::array{1, 4, 96, 64, 300}, {1, 130, 64, 32, 7}, {2, 5, 128, 128, 40}, {1, 2, 576, 512, 270}}) {
      if (isa == Isa::scalar && key == 576) continue;
      Sequence both(latent(type, key, value, kv_heads), group, tokens, 90);
      for (int64_t row = 0; row < tokens; ++row)
        for (int head = 0; head < kv_heads; ++head)
          std::copy_n(both.k.begin() + row * both.k_width() + head * key, value,
                      both.v.begin() + row * both.v_width() + head * value);
      Sequence once = both;
      once.shape.value_is_key_prefix = true;
      EXPECT_EQ(once.shape.layer_bytes(), size_t(kv_heads) * once.shape.key_part_bytes());
      once.pool.assign((once.pages.size() + 2) * once.shape.page_bytes(), std::byte{0});
      once.v.clear();
      const Floats expected = both.prefill(isa);
      EXPECT_TRUE(same_bits(once.prefill(isa), expected)) << key << ' ' << value << ' ' << tokens;
      Floats out;
      for (int64_t at = 0; at < tokens; at += 61)
        once.attend(isa, at, std::min(tokens + int64_t{0}, at + 61), out);
      EXPECT_TRUE(same_bits(out, expected)) << key << ' ' << value << ' ' << tokens;
    }
  }
}

// Decoding rows with few heads and many, over odd and even numbers of pages, the last one partly filled: keys
// that are values give the bits of values that are stored, whatever lies in the page beyond the row.
TEST_P(Attention, FewQueriesOfKeysThatAreValues) {
  for (const auto& [key, value] : {std::array{64, 32}, {96, 64}, {192, 128}, {576, 512}})
    for (const int group : {1, 4, 7, 8, 17})
      for (const int tokens : {1, 31, 33, 64, 95, 270}) {
        Sequence both(latent(KvType::bf16, key, value), group, tokens, 91);
        for (int64_t row = 0; row < tokens; ++row)
          std::copy_n(both.k.begin() + row * key, value, both.v.begin() + row * value);
        Sequence once = both;
        once.shape.value_is_key_prefix = true;
        const uint16_t largest = 0x7f7f;  // pages hold no infinity
        once.pool.resize((once.pages.size() + 2) * once.shape.page_bytes());
        for (size_t i = 0; i + 2 <= once.pool.size(); i += 2) std::memcpy(&once.pool[i], &largest, 2);
        both.write(Isa::scalar, 0, tokens);
        once.write(isa, 0, tokens);
        for (const int rows : {1, 3}) {
          if (rows > tokens) continue;
          Floats expected, out;
          both.attend(Isa::scalar, tokens - rows, tokens, expected);
          once.attend(isa, tokens - rows, tokens, out);
          EXPECT_TRUE(same_bits(out, expected))
              << key << ' ' << value << ", " << group << " heads, " << tokens << " tokens, " << rows;
        }
      }
}

// Multi-query decode is shared among threads by query heads: neither the cut nor the rows of a call change
// bits.
TEST_P(Attention, AnyRangeOfQueryHeadsGivesTheSameBits) {
  for (const KvType type : {KvType::bf16, KvType::f32}) {
    for (const int kv_heads : {1, 3}) {
      const int64_t tokens = kv_heads == 1 ? 40 : isa == Isa::scalar ? 60 : 290;
      Sequence s(latent(type, 64, 48, kv_heads), kv_heads == 1 ? 128 : 5, tokens, 77);
      const Floats expected = s.prefill(isa);
      for (const int step : {1, 7, 16, 33, 40, 128}) {
        for (const int64_t rows : {int64_t{1}, int64_t{5}}) {
          Floats out = expected;
          std::fill(out.end() - rows * s.out_width(), out.end(), std::nanf(""));
          for (int head = 0; head < s.q_heads; head += step)
            s.attend(isa, tokens - rows, tokens, out, head, std::min(s.q_heads, head + step));
          EXPECT_TRUE(same_bits(out, expected)) << kv_heads << ' ' << step << ' ' << rows;
        }
      }
    }
  }
}

TEST_P(Attention, EqualsScalar) {
  for (const KvType type : {KvType::bf16, KvType::f32}) {
    for (const auto& [kv_heads, group, dim, tokens] : {std::array{3, 3, 64, 50},
                                                       {1, 1, 32, 33},
                                                       {2, 4, 128, 40},
                                                       {1, 7, 96, 90},
                                                       {1, 2, 256, 40},
                                                       {1, 3, 64, 300}}) {
      Sequence a(type, kv_heads, group, dim, tokens, 10), b = a;
      EXPECT_TRUE(same_bits(a.prefill(isa), b.prefill(Isa::scalar))) << dim << ' ' << tokens;
      EXPECT_EQ(a.pool, b.pool);
    }
  }
}

// Values from denormal to huge: flushing, cancellation, probabilities that vanish.
TEST_P(Attention, EqualsScalarOnExtremeValues) {
  std::mt19937 generator(11);
  const auto spread = [&](Floats& x, int low, int high) {
    for (float& value : x)
      value = std::ldexp(value, std::uniform_int_distribution<int>(low, high)(generator));
  };
  for (int round = 0; round < 4; ++round) {
    Sequence a(KvType::bf16, 2, 3, 64, 70, 12 + uint32_t(round));
    spread(a.q, -60, 2);
    spread(a.k, round % 2 ? -80 : -10, 2);
    spread(a.v, round / 2 ? -140 : -120, round / 2 ? -100 : 100);
    Sequence b = a;
    EXPECT_TRUE(same_bits(a.prefill(isa), b.prefill(Isa::scalar))) << round;
    EXPECT_EQ(a.pool, b.pool);
  }
}

// Decision 1 of the design: prefill whole, in any chunks, and one token after another, give the same bits.
TEST_P(Attention, ChunkingAndDecodeDoNotChangeBits) {
  for (const KvType type : {KvType::bf16, KvType::f32}) {
    const int64_t tokens = isa == Isa::scalar ? 290 : 700;
    Sequence whole(type, 1, 3, 64, tokens, 20);
    const Floats expected = whole.prefill(isa);
    for (const int64_t step : {int64_t{1}, int64_t{3}, int64_t{31}, int64_t{256}, int64_t{100}}) {
      Sequence parts = whole;
      std::ranges::fill(parts.pool, std::byte{0});
      Floats out;
      for (int64_t at = 0; at < tokens; at += step) {
        const int64_t end = std::min(tokens, at + step);
        parts.write(isa, at, end);
        parts.attend(isa, at, end, out);
      }
      EXPECT_EQ(parts.pool, whole.pool) << step;
      EXPECT_TRUE(same_bits(out, expected)) << step;
    }
  }
}

TEST_P(Attention, WhatLiesBeyondThePositionDoesNotMatter) {
  for (const KvType type : {KvType::bf16, KvType::f32}) {
    Sequence clean(type, 2, 2, 64, 320, 30);
    const int64_t end = 275;
    Floats expected, out;
    clean.write(isa, 0, end);
    clean.attend(isa, 250, end, expected);
    Sequence dirty = clean;
    for (float& value : dirty.k) value *= 1e6f;
    for (float& value : dirty.v) value *= -1e6f;
    dirty.write(isa, end, dirty.tokens);  // the rest of the last page and the pages after it
    dirty.attend(isa, 250, end, out);
    EXPECT_TRUE(same_bits(out, expected));
  }
}

TEST_P(Attention, HeadsCanBeSplitAndReadTheirOwnKvHead) {
  for (const KvType type : {KvType::bf16, KvType::f32}) {
    Sequence s(type, 3, 2, 64, 40, 40);
    const Floats expected = s.prefill(isa);
    Floats out;
    s.attend(isa, 0, 40, out, 4, 6);
    s.attend(isa, 0, 40, out, 0, 4);
    EXPECT_TRUE(same_bits(out, expected));
    // Changing KV head 1 changes query heads 2 and 3 and no others.
    for (int64_t t = 0; t < s.tokens; ++t)
      for (int d = 0; d < 64; ++d) s.v[size_t(t * s.v_width() + 64 + d)] += 1;
    const Floats changed = s.prefill(isa);
    for (size_t i = 0; i < changed.size(); ++i) {
      const size_t head = i % size_t(s.q_width()) / 64;
      EXPECT_EQ(changed[i] != expected[i], head == 2 || head == 3) << i;
    }
  }
}

TEST_P(Attention, OtherLayersAndPagesAreUntouched) {
  for (const KvType type : {KvType::bf16, KvType::f32}) {
    Sequence s(type, 2, 1, 64, 40, 50);
    std::ranges::fill(s.pool, std::byte{0x11});
    s.write(isa, 3, 40);
    const auto page = s.shape.page_bytes(), layer = s.shape.layer_bytes();
    for (size_t i = 0; i < s.pool.size(); ++i) {
      if (i / page < 2 || i % page < layer) {
        ASSERT_EQ(s.pool[i], std::byte{0x11}) << i;
      }
    }
  }
}

// A page goes from one sequence to the next: what a broken request leaves in it must not reach another's
// rows.
TEST_P(Attention, NonFiniteValuesInAPageDoNotReachOtherRows) {
  const float inf = std::numeric_limits<float>::infinity();
  for (const float poison : {std::nanf(""), -std::nanf(""), inf, -inf, 3.4e38f}) {
    Sequence s(KvType::bf16, 2, 3, 64, 320, 70);
    Floats expected, out;
    s.write(isa, 0, 275);
    s.attend(isa, 240, 275, expected);
    std::ranges::fill(s.k, poison);
    std::ranges::fill(s.v, poison);
    s.write(isa, 275, s.tokens);
    s.attend(isa, 240, 275, out);
    EXPECT_TRUE(same_bits(out, expected)) << poison;

    KvShape prefix = latent(KvType::bf16, 96, 64);
    prefix.value_is_key_prefix = true;
    Sequence once(prefix, 4, 320, 71);
    once.write(isa, 0, 275);
    once.attend(isa, 240, 275, expected);
    std::ranges::fill(once.k, poison);
    once.write(isa, 275, once.tokens);
    once.attend(isa, 240, 275, out);
    EXPECT_TRUE(same_bits(out, expected)) << poison;
  }
}

TEST(AttentionShape, RefusesWhatNoLevelComputes) {
  const auto code = [](KvType type, int kv_heads, int key_dim, int value_dim, int q_heads) {
    const auto checked = check_attention_shape(latent(type, key_dim, value_dim, kv_heads), q_heads);
    return checked ? Code::ok : checked.error().code;
  };
  EXPECT_EQ(code(KvType::bf16, 2, 256, 256, 4), Code::ok);
  EXPECT_EQ(code(KvType::bf16, 1, 576, 512, 128), Code::ok);
  EXPECT_EQ(code(KvType::bf16, 1, 1024, 1024, 1), Code::ok);
  EXPECT_EQ(code(KvType::f32, 2, 6, 5, 4), Code::ok);
  KvShape prefix = latent(KvType::bf16, 64, 96);
  prefix.value_is_key_prefix = true;
  EXPECT_EQ(check_attention_shape(prefix, 4).error().code, Code::unimplemented);
  prefix.value_dim = 48;
  EXPECT_EQ(check_attention_shape(prefix, 4).error().code, Code::unimplemented);
  prefix.value_dim = 32;
  EXPECT_TRUE(check_attention_shape(prefix, 4).has_value());
  EXPECT_EQ(code(KvType::bf16, 2, 1056, 64, 4), Code::unimplemented);
  EXPECT_EQ(code(KvType::bf16, 2, 64, 1040, 4), Code::unimplemented);
  EXPECT_EQ(code(KvType::bf16, 2, 48, 48, 4), Code::unimplemented);
  EXPECT_EQ(code(KvType::bf16, 2, 64, 40, 4), Code::unimplemented);
  EXPECT_EQ(code(KvType::f32, 2, 0, 4, 4), Code::unimplemented);
  EXPECT_EQ(code(KvType::f32, 2, 4, 0, 4), Code::unimplemented);
  EXPECT_EQ(code(KvType::f32, 0, 64, 64, 4), Code::unimplemented);
  EXPECT_EQ(code(KvType::f32, 3, 64, 64, 4), Code::unimplemented);
}

TEST_P(Attention, KeysKeepNanAndValuesAreFinite) {
  Sequence s(KvType::bf16, 1, 1, 32, 2, 60);
  const auto stored = [&](size_t offset) {
    uint16_t bits = 0;
    std::memcpy(&bits,
                s.pool.data() + size_t(s.pages[0]) * s.shape.page_bytes() + s.shape.layer_bytes() + offset,
                sizeof bits);
    return bits;
  };
  // Where key 0's dim 5 stands: pairs of dims in K, pairs of keys in V (KvShape).
  const size_t key = 5 / 2 * 64 + 5 % 2 * 2, value = s.shape.key_part_bytes() + 5 * 4;
  for (const int64_t rows : {1, 2}) {
    for (const uint32_t bits : {0x7fffffffu, 0xffffffffu, 0x7f800001u, 0xffc00000u}) {
      s.k[5] = s.v[5] = std::bit_cast<float>(bits);
      s.write(isa, 0, rows);
      EXPECT_TRUE((stored(key) & 0x7f80) == 0x7f80 && (stored(key) & 0x7f) != 0) << std::hex << stored(key);
      EXPECT_EQ(stored(value), 0xff7f) << std::hex << stored(value);
    }
    s.v[5] = std::numeric_limits<float>::infinity();
    s.write(isa, 0, rows);
    EXPECT_EQ(stored(value), 0x7f7f);
    s.v[5] = -std::numeric_limits<float>::max();  // rounds up past the largest BF16
    s.write(isa, 0, rows);
    EXPECT_EQ(stored(value), 0xff7f);
  }
}

}  // namespace
}  // namespace millrace::kernels
