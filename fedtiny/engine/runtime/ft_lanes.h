/* ft_lanes.h: eight floats at a time, with the bits of one at a time.
 *
 * A v8 is eight float lanes; + - * / and the comparisons are the compiler's own (a comparison gives
 * -1 or 0 in each lane of a v8i), and a plain float beside a v8 stands for eight equal ones. The
 * compiler maps them to SSE2, AVX or NEON; no choice changes a bit. With FT_SMALL, as on a
 * microcontroller, there are no lanes at all.
 */
#ifndef FT_LANES_H
#define FT_LANES_H

#include <stdint.h>
#include <string.h>

#define FT_INLINE static inline __attribute__((always_inline))
#define FT_BAND static __attribute__((noinline))

/* Before a loop over a block, whose extents are constants. */
#ifdef __clang__
#define FT_UNROLL _Pragma("unroll")
#else
#define FT_UNROLL _Pragma("GCC unroll 16")
#endif

#ifndef FT_SMALL

#ifdef __AVX__
#include <immintrin.h>
#endif

typedef float v8 __attribute__((vector_size(32)));
typedef int32_t v8i __attribute__((vector_size(32)));
typedef uint32_t v8u __attribute__((vector_size(32)));

FT_INLINE v8 ft_set8(float x) { return (v8){x, x, x, x, x, x, x, x}; }

/* Any alignment of 4 bytes will do. */
FT_INLINE v8 ft_load8(const float *from) {
  v8 x;
  memcpy(&x, from, sizeof x);
  return x;
}

FT_INLINE void ft_store8(float *to, v8 x) { memcpy(to, &x, sizeof x); }

/* a where the mask is -1, b where it is 0. */
FT_INLINE v8 ft_select8(v8i mask, v8 a, v8 b) {
#ifdef __AVX__
  return (v8)_mm256_blendv_ps((__m256)b, (__m256)a, (__m256)mask);
#else
  return (v8)(((v8i)a & mask) | ((v8i)b & ~mask));
#endif
}

/* a < b ? a : b, so b if either is NaN: min(limit, x) lets a NaN in x pass. */
FT_INLINE v8 ft_min8(v8 a, v8 b) {
#ifdef __AVX__
  return (v8)_mm256_min_ps((__m256)a, (__m256)b);
#else
  return ft_select8(a < b, a, b);
#endif
}

/* a > b ? a : b, so b if either is NaN. */
FT_INLINE v8 ft_max8(v8 a, v8 b) {
#ifdef __AVX__
  return (v8)_mm256_max_ps((__m256)a, (__m256)b);
#else
  return ft_select8(a > b, a, b);
#endif
}

FT_INLINE int ft_are_zero8(v8i x) {
#ifdef __AVX__
  return _mm256_testz_si256((__m256i)x, (__m256i)x);
#else
  int32_t some = 0;
  for (int i = 0; i < 8; i++) some |= x[i];
  return !some;
#endif
}

/* The first n lanes, 1 <= n <= 7, touch memory; a load fills the others with +0. */
#ifdef __AVX__
FT_INLINE __m256i ft_first_lanes(uint32_t n) {
  static const int32_t ones_then_zeros[16] = {-1, -1, -1, -1, -1, -1, -1, -1};
  return _mm256_loadu_si256((const __m256i *)(const void *)(ones_then_zeros + 8 - n));
}

FT_INLINE v8 ft_load8_first(const float *from, uint32_t n) {
  return (v8)_mm256_maskload_ps(from, ft_first_lanes(n));
}

/* In halves: a masked store takes some processors as long as a dozen plain ones. */
FT_INLINE void ft_store8_first(float *to, v8 x, uint32_t n) {
  __m128 rest = _mm256_castps256_ps128((__m256)x);
  if (n & 4) {
    _mm_storeu_ps(to, rest);
    rest = _mm256_extractf128_ps((__m256)x, 1);
    to += 4;
  }
  if (n & 2) {
    _mm_storel_pi((__m64 *)(void *)to, rest);
    rest = _mm_movehl_ps(rest, rest);
    to += 2;
  }
  if (n & 1) _mm_store_ss(to, rest);
}
#else
FT_INLINE v8 ft_load8_first(const float *from, uint32_t n) {
  float lanes[8] = {0};
  for (uint32_t i = 0; i < n; i++) lanes[i] = from[i];
  return ft_load8(lanes);
}

FT_INLINE void ft_store8_first(float *to, v8 x, uint32_t n) {
  float lanes[8];
  ft_store8(lanes, x);
  for (uint32_t i = 0; i < n; i++) to[i] = lanes[i];
}
#endif

/* ((x0 + x1) + (x2 + x3)) + ((x4 + x5) + (x6 + x7)), the canonical end of every lane sum. */
FT_INLINE float ft_tree8(v8 x) {
  return ((x[0] + x[1]) + (x[2] + x[3])) + ((x[4] + x[5]) + (x[6] + x[7]));
}

/* [a0 + a1, a2 + a3, b0 + b1, b2 + b3 | a4 + a5, a6 + a7, b4 + b5, b6 + b7] */
FT_INLINE v8 ft_add_pairs8(v8 a, v8 b) {
  return __builtin_shufflevector(a, b, 0, 2, 8, 10, 4, 6, 12, 14) +
         __builtin_shufflevector(a, b, 1, 3, 9, 11, 5, 7, 13, 15);
}

/* Lane i is ft_tree8(x[i]). */
FT_INLINE v8 ft_tree8_of8(const v8 x[8]) {
  v8 low = ft_add_pairs8(ft_add_pairs8(x[0], x[1]), ft_add_pairs8(x[2], x[3]));
  v8 high = ft_add_pairs8(ft_add_pairs8(x[4], x[5]), ft_add_pairs8(x[6], x[7]));
  return __builtin_shufflevector(low, high, 0, 1, 2, 3, 8, 9, 10, 11) +
         __builtin_shufflevector(low, high, 4, 5, 6, 7, 12, 13, 14, 15);
}

#endif
#endif
