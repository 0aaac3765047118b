/* ft_update.c: gradients of parameters, used where they arise: in the update, or in its norm.
 *
 * No gradient is ever stored. A block sums it in registers over the batch, then applies the rule to
 * the weights in place. Everything exists twice: plain, w -= lr g, and general.
 */
#include "ft_blocks.h"

#ifndef FT_SMALL

/* What the rule makes of a vector of weights, element `at` of the parameter. */
FT_INLINE void apply(const ft_rule *rule, int general, float *w, size_t at, vw g, int partial,
                     uint32_t lanes) {
  const vw weight = ft_get(w + at, partial, lanes);
  if (general) {
    if (rule->scale != 1.0f) g = rule->scale * g;
    if (rule->weight_decay != 0.0f) g = g + rule->weight_decay * weight;
    if (rule->base) g = g + rule->prox * (weight - ft_get(rule->base + at, partial, lanes));
    if (rule->correction) g = g + ft_get(rule->correction + at, partial, lanes);
    if (rule->velocity) {
      g = rule->momentum * ft_get(rule->velocity + at, partial, lanes) + g;
      ft_put(rule->velocity + at, g, partial, lanes);
    }
  }
  ft_put(w + at, weight - rule->lr * g, partial, lanes);
}

/* ---- w[in, out] ---------------------------------------------------------------------------- */

/* Rows [i, i + ins) of `vectors` vw of columns from o on. */
FT_INLINE void update_block(uint32_t ins, uint32_t vectors, int partial, int general,
                            const float *x, const float *dy, float *w, uint32_t i, uint32_t o,
                            uint32_t rows, uint32_t in, uint32_t out, const ft_rule *rule) {
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
    FT_UNROLL for (uint32_t v = 0; v < vectors; v++)
      apply(rule, general, w, (size_t)(i + k) * out + o + FT_WIDTH * v, sum[k][v], partial,
            out - o);
}

/* One band of columns, from o on. */
FT_INLINE void update_band(uint32_t vectors, int partial, int general, const float *x,
                           const float *dy, float *w, uint32_t o, uint32_t rows, uint32_t in,
                           uint32_t out, const ft_rule *rule) {
  uint32_t i = 0;
  for (; i + 4 <= in; i += 4)
    update_block(4, vectors, partial, general, x, dy, w, i, o, rows, in, out, rule);
  for (; i < in; i++)
    update_block(1, vectors, partial, general, x, dy, w, i, o, rows, in, out, rule);
}

typedef void update_fn(const float *x, const float *dy, float *w, uint32_t o, uint32_t rows,
                       uint32_t in, uint32_t out, const ft_rule *rule);

#define UPDATE(name, vectors, partial, general)                                                    \
  FT_BAND void name(const float *x, const float *dy, float *w, uint32_t o, uint32_t rows,          \
                    uint32_t in, uint32_t out, const ft_rule *rule) {                              \
    update_band(vectors, partial, general, x, dy, w, o, rows, in, out, rule);                      \
  }
UPDATE(plain_2, 2, 0, 0)
UPDATE(plain_1, 1, 0, 0)
UPDATE(plain_last, 1, 1, 0)
UPDATE(general_2, 2, 0, 1)
UPDATE(general_1, 1, 0, 1)
UPDATE(general_last, 1, 1, 1)
#undef UPDATE

static void update_matrix(const float *x, const float *dy, float *w, uint32_t rows, uint32_t in,
                          uint32_t out, const ft_rule *rule, update_fn *const band[3]) {
  uint32_t o = 0;
  for (; o + 2 * FT_WIDTH <= out; o += 2 * FT_WIDTH) band[0](x, dy, w, o, rows, in, out, rule);
  for (; o + FT_WIDTH <= out; o += FT_WIDTH) band[1](x, dy, w, o, rows, in, out, rule);
  if (o < out) band[2](x, dy, w, o, rows, in, out, rule);
}

/* One sample: w -= lr (x dy^T). The sum starts at +0, which turns a product of -0 into +0. */
FT_INLINE void outer_band(uint32_t vectors, int partial, const float *x, const float *dy, float *w,
                          uint32_t in, uint32_t out, uint32_t lanes, float lr) {
  vw gradient[4];
  FT_UNROLL for (uint32_t v = 0; v < vectors; v++)
    gradient[v] = ft_get(dy + FT_WIDTH * v, partial, lanes);
  for (uint32_t i = 0; i < in; i++, w += out) {
    FT_UNROLL for (uint32_t v = 0; v < vectors; v++) {
      const vw weight = ft_get(w + FT_WIDTH * v, partial, lanes);
      ft_put(w + FT_WIDTH * v, weight - lr * (0.0f + x[i] * gradient[v]), partial, lanes);
    }
  }
}

static void update_outer(const float *x, const float *dy, float *w, uint32_t in, uint32_t out,
                         float lr) {
  uint32_t o = 0;
  for (; o + 4 * FT_WIDTH <= out; o += 4 * FT_WIDTH)
    outer_band(4, 0, x, dy + o, w + o, in, out, FT_WIDTH, lr);
  for (; o + FT_WIDTH <= out; o += FT_WIDTH)
    outer_band(1, 0, x, dy + o, w + o, in, out, FT_WIDTH, lr);
  if (o < out) outer_band(1, 1, x, dy + o, w + o, in, out, out - o, lr);
}

/* One output: w is a column, and the lanes are inputs. */
FT_INLINE void update_column_part(int partial, int general, const float *x, const float *dy,
                                  float *w, uint32_t i, uint32_t rows, uint32_t in,
                                  const ft_rule *rule) {
  vw sum = FT_W(set)(0.0f);
  for (uint32_t r = 0; r < rows; r++)
    sum += ft_get(x + (size_t)r * in + i, partial, in - i) * dy[r];
  apply(rule, general, w, i, sum, partial, in - i);
}

FT_INLINE void update_column(int general, const float *x, const float *dy, float *w, uint32_t rows,
                             uint32_t in, const ft_rule *rule) {
  uint32_t i = 0;
  for (; i + FT_WIDTH <= in; i += FT_WIDTH)
    update_column_part(0, general, x, dy, w, i, rows, in, rule);
  if (i < in) update_column_part(1, general, x, dy, w, i, rows, in, rule);
}

void ft_linear_update_f32(const float *x, const float *dy, float *w, uint32_t rows, uint32_t in,
                          uint32_t out, const ft_rule *rule) {
  static update_fn *const plain[3] = {plain_2, plain_1, plain_last};
  static update_fn *const general[3] = {general_2, general_1, general_last};
  const int is_plain = ft_rule_is_plain(rule);
  if (out == 1 && is_plain)
    update_column(0, x, dy, w, rows, in, rule);
  else if (out == 1)
    update_column(1, x, dy, w, rows, in, rule);
  else if (rows == 1 && is_plain)
    update_outer(x, dy, w, in, out, rule->lr);
  else
    update_matrix(x, dy, w, rows, in, out, rule, is_plain ? plain : general);
}

/* ---- b[channels] --------------------------------------------------------------------------- */

FT_INLINE void update_bias_part(int partial, int general, const float *dy, float *b, uint32_t c,
                                uint32_t size, uint32_t channels, const ft_rule *rule) {
  vw sum = FT_W(set)(0.0f);
  for (uint32_t at = 0; at < size; at += channels)
    sum += ft_get(dy + at + c, partial, channels - c);
  apply(rule, general, b, c, sum, partial, channels - c);
}

FT_INLINE void update_bias(int general, const float *dy, float *b, uint32_t size,
                           uint32_t channels, const ft_rule *rule) {
  uint32_t c = 0;
  for (; c + FT_WIDTH <= channels; c += FT_WIDTH)
    update_bias_part(0, general, dy, b, c, size, channels, rule);
  if (c < channels) update_bias_part(1, general, dy, b, c, size, channels, rule);
}

void ft_bias_update_f32(const float *dy, float *b, uint32_t size, uint32_t channels,
                        const ft_rule *rule) {
  if (ft_rule_is_plain(rule))
    update_bias(0, dy, b, size, channels, rule);
  else
    update_bias(1, dy, b, size, channels, rule);
}

/* ---- squared norms ------------------------------------------------------------------------- */

/* Adds the squares of eight columns of one row of the gradient of w, the first n if n < 8. */
FT_INLINE void add_squares(ft_lanes *squares, const float *x, const float *dy, uint32_t rows,
                           uint32_t in, uint32_t out, uint32_t n) {
  ft_lanes g = ft_no_lanes();
  for (uint32_t r = 0; r < rows; r++, x += in, dy += out) {
    const ft_lanes gradient = n < 8 ? ft_lanes_first(dy, n) : ft_lanes_at(dy);
    FT_UNROLL for (int p = 0; p < FT_PARTS; p++) g.part[p] += *x * gradient.part[p];
  }
  ft_add_products(squares, g, g);
}

float ft_linear_norm_f32(const float *x, const float *dy, uint32_t rows, uint32_t in,
                         uint32_t out) {
  ft_lanes squares = ft_no_lanes();
  for (uint32_t i = 0; i < in; i++) {
    uint32_t o = 0;
    for (; o + 8 <= out; o += 8) add_squares(&squares, x + i, dy + o, rows, in, out, 8);
    if (o < out) add_squares(&squares, x + i, dy + o, rows, in, out, out - o);
  }
  return ft_tree(squares);
}

float ft_bias_norm_f32(const float *dy, uint32_t size, uint32_t channels) {
  const float one = 1.0f;
  ft_lanes squares = ft_no_lanes();
  for (uint32_t c = 0; c < channels; c += 8)
    add_squares(&squares, &one, dy + c, size / channels, 0, channels,
                channels - c < 8 ? channels - c : 8);
  return ft_tree(squares);
}

#endif
