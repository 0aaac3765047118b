/* ft_requantise.h: from real values to the numbers of an activation; private to the small form.
 *
 * What becomes of the sum of a convolution has two forms with the same bits: those of
 * quantised((float)sum * m) for any finite m >= 0.
 */
#ifndef FT_REQUANTISE_H
#define FT_REQUANTISE_H

#include "ft_int8.h"

/* The first number above the zero whose real value is not below `top`; 128: none is, or top is 0. */
FT_INLINE int32_t ft_first_from(float top, ft_grid grid) {
  int32_t q = grid.zero + 1;
  while (q < 128 && (top == 0.0f || ft_real(q, grid) < top)) q++;
  return q;
}

/* ---- with floats --------------------------------------------------------------------------- */

/* quantised(v) of any v but a NaN. */
FT_INLINE int8_t ft_nearest(float v, int32_t zero) {
#if defined(__ARM_FP) && (__ARM_FP & 4) && defined(__ARM_FEATURE_DSP)
  int32_t q;
  float rounded;           /* an integer, in a register of the FPU */
  __asm__("vcvtr.s32.f32 %0, %1" : "=t"(rounded) : "t"(v));
  memcpy(&q, &rounded, sizeof q);
  __asm__("qadd %0, %1, %2" : "=r"(q) : "r"(q), "r"(zero));
  __asm__("ssat %0, #8, %1" : "=r"(q) : "r"(q));
  return (int8_t)q;
#else
  return ft_quantised(v, zero);
#endif
}

FT_INLINE int8_t ft_requantised_float(int32_t sum, float m, int32_t zero) {
  return ft_nearest((float)sum * m, zero);
}

/* ---- with integers, for a target without an FPU -------------------------------------------- */

/* A float m >= 0: mantissa / 2^places. */
typedef struct { uint32_t mantissa; int32_t places; } ft_ratio;

/* A subnormal m is none: no sum times it is as large as a half. */
FT_INLINE ft_ratio ft_ratio_of(float m) {
  const uint32_t bits = ft_bits(m), exponent = bits >> 23;
  const ft_ratio none = {0, 0};
  const ft_ratio ratio = {(bits & 0x7FFFFFu) | 0x800000u, 150 - (int32_t)exponent};
  return exponent ? ratio : none;
}

/* value / 2^places to the nearest integer, ties to even; 0 < places < 64. */
FT_INLINE uint64_t ft_shifted(uint64_t value, uint32_t places) {
  const uint64_t half = (uint64_t)1 << (places - 1), whole = value >> places;
  return (value + (half - 1) + (whole & 1)) >> places;
}

/* To 24 significant bits. */
FT_INLINE uint64_t ft_significant(uint64_t value) {
  const uint32_t length = value ? 64 - (uint32_t)__builtin_clzll(value) : 0;
  return length > 24 ? ft_shifted(value, length - 24) << (length - 24) : value;
}

FT_INLINE int8_t ft_requantised_fixed(int32_t sum, ft_ratio m, int32_t zero) {
  const uint32_t size = sum < 0 ? 0u - (uint32_t)sum : (uint32_t)sum;
  const uint64_t product = ft_significant(ft_significant(size) * m.mantissa);
  uint64_t q = product ? 1024 : 0;
  if (m.places > 0) q = m.places < 64 ? ft_shifted(product, (uint32_t)m.places) : 0;
  const int32_t nearest = q < 1024 ? (int32_t)q : 1024;
  return (int8_t)ft_clamped_int((sum < 0 ? -nearest : nearest) + zero, -128, 127);
}

/* ---- which ---------------------------------------------------------------------------------- */

#if defined(__arm__) && !defined(__ARM_FP) && !defined(FT_NO_FPU)
#define FT_NO_FPU
#endif

#ifdef FT_NO_FPU
typedef ft_ratio ft_factor;
FT_INLINE ft_factor ft_factor_of(float m) { return ft_ratio_of(m); }
#define ft_requantised ft_requantised_fixed
#else
typedef float ft_factor;
FT_INLINE ft_factor ft_factor_of(float m) { return m; }
#define ft_requantised ft_requantised_float
#endif

#endif
