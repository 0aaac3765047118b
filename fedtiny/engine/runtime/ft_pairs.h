/* ft_pairs.h: exact sums of products of small integers, for int8 convolutions; private to them.
 *
 * A product of two terms of an int8 sum fits in 16 bits and so do its factors, so a lane of 32 bits
 * takes two products at a time: that of its low halves and that of its high halves. A group is twice
 * as many columns as there are lanes. Its lanes stand in two vectors in the order in which halves of
 * 16 bytes are interleaved, and in which narrowing them puts them back.
 */
#ifndef FT_PAIRS_H
#define FT_PAIRS_H

#include "ft_blocks.h"
#include "ft_int8.h"

#ifndef FT_SMALL

#ifdef __AVX2__
#define FT_SUMS 8            /* lanes of a vector */
#else
#define FT_SUMS 4
#endif

#ifdef __SSE2__
#include <immintrin.h>
#endif

enum { FT_GROUP = 2 * FT_SUMS }; /* columns */

typedef int32_t ft_sums __attribute__((vector_size(4 * FT_SUMS)));
typedef int16_t ft_pairs __attribute__((vector_size(4 * FT_SUMS)));
typedef float ft_reals __attribute__((vector_size(4 * FT_SUMS)));
typedef int8_t ft_numbers __attribute__((vector_size(2 * FT_SUMS)));

typedef struct { ft_pairs half[2]; } ft_group_pairs;

FT_INLINE ft_sums ft_sums_at(const int32_t *from) {
  ft_sums x;
  memcpy(&x, from, sizeof x);
  return x;
}

FT_INLINE ft_pairs ft_pairs_at(const int16_t *from) {
  ft_pairs x;
  memcpy(&x, from, sizeof x);
  return x;
}

FT_INLINE ft_pairs ft_widened(ft_numbers q) {
#ifdef __AVX2__
  return (ft_pairs)_mm256_cvtepi8_epi16((__m128i)q);
#else
  return __builtin_convertvector(q, ft_pairs);
#endif
}

/* The same two terms in every lane. */
FT_INLINE ft_pairs ft_pair_at(const int16_t *from) {
  int32_t two;
  memcpy(&two, from, sizeof two);
  return (ft_pairs)(two + (ft_sums){0});
}

/* Lane by lane the sum of both products. */
FT_INLINE ft_sums ft_products(ft_pairs a, ft_pairs b) {
#if defined __AVX2__
  return (ft_sums)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#elif defined __SSE2__
  return (ft_sums)_mm_madd_epi16((__m128i)a, (__m128i)b);
#else
  const ft_sums low = ((ft_sums)a << 16 >> 16) * ((ft_sums)b << 16 >> 16);
  return low + ((ft_sums)a >> 16) * ((ft_sums)b >> 16);
#endif
}

/* Terms of one group of columns, from two rows. */
FT_INLINE ft_group_pairs ft_interleaved(ft_pairs first, ft_pairs second) {
  ft_group_pairs to;
#if FT_SUMS == 8
  to.half[0] = __builtin_shufflevector(first, second, 0, 16, 1, 17, 2, 18, 3, 19, 8, 24, 9, 25, 10,
                                       26, 11, 27);
  to.half[1] = __builtin_shufflevector(first, second, 4, 20, 5, 21, 6, 22, 7, 23, 12, 28, 13, 29,
                                       14, 30, 15, 31);
#else
  to.half[0] = __builtin_shufflevector(first, second, 0, 8, 1, 9, 2, 10, 3, 11);
  to.half[1] = __builtin_shufflevector(first, second, 4, 12, 5, 13, 6, 14, 7, 15);
#endif
  return to;
}

/* The first half of the columns where half[0] takes them, and back. */
FT_INLINE ft_numbers ft_spread_half(ft_numbers q) {
#if FT_SUMS == 8
  return __builtin_shufflevector(q, q, 0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 6, 7, 4, 5, 6, 7);
#else
  return q;
#endif
}

FT_INLINE ft_numbers ft_gathered_half(ft_numbers q) {
#if FT_SUMS == 8
  return __builtin_shufflevector(q, q, 0, 1, 2, 3, 8, 9, 10, 11, 0, 1, 2, 3, 8, 9, 10, 11);
#else
  return q;
#endif
}

/* In which place of a group a column stands. */
FT_INLINE uint32_t ft_place_of(uint32_t column) {
#if FT_SUMS == 8
  const uint32_t quarter = column / 4;
  return (quarter == 1 ? 8 : quarter == 2 ? 4 : 4 * quarter) + column % 4;
#else
  return column;
#endif
}

/* Half of a group of neighbours. */
FT_INLINE ft_reals ft_half_reals(const float *from, int half) {
  ft_reals x;
  memcpy(&x, from + 4 * half, 16);
#if FT_SUMS == 8
  memcpy((float *)(void *)&x + 4, from + 4 * half + 8, 16);
#endif
  return x;
}

/* The numbers of a group, from its steps of the output. */
FT_INLINE ft_numbers ft_rounded_group(const ft_reals v[2], int32_t zero) {
#if defined __AVX2__
  /* A NaN passes the minimum, becomes the least integer, and so the least number. */
  const __m256 most = _mm256_set1_ps(1024.0f);
  const __m256i low = _mm256_cvtps_epi32(_mm256_min_ps(most, (__m256)v[0]));
  const __m256i high = _mm256_cvtps_epi32(_mm256_min_ps(most, (__m256)v[1]));
  const __m256i both = _mm256_adds_epi16(_mm256_packs_epi32(low, high),
                                         _mm256_set1_epi16((int16_t)zero));
  return (ft_numbers)_mm_packs_epi16(_mm256_castsi256_si128(both),
                                     _mm256_extracti128_si256(both, 1));
#else
  int8_t q[FT_GROUP];
  for (uint32_t k = 0; k < FT_GROUP; k++) q[k] = ft_quantised(v[k / FT_SUMS][k % FT_SUMS], zero);
  ft_numbers numbers;
  memcpy(&numbers, q, sizeof q);
  return numbers;
#endif
}

/* The same of sums that count units. */
FT_INLINE ft_numbers ft_narrowed(const ft_sums sums[2], const float *unit, int32_t zero) {
  ft_reals v[2];
  FT_UNROLL for (int h = 0; h < 2; h++) {
    memcpy(&v[h], unit + FT_SUMS * h, sizeof v[h]);
    v[h] = __builtin_convertvector(sums[h], ft_reals) * v[h];
  }
  return ft_rounded_group(v, zero);
}

FT_INLINE void ft_put_numbers(int8_t *to, ft_numbers q, uint32_t count) {
  if (count >= FT_GROUP) {
    memcpy(to, &q, sizeof q);
    return;
  }
  if (count == FT_SUMS) {
    memcpy(to, &q, FT_SUMS);
    return;
  }
  for (uint32_t k = 0; k < count; k++) to[k] = q[k];
}

#endif
#endif
