/* ft_elementwise.c: ops that treat each element by itself, eight lanes. An output may stand in the
 * place of an input: each group of eight is read before it is written. */
#include "ft_blocks.h"

#ifndef FT_SMALL

FT_INLINE v8 relu8(v8 x) { return ft_select8(x <= 0.0f, ft_set8(0.0f), x); } /* NaN passes */
FT_INLINE v8 add8(v8 a, v8 b) { return a + b; }
FT_INLINE v8 relu_dx8(v8 dy, v8 y) { return ft_select8(y > 0.0f, dy, ft_set8(0.0f)); }
FT_INLINE v8 tanh_dx8(v8 dy, v8 y) { return dy * (1.0f - y * y); }
FT_INLINE v8 sigmoid_dx8(v8 dy, v8 y) { return dy * (y * (1.0f - y)); }

#define UNARY(name, function)                                                                      \
  void name(const float *x, float *y, uint32_t size) {                                             \
    uint32_t i = 0;                                                                                \
    for (; i + 8 <= size; i += 8) ft_store8(y + i, function(ft_load8(x + i)));                     \
    if (i < size) ft_store8_first(y + i, function(ft_load8_first(x + i, size - i)), size - i);     \
  }

#define BINARY(name, function)                                                                     \
  void name(const float *a, const float *b, float *y, uint32_t size) {                             \
    uint32_t i = 0;                                                                                \
    for (; i + 8 <= size; i += 8) ft_store8(y + i, function(ft_load8(a + i), ft_load8(b + i)));    \
    if (i < size)                                                                                  \
      ft_store8_first(                                                                             \
          y + i, function(ft_load8_first(a + i, size - i), ft_load8_first(b + i, size - i)),       \
          size - i);                                                                               \
  }

UNARY(ft_relu_f32, relu8)
UNARY(ft_tanh_f32, ft_tanh8)
UNARY(ft_sigmoid_f32, ft_sigmoid8)
BINARY(ft_add_f32, add8)
BINARY(ft_relu_dx_f32, relu_dx8)
BINARY(ft_tanh_dx_f32, tanh_dx8)
BINARY(ft_sigmoid_dx_f32, sigmoid_dx8)

void ft_bias_f32(const float *x, const float *b, float *y, uint32_t size, uint32_t channels) {
  for (uint32_t at = 0; at < size; at += channels) ft_add_f32(x + at, b, y + at, channels);
}

#endif
