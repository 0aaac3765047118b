/* ft_blocks.h: what the eight-lane kernels are written with; private to them.
 *
 * A block keeps its sums in registers while it walks over the terms. Its numbers of rows and
 * vectors are constants of an inlined function, so every block is compiled for its size; the small
 * functions that name the sizes are not inlined again, which keeps the library small.
 */
#ifndef FT_BLOCKS_H
#define FT_BLOCKS_H

#include "ft_kernels.h"
#include "ft_math.h"

#ifndef FT_SMALL

#define FT_BLOCK static __attribute__((noinline))

#ifdef __clang__
#define FT_UNROLL _Pragma("unroll")
#else
#define FT_UNROLL _Pragma("GCC unroll 16")
#endif

/* Eight lanes, or the first `lanes` of them if `partial`, which is a constant. */
FT_INLINE v8 ft_get8(const float *from, int partial, uint32_t lanes) {
  return partial && lanes < 8 ? ft_load8_first(from, lanes) : ft_load8(from);
}

FT_INLINE void ft_put8(float *to, v8 x, int partial, uint32_t lanes) {
  if (partial && lanes < 8)
    ft_store8_first(to, x, lanes);
  else
    ft_store8(to, x);
}

/* lane sums of a[i] * b[i] */
FT_INLINE float ft_dot8(const float *a, const float *b, uint32_t count) {
  v8 sum = {0};
  uint32_t i = 0;
  for (; i + 8 <= count; i += 8) sum += ft_load8(a + i) * ft_load8(b + i);
  if (i < count) sum += ft_load8_first(a + i, count - i) * ft_load8_first(b + i, count - i);
  return ft_tree8(sum);
}

#endif
#endif
