// Exponentials and BF16 rounding in the 16-lane vocabulary. All are sequences of correctly rounded
// operations, so every target gives the same bits. The polynomials are minimax fits of relative error (Lawson
// iteration, then rounded to float), tools to check them: rows_test.cc compares with double precision over
// the whole range.
#pragma once
#include "kernels/internal/vec16-inl.h"

namespace millrace::kernels::MR_TARGET {
namespace {

inline constexpr int32_t kHighHalf = static_cast<int32_t>(0xffff0000);
// Adding 1.5 * 2^23 to |x| < 2^22 rounds x to an integer (ties to even) that then stands in the low mantissa
// bits.
inline constexpr float kRoundMagic = 12582912.0f;

// e^x for every x, about 1 ulp. Exactly 0 below ln(2^-126) (results that would be denormal, and -infinity),
// +infinity above ln(FLT_MAX), NaN for NaN. x = n ln 2 + r, |r| <= ln(2)/2, ln 2 in two parts (Cody and
// Waite); 2^n in two factors, since n = 128 has none.
MR_INLINE V exp_any(V x) {
  const V clamped = max(set1(-88.0f), min(set1(89.0f), x));  // in this order a NaN passes through both
  const V shifted = fma(clamped, set1(0x1.715476p+0f), set1(kRoundMagic));
  const V n = sub(shifted, set1(kRoundMagic));
  const V r = fma(n, set1(-0x1.7f7d1cp-20f), fma(n, set1(-0x1.62e4p-1f), clamped));
  V p = fma(r, set1(0x1.6a2446p-10f), set1(0x1.1239d6p-7f));
  p = fma(p, r, set1(0x1.5558f2p-5f));
  p = fma(p, r, set1(0x1.555492p-3f));
  p = fma(p, r, set1(0x1.fffffcp-2f));
  p = fma(p, r, set1(1));
  p = fma(p, r, set1(1));
  const I whole = sub_words(bits(shifted), bits(set1(kRoundMagic)));
  const I half = shift_right_signed<1>(whole);
  const I one = bits(set1(1));
  const V scale_1 = from_bits(add_words(one, shift_left<23>(half)));
  const V scale_2 = from_bits(add_words(one, shift_left<23>(sub_words(whole, half))));
  return from_bits(zero_where_less(x, set1(-0x1.5d589ep+6f), bits(mul(mul(p, scale_1), scale_2))));
}

// 2^x for x <= 0 (and the little above 0 that rounding makes): exactly 0 below -126 and for -infinity, 1 at
// 0; NaN is unspecified. The degree sets the error: 6 gives about 1 ulp, 3 gives 1e-4, well below half an ulp
// of BF16 (2e-3).
template <int degree>
MR_INLINE V exp2_nonpositive(V x) {
  static_assert(degree == 3 || degree == 6);
  const V shifted = add(x, set1(kRoundMagic));
  const V f = sub(x, sub(shifted, set1(kRoundMagic)));  // exact
  V p;
  if constexpr (degree == 6) {
    p = fma(f, set1(0x1.41fb12p-13f), set1(0x1.5f3e3ap-10f));
    p = fma(p, f, set1(0x1.3b2d4ep-7f));
    p = fma(p, f, set1(0x1.c6aee8p-5f));
    p = fma(p, f, set1(0x1.ebfbdcp-3f));
    p = fma(p, f, set1(0x1.62e430p-1f));
  } else {
    p = fma(f, set1(0x1.c2a240p-5f), set1(0x1.f00c8ap-3f));
    p = fma(p, f, set1(0x1.62f5fcp-1f));
  }
  p = fma(p, f, set1(1));
  // The integer in shifted's low bits, moved onto the exponent; the magic's own bits leave at the top.
  const I scaled = add_words(bits(p), shift_left<23>(bits(shifted)));
  return from_bits(zero_where_less(x, set1(-126.0f), scaled));
}

// Rounds to BF16 (nearest, ties to even), kept as a float whose low 16 bits are zero. NaN stays NaN: it is
// made quiet and not rounded, since a carry could run through it into the sign.
MR_INLINE V round_bf16(V a) {
  const I b = bits(a);
  const I magnitude = and_words(b, set1_word(0x7fffffff));
  const I nan = shift_right_signed<31>(sub_words(set1_word(0x7f800000), magnitude));  // all ones in NaN lanes
  const I lsb = and_words(shift_right<16>(b), set1_word(1));
  const I increment = add_words(lsb, set1_word(0x7fff));
  const I rounded = add_words(b, sub_words(increment, and_words(increment, nan)));
  const I quiet = and_words(nan, set1_word(0x00400000));
  return from_bits(and_words(or_words(rounded, quiet), set1_word(kHighHalf)));
}
// The same for values known not to be NaN.
MR_INLINE V round_bf16_number(V a) {
  const I b = bits(a);
  const I lsb = and_words(shift_right<16>(b), set1_word(1));
  return from_bits(and_words(add_words(b, add_words(lsb, set1_word(0x7fff))), set1_word(kHighHalf)));
}

}  // namespace
}  // namespace millrace::kernels::MR_TARGET
