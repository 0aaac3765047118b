/* ft_blocks.h: what the vector kernels are written with; private to them.
 *
 * Two kinds of lanes. Where they are columns of a result, each is a sum of its own, so their number
 * changes no bit: a vw is as wide as a register, 8 floats with AVX, else 4 (a wider vector than the
 * machine has would live in memory). Where they are the eight lanes of one sum, an ft_lanes holds
 * them in one or two vw.
 *
 * A block keeps its sums in registers while it walks over the terms. Its numbers of rows and
 * vectors are constants of an inlined function, so each is compiled for its size; the functions
 * that loop over blocks are not inlined again, which keeps the library small.
 */
#ifndef FT_BLOCKS_H
#define FT_BLOCKS_H

#include "ft_kernels.h"
#include "ft_math.h"

#ifndef FT_SMALL

#ifdef __AVX__

#define FT_WIDTH 8
#define FT_W(name) ft_##name##8
#define FT_W_FIRST(name) ft_##name##8_first
typedef v8 vw;
typedef v8i vwi;
typedef v8u vwu;

#else

#define FT_WIDTH 4
#define FT_W(name) ft_##name##4
#define FT_W_FIRST(name) ft_##name##4_first
typedef float vw __attribute__((vector_size(16)));
typedef int32_t vwi __attribute__((vector_size(16)));
typedef uint32_t vwu __attribute__((vector_size(16)));

FT_INLINE vw ft_set4(float x) { return (vw){x, x, x, x}; }

FT_INLINE vw ft_load4(const float *from) {
  vw x;
  memcpy(&x, from, sizeof x);
  return x;
}

FT_INLINE void ft_store4(float *to, vw x) { memcpy(to, &x, sizeof x); }

FT_INLINE vw ft_load4_first(const float *from, uint32_t n) {
  return (vw){from[0], n > 1 ? from[1] : 0.0f, n > 2 ? from[2] : 0.0f, 0.0f};
}

FT_INLINE void ft_store4_first(float *to, vw x, uint32_t n) {
  to[0] = x[0];
  if (n > 1) to[1] = x[1];
  if (n > 2) to[2] = x[2];
}

FT_INLINE vw ft_select4(vwi mask, vw a, vw b) { return (vw)(((vwi)a & mask) | ((vwi)b & ~mask)); }
FT_INLINE vw ft_min4(vw a, vw b) { return ft_select4(a < b, a, b); }
FT_INLINE vw ft_max4(vw a, vw b) { return ft_select4(a > b, a, b); }
FT_INLINE vwu ft_bits4(vw x) { return (vwu)x; }
FT_INLINE vw ft_float4(vwu bits) { return (vw)bits; }
FT_INLINE vw ft_signed4(vwu bits) { return __builtin_convertvector((vwi)bits, vw); }

#define FT_F vw
#define FT_U vwu
#define FT_FORM FT_W
#include "ft_math_forms.h"
#undef FT_F
#undef FT_U
#undef FT_FORM

/* [a0 + a1, a2 + a3, b0 + b1, b2 + b3] */
FT_INLINE vw ft_add_pairs4(vw a, vw b) {
  return __builtin_shufflevector(a, b, 0, 2, 4, 6) + __builtin_shufflevector(a, b, 1, 3, 5, 7);
}

#endif

/* The first half of the lanes to one place, the second to another. */
FT_INLINE void ft_store_halves(float *first, float *second, vw x) {
#if FT_WIDTH == 8
  _mm_storeu_ps(first, _mm256_castps256_ps128((__m256)x));
  _mm_storeu_ps(second, _mm256_extractf128_ps((__m256)x, 1));
#else
  memcpy(first, &x, sizeof x / 2);
  memcpy(second, (const float *)(const void *)&x + 2, sizeof x / 2);
#endif
}

/* ---- the eight lanes of a sum -------------------------------------------------------------- */

#define FT_PARTS (8 / FT_WIDTH)

typedef struct { vw part[FT_PARTS]; } ft_lanes;

FT_INLINE ft_lanes ft_no_lanes(void) {
  ft_lanes zero;
  FT_UNROLL for (int p = 0; p < FT_PARTS; p++) zero.part[p] = FT_W(set)(0.0f);
  return zero;
}

FT_INLINE ft_lanes ft_lanes_at(const float *from) {
  ft_lanes lanes;
  FT_UNROLL for (int p = 0; p < FT_PARTS; p++) lanes.part[p] = FT_W(load)(from + FT_WIDTH * p);
  return lanes;
}

/* The first n of eight, 1 <= n <= 7; the others are +0. */
FT_INLINE ft_lanes ft_lanes_first(const float *from, uint32_t n) {
  ft_lanes lanes = ft_no_lanes();
#if FT_WIDTH == 8
  lanes.part[0] = ft_load8_first(from, n);
#else
  lanes.part[0] = n < 4 ? ft_load4_first(from, n) : ft_load4(from);
  if (n > 4) lanes.part[1] = ft_load4_first(from + 4, n - 4);
#endif
  return lanes;
}

FT_INLINE void ft_put_lanes(float *to, ft_lanes x) {
  FT_UNROLL for (int p = 0; p < FT_PARTS; p++) FT_W(store)(to + FT_WIDTH * p, x.part[p]);
}

FT_INLINE void ft_put_lanes_first(float *to, ft_lanes x, uint32_t n) {
#if FT_WIDTH == 8
  ft_store8_first(to, x.part[0], n);
#else
  if (n < 4) {
    ft_store4_first(to, x.part[0], n);
  } else {
    ft_store4(to, x.part[0]);
    if (n > 4) ft_store4_first(to + 4, x.part[1], n - 4);
  }
#endif
}

FT_INLINE ft_lanes ft_sum(ft_lanes a, ft_lanes b) {
  FT_UNROLL for (int p = 0; p < FT_PARTS; p++) a.part[p] += b.part[p];
  return a;
}

FT_INLINE void ft_add_products(ft_lanes *sum, ft_lanes a, ft_lanes b) {
  FT_UNROLL for (int p = 0; p < FT_PARTS; p++) sum->part[p] += a.part[p] * b.part[p];
}

FT_INLINE ft_lanes ft_difference(ft_lanes a, ft_lanes b) {
  FT_UNROLL for (int p = 0; p < FT_PARTS; p++) a.part[p] -= b.part[p];
  return a;
}

/* +0 in all lanes but the first n. */
FT_INLINE ft_lanes ft_keep_first(ft_lanes x, uint32_t n) {
  static const float number[8] = {0, 1, 2, 3, 4, 5, 6, 7};
  const ft_lanes index = ft_lanes_at(number);
  FT_UNROLL for (int p = 0; p < FT_PARTS; p++)
    x.part[p] = FT_W(select)(index.part[p] < (float)n, x.part[p], FT_W(set)(0.0f));
  return x;
}

FT_INLINE float ft_tree(ft_lanes x) {
#if FT_WIDTH == 8
  return ft_tree8(x.part[0]);
#else
  const vw a = x.part[0], b = x.part[1];
  return ((a[0] + a[1]) + (a[2] + a[3])) + ((b[0] + b[1]) + (b[2] + b[3]));
#endif
}

/* Lane i is ft_tree(x[i]). */
FT_INLINE vw ft_trees(const ft_lanes x[FT_WIDTH]) {
#if FT_WIDTH == 8
  return ft_tree8_of8(&x[0].part[0]);
#else
  vw half[2];
  FT_UNROLL for (int p = 0; p < 2; p++)
    half[p] = ft_add_pairs4(ft_add_pairs4(x[0].part[p], x[1].part[p]),
                            ft_add_pairs4(x[2].part[p], x[3].part[p]));
  return half[0] + half[1];
#endif
}

FT_INLINE float ft_dot(const float *a, const float *b, uint32_t count) {
  ft_lanes sum = ft_no_lanes();
  uint32_t i = 0;
  for (; i + 8 <= count; i += 8) ft_add_products(&sum, ft_lanes_at(a + i), ft_lanes_at(b + i));
  if (i < count)
    ft_add_products(&sum, ft_lanes_first(a + i, count - i), ft_lanes_first(b + i, count - i));
  return ft_tree(sum);
}

/* ---- columns ------------------------------------------------------------------------------- */

/* A vw, or its first `lanes` if `partial`, which is a constant. */
FT_INLINE vw ft_get(const float *from, int partial, uint32_t lanes) {
  return partial ? FT_W_FIRST(load)(from, lanes) : FT_W(load)(from);
}

FT_INLINE void ft_put(float *to, vw x, int partial, uint32_t lanes) {
  if (partial)
    FT_W_FIRST(store)(to, x, lanes);
  else
    FT_W(store)(to, x);
}

/* Where the next block of `size` starts: the last one ends at the end, and so may compute again
 * what the one before it has computed. */
FT_INLINE uint32_t ft_block_start(uint32_t at, uint32_t size, uint32_t end) {
  return at + size <= end ? at : end - size;
}

#endif
#endif
