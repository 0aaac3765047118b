/* ft_math.h: the canonical float32 exp, log, tanh, sigmoid, sin and cos.
 *
 * Multiplications, additions and one division, each rounded to float32, so every host gives the
 * same bits. Each function has a scalar form, ft_exp(float), and without FT_SMALL a form of eight
 * lanes, ft_exp8(v8); both are compiled from the one text in ft_math_forms.h.
 * A NaN in is a NaN out (which of the NaNs is not said); infinities as in the C library.
 *   exp      within 2 ulp; 0 where the exact value is below FLT_MIN, +inf above FLT_MAX
 *   log      within 2 ulp, denormals too; log(0) = -inf, of a negative NaN
 *   tanh     within 4e-7, never beyond +-1
 *   sigmoid  1 / (1 + exp(-x))
 *   sin, cos within 3e-7 for |x| <= 1e4; beyond it a number in [-1.01, 1.01] without meaning
 */
#ifndef FT_MATH_H
#define FT_MATH_H

#include "ft_lanes.h"

FT_INLINE float ft_set(float x) { return x; }
FT_INLINE float ft_select(int mask, float a, float b) { return mask ? a : b; }
FT_INLINE float ft_min(float a, float b) { return a < b ? a : b; }
FT_INLINE float ft_max(float a, float b) { return a > b ? a : b; }
FT_INLINE float ft_signed(uint32_t bits) { return (float)(int32_t)bits; }

FT_INLINE uint32_t ft_bits(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}

FT_INLINE float ft_float(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

#define FT_F float
#define FT_U uint32_t
#define FT_FORM(name) ft_##name
#include "ft_math_forms.h"
#undef FT_F
#undef FT_U
#undef FT_FORM

#ifndef FT_SMALL

FT_INLINE v8u ft_bits8(v8 x) { return (v8u)x; }
FT_INLINE v8 ft_float8(v8u bits) { return (v8)bits; }
FT_INLINE v8 ft_signed8(v8u bits) { return __builtin_convertvector((v8i)bits, v8); }

#define FT_F v8
#define FT_U v8u
#define FT_FORM(name) ft_##name##8
#include "ft_math_forms.h"
#undef FT_F
#undef FT_U
#undef FT_FORM

#endif
#endif
