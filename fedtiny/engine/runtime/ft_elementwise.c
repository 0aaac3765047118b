/* ft_elementwise.c: ops that treat each element, or each row, by itself. An output may stand in the
 * place of an input: what a vector or a row needs is read before it is written. */
#include "ft_blocks.h"

void ft_copy_columns_f32(const float *from, uint32_t from_stride, float *to, uint32_t to_stride,
                         uint32_t rows, uint32_t columns) {
  for (uint32_t r = 0; r < rows; r++, from += from_stride, to += to_stride)
    memcpy(to, from, columns * sizeof(float));
}

#ifndef FT_SMALL

/* ---- forms: a vector of results, from vectors of operands and a slope ---------------------- */

#define FORM(name, result)                                                                         \
  FT_INLINE vw name(vw a, vw b, float slope) {                                                     \
    (void)b, (void)slope;                                                                          \
    return result;                                                                                 \
  }
#define ZERO FT_W(set)(0.0f)
#define WHERE(condition, one, other) FT_W(select)(condition, one, other)

FT_INLINE vw clamped(vw x) { /* NaN passes */
  return WHERE(x >= 6.0f, FT_W(set)(6.0f), WHERE(x <= 0.0f, ZERO, x));
}

/* Of x = a. */
FORM(relu, WHERE(a <= 0.0f, ZERO, a))
FORM(relu6, clamped(a))
FORM(leaky_relu, WHERE(a > 0.0f, a, slope * a))
FORM(tanh_of, FT_W(tanh)(a))
FORM(sigmoid_of, FT_W(sigmoid)(a))
FORM(hardswish, (a * clamped(a + 3.0f)) / 6.0f)
/* Of a and b; of dy = a and y = b, or x = b. */
FORM(add, a + b)
FORM(relu_dx, WHERE(b > 0.0f, a, ZERO))
FORM(relu6_dx, WHERE((b > 0.0f) & (b < 6.0f), a, ZERO))
FORM(leaky_relu_dx, WHERE(b > 0.0f, a, slope * a))
FORM(tanh_dx, a * (1.0f - b * b))
FORM(sigmoid_dx, a * (b * (1.0f - b)))
FORM(hardswish_dx, WHERE(b <= -3.0f, ZERO, WHERE(b >= 3.0f, a, a * (b / 3.0f + 0.5f))))

typedef vw form_fn(vw a, vw b, float slope);

FT_INLINE void each(form_fn *form, const float *a, const float *b, float *to, uint32_t size,
                    float slope) {
  uint32_t i = 0;
  for (; i + FT_WIDTH <= size; i += FT_WIDTH)
    FT_W(store)(to + i, form(FT_W(load)(a + i), FT_W(load)(b + i), slope));
  const uint32_t rest = size - i;
  if (!rest) return;
  const vw last_a = FT_W_FIRST(load)(a + i, rest), last_b = FT_W_FIRST(load)(b + i, rest);
  FT_W_FIRST(store)(to + i, form(last_a, last_b, slope), rest);
}

#define UNARY(name, form)                                                                          \
  void name(const float *x, float *y, uint32_t size) { each(form, x, x, y, size, 0.0f); }
#define BINARY(name, form)                                                                         \
  void name(const float *a, const float *b, float *to, uint32_t size) {                            \
    each(form, a, b, to, size, 0.0f);                                                              \
  }

UNARY(ft_relu_f32, relu)
UNARY(ft_relu6_f32, relu6)
UNARY(ft_tanh_f32, tanh_of)
UNARY(ft_sigmoid_f32, sigmoid_of)
UNARY(ft_hardswish_f32, hardswish)
BINARY(ft_add_f32, add)
BINARY(ft_relu_dx_f32, relu_dx)
BINARY(ft_relu6_dx_f32, relu6_dx)
BINARY(ft_tanh_dx_f32, tanh_dx)
BINARY(ft_sigmoid_dx_f32, sigmoid_dx)
BINARY(ft_hardswish_dx_f32, hardswish_dx)

void ft_leaky_relu_f32(const float *x, float *y, uint32_t size, float slope) {
  each(leaky_relu, x, x, y, size, slope);
}

void ft_leaky_relu_dx_f32(const float *dy, const float *y, float *dx, uint32_t size, float slope) {
  each(leaky_relu_dx, dy, y, dx, size, slope);
}

void ft_bias_f32(const float *x, const float *b, float *y, uint32_t size, uint32_t channels) {
  for (uint32_t at = 0; at < size; at += channels) ft_add_f32(x + at, b, y + at, channels);
}

/* ---- masks --------------------------------------------------------------------------------- */

/* Bit of each lane: is it -1? */
FT_INLINE uint32_t bits_of(vwi lanes) {
#if FT_WIDTH == 8
  return (uint32_t)_mm256_movemask_ps((__m256)lanes);
#else
  const vwi place = {1, 2, 4, 8}, bits = lanes & place;
  return (uint32_t)((bits[0] | bits[1]) | (bits[2] | bits[3]));
#endif
}

FT_INLINE uint32_t mask_bits(vw y, float top) { return bits_of((y > 0.0f) & (y != top)); }

/* One word: of 32 elements, or of the last n of a row. */
FT_INLINE uint32_t mask_word(const float *y, uint32_t n, float top) {
  uint32_t word = 0, j = 0;
  for (; j + FT_WIDTH <= n; j += FT_WIDTH) word |= mask_bits(FT_W(load)(y + j), top) << j;
  return j < n ? word | mask_bits(FT_W_FIRST(load)(y + j, n - j), top) << j : word;
}

void ft_mask_f32(const float *y, uint32_t *mask, uint32_t rows, uint32_t row, float top) {
  for (uint32_t r = 0; r < rows; r++, y += row) {
    uint32_t j = 0;
    for (; j + 32 <= row; j += 32) *mask++ = mask_word(y + j, 32, top);
    if (j < row) *mask++ = mask_word(y + j, row - j, top);
  }
}

/* dx of a vector whose bits are the lowest of the word. */
FT_INLINE vw masked(vw dy, uint32_t word, float slope) {
  static const vwi place = {1, 2, 4, 8
#if FT_WIDTH == 8
                            , 16, 32, 64, 128
#endif
  };
  const vwi kept = (((vwi){0} + (int32_t)word) & place) != 0;
  return WHERE(kept, dy, slope == 0.0f ? ZERO : slope * dy);
}

FT_INLINE void mask_word_dx(const float *dy, uint32_t word, float *dx, uint32_t n, float slope) {
  uint32_t j = 0;
  for (; j + FT_WIDTH <= n; j += FT_WIDTH)
    FT_W(store)(dx + j, masked(FT_W(load)(dy + j), word >> j, slope));
  if (j < n)
    FT_W_FIRST(store)(dx + j, masked(FT_W_FIRST(load)(dy + j, n - j), word >> j, slope), n - j);
}

void ft_mask_dx_f32(const float *dy, const uint32_t *mask, float *dx, uint32_t rows, uint32_t row,
                    float slope) {
  for (uint32_t r = 0; r < rows; r++, dy += row, dx += row) {
    uint32_t j = 0;
    for (; j + 32 <= row; j += 32) mask_word_dx(dy + j, *mask++, dx + j, 32, slope);
    if (j < row) mask_word_dx(dy + j, *mask++, dx + j, row - j, slope);
  }
}

/* ---- softmax ------------------------------------------------------------------------------- */

void ft_softmax_f32(const float *z, float *y, uint32_t rows, uint32_t classes) {
  for (uint32_t r = 0; r < rows; r++, z += classes, y += classes) {
    const float s = ft_sum_exponentials_f32(z, ft_largest_f32(z, classes), y, classes);
    for (uint32_t c = 0; c < classes; c++) y[c] = y[c] / s;
  }
}

void ft_softmax_dx_f32(const float *dy, const float *y, float *dx, uint32_t rows,
                       uint32_t classes) {
  for (uint32_t r = 0; r < rows; r++, dy += classes, y += classes, dx += classes) {
    const float d = ft_dot(dy, y, classes);
    for (uint32_t c = 0; c < classes; c++) dx[c] = y[c] * (dy[c] - d);
  }
}

#endif
