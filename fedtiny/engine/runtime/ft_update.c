/* ft_update.c: gradients of parameters, used where they arise: in the update, or in its norm.
 *
 * No gradient is ever stored. A block sums it in registers over the batch, then applies the rule to
 * the weights in place. Everything exists twice: plain, w -= lr g, and general.
 */
#include "ft_rule.h"

#ifndef FT_SMALL

/* ---- w[in, out] ---------------------------------------------------------------------------- */

/* Rows [i, i + ins) of `vectors` vw of columns from o on. */
FT_INLINE void update_block(uint32_t ins, uint32_t vectors, int partial, int general,
                            const float *x, const float *dy, float *w, uint32_t i, uint32_t o,
                            uint32_t rows, uint32_t in, uint32_t out, const ft_rule rule) {
  vw sum[4][4];
  FT_UNROLL for (uint32_t k = 0; k < ins; k++)
    FT_UNROLL for (uint32_t v = 0; v < vectors; v++) sum[k][v] = FT_W(set)(0.0f);
  x += i;
  dy += o;
  for (uint32_t r = 0; r < rows; r++, x += in, dy += out) {
    vw gradient[4];
    FT_UNROLL for (uint32_t v = 0; v < vectors; v++)
      gradient[v] = ft_get(dy + FT_WIDTH * v, partial, out - o);
    FT_UNROLL for (uint32_t k = 0; k < ins; k++)
      FT_UNROLL for (uint32_t v = 0; v < vectors; v++) sum[k][v] += x[k] * gradient[v];
  }
  FT_UNROLL for (uint32_t k = 0; k < ins; k++)
    ft_apply(rule, vectors, partial, general, w, (size_t)(i + k) * out + o, sum[k], out - o);
}

/* One sample, a band of columns: the gradient is x dy^T, and its columns stay in registers. The sum
 * starts at +0, which turns a product of -0 into +0. */
FT_INLINE void update_outer(uint32_t vectors, int partial, int general, const float *x,
                            const float *dy, float *w, uint32_t o, uint32_t in, uint32_t out,
                            const ft_rule rule) {
  vw gradient[4];
  FT_UNROLL for (uint32_t v = 0; v < vectors; v++)
    gradient[v] = ft_get(dy + o + FT_WIDTH * v, partial, out - o);
  for (uint32_t i = 0; i < in; i++) {
    vw g[4];
    FT_UNROLL for (uint32_t v = 0; v < vectors; v++) g[v] = 0.0f + x[i] * gradient[v];
    ft_apply(rule, vectors, partial, general, w, (size_t)i * out + o, g, out - o);
  }
}

/* Several samples, a band of columns. */
FT_INLINE void update_band(uint32_t vectors, int partial, int general, const float *x,
                           const float *dy, float *w, uint32_t o, uint32_t rows, uint32_t in,
                           uint32_t out, const ft_rule rule) {
  uint32_t i = 0;
  for (; i + 4 <= in; i += 4)
    update_block(4, vectors, partial, general, x, dy, w, i, o, rows, in, out, rule);
  for (; i < in; i++)
    update_block(1, vectors, partial, general, x, dy, w, i, o, rows, in, out, rule);
}

/* One output: w is a column, and the lanes are inputs from i on. */
FT_INLINE void update_column(int partial, int general, const float *x, const float *dy, float *w,
                             uint32_t i, uint32_t rows, uint32_t in, const ft_rule rule) {
  vw sum = FT_W(set)(0.0f);
  for (uint32_t r = 0; r < rows; r++)
    sum += ft_get(x + (size_t)r * in + i, partial, in - i) * dy[r];
  ft_apply(rule, 1, partial, general, w, i, &sum, in - i);
}

/* Bands of whole vectors, then what is left, of each of the three cases. */
FT_INLINE void update_matrix(int general, const float *x, const float *dy, float *w, uint32_t rows,
                             uint32_t in, uint32_t out, const ft_rule rule) {
  const uint32_t width = FT_WIDTH;
  uint32_t at = 0;
  if (out == 1) {
    for (; at + width <= in; at += width) update_column(0, general, x, dy, w, at, rows, in, rule);
    if (at < in) update_column(1, general, x, dy, w, at, rows, in, rule);
  } else if (rows == 1) {
    for (; at + 4 * width <= out; at += 4 * width)
      update_outer(4, 0, general, x, dy, w, at, in, out, rule);
    for (; at + width <= out; at += width)
      update_outer(1, 0, general, x, dy, w, at, in, out, rule);
    if (at < out) update_outer(1, 1, general, x, dy, w, at, in, out, rule);
  } else {
    for (; at + 2 * width <= out; at += 2 * width)
      update_band(2, 0, general, x, dy, w, at, rows, in, out, rule);
    for (; at + width <= out; at += width)
      update_band(1, 0, general, x, dy, w, at, rows, in, out, rule);
    if (at < out) update_band(1, 1, general, x, dy, w, at, rows, in, out, rule);
  }
}

FT_BAND void update_plain(const float *x, const float *dy, float *w, uint32_t rows, uint32_t in,
                          uint32_t out, const ft_rule *rule) {
  update_matrix(0, x, dy, w, rows, in, out, *rule);
}

FT_BAND void update_general(const float *x, const float *dy, float *w, uint32_t rows, uint32_t in,
                            uint32_t out, const ft_rule *rule) {
  update_matrix(1, x, dy, w, rows, in, out, *rule);
}

void ft_linear_update_f32(const float *x, const float *dy, float *w, uint32_t rows, uint32_t in,
                          uint32_t out, const ft_rule *rule) {
  if (ft_rule_is_plain(rule))
    update_plain(x, dy, w, rows, in, out, rule);
  else
    update_general(x, dy, w, rows, in, out, rule);
}

/* ---- b[channels] --------------------------------------------------------------------------- */

FT_INLINE void update_bias_part(int partial, int general, const float *dy, float *b, uint32_t c,
                                uint32_t size, uint32_t channels, const ft_rule rule) {
  vw sum = FT_W(set)(0.0f);
  for (uint32_t at = 0; at < size; at += channels)
    sum += ft_get(dy + at + c, partial, channels - c);
  ft_apply(rule, 1, partial, general, b, c, &sum, channels - c);
}

FT_INLINE void update_bias(int general, const float *dy, float *b, uint32_t size,
                           uint32_t channels, const ft_rule rule) {
  uint32_t c = 0;
  for (; c + FT_WIDTH <= channels; c += FT_WIDTH)
    update_bias_part(0, general, dy, b, c, size, channels, rule);
  if (c < channels) update_bias_part(1, general, dy, b, c, size, channels, rule);
}

void ft_bias_update_f32(const float *dy, float *b, uint32_t size, uint32_t channels,
                        const ft_rule *rule) {
  if (ft_rule_is_plain(rule))
    update_bias(0, dy, b, size, channels, *rule);
  else
    update_bias(1, dy, b, size, channels, *rule);
}

/* ---- squared norms ------------------------------------------------------------------------- */

/* Adds the squares of `groups` times eight columns of one row of the gradient of w, in order; of
 * the first n of eight if n < 8. */
FT_INLINE void add_squares(ft_lanes *squares, uint32_t groups, const float *x, const float *dy,
                           uint32_t rows, uint32_t in, uint32_t out, uint32_t n) {
  ft_lanes g[4];
  FT_UNROLL for (uint32_t k = 0; k < groups; k++) g[k] = ft_no_lanes();
  for (uint32_t r = 0; r < rows; r++, x += in, dy += out)
    FT_UNROLL for (uint32_t k = 0; k < groups; k++) {
      const ft_lanes gradient = n < 8 ? ft_lanes_first(dy, n) : ft_lanes_at(dy + 8 * k);
      FT_UNROLL for (int p = 0; p < FT_PARTS; p++) g[k].part[p] += *x * gradient.part[p];
    }
  FT_UNROLL for (uint32_t k = 0; k < groups; k++) ft_add_products(squares, g[k], g[k]);
}

float ft_linear_norm_f32(const float *x, const float *dy, uint32_t rows, uint32_t in,
                         uint32_t out) {
  ft_lanes squares = ft_no_lanes();
  for (uint32_t i = 0; i < in; i++) {
    uint32_t o = 0;
    for (; o + 32 <= out; o += 32) add_squares(&squares, 4, x + i, dy + o, rows, in, out, 8);
    for (; o + 8 <= out; o += 8) add_squares(&squares, 1, x + i, dy + o, rows, in, out, 8);
    if (o < out) add_squares(&squares, 1, x + i, dy + o, rows, in, out, out - o);
  }
  return ft_tree(squares);
}

float ft_bias_norm_f32(const float *dy, uint32_t size, uint32_t channels) {
  const float one = 1.0f;
  ft_lanes squares = ft_no_lanes();
  for (uint32_t c = 0; c < channels; c += 8)
    add_squares(&squares, 1, &one, dy + c, size / channels, 0, channels,
                channels - c < 8 ? channels - c : 8);
  return ft_tree(squares);
}

#endif
