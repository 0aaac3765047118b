/* ft_elementwise.c: ops that treat each element by itself. An output may stand in the place of an
 * input: each vector is read before it is written. */
#include "ft_blocks.h"

#ifndef FT_SMALL

FT_INLINE vw relu(vw x) { return FT_W(select)(x <= 0.0f, FT_W(set)(0.0f), x); } /* NaN passes */
FT_INLINE vw add(vw a, vw b) { return a + b; }
FT_INLINE vw relu_dx(vw dy, vw y) { return FT_W(select)(y > 0.0f, dy, FT_W(set)(0.0f)); }
FT_INLINE vw tanh_dx(vw dy, vw y) { return dy * (1.0f - y * y); }
FT_INLINE vw sigmoid_dx(vw dy, vw y) { return dy * (y * (1.0f - y)); }

#define UNARY(name, function)                                                                      \
  void name(const float *x, float *y, uint32_t size) {                                             \
    uint32_t i = 0;                                                                                \
    for (; i + FT_WIDTH <= size; i += FT_WIDTH) FT_W(store)(y + i, function(FT_W(load)(x + i)));   \
    const uint32_t rest = size - i;                                                                \
    if (rest) FT_W_FIRST(store)(y + i, function(FT_W_FIRST(load)(x + i, rest)), rest);             \
  }

#define BINARY(name, function)                                                                     \
  void name(const float *a, const float *b, float *y, uint32_t size) {                             \
    uint32_t i = 0;                                                                                \
    for (; i + FT_WIDTH <= size; i += FT_WIDTH)                                                    \
      FT_W(store)(y + i, function(FT_W(load)(a + i), FT_W(load)(b + i)));                          \
    const uint32_t rest = size - i;                                                                \
    if (rest) {                                                                                    \
      const vw last = function(FT_W_FIRST(load)(a + i, rest), FT_W_FIRST(load)(b + i, rest));      \
      FT_W_FIRST(store)(y + i, last, rest);                                                        \
    }                                                                                              \
  }

UNARY(ft_relu_f32, relu)
UNARY(ft_tanh_f32, FT_W(tanh))
UNARY(ft_sigmoid_f32, FT_W(sigmoid))
BINARY(ft_add_f32, add)
BINARY(ft_relu_dx_f32, relu_dx)
BINARY(ft_tanh_dx_f32, tanh_dx)
BINARY(ft_sigmoid_dx_f32, sigmoid_dx)

void ft_bias_f32(const float *x, const float *b, float *y, uint32_t size, uint32_t channels) {
  for (uint32_t at = 0; at < size; at += channels) ft_add_f32(x + at, b, y + at, channels);
}

#endif
