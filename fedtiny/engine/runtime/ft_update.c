/* ft_update.c: gradients of parameters, used where they arise: in the update, or in its norm.
 *
 * No gradient is ever stored. A block sums it in registers over the batch, then applies the rule to
 * the weights in place. Each block exists twice: plain, w -= lr g, and general.
 */
#include "ft_blocks.h"

#ifndef FT_SMALL

/* What the rule makes of the weights at w, element `at` of the parameter. */
FT_INLINE void apply(const ft_rule *rule, int general, float *w, size_t at, v8 g, int partial,
                     uint32_t lanes) {
  const v8 weight = ft_get8(w + at, partial, lanes);
  if (general) {
    if (rule->scale != 1.0f) g = rule->scale * g;
    if (rule->weight_decay != 0.0f) g = g + rule->weight_decay * weight;
    if (rule->base) g = g + rule->prox * (weight - ft_get8(rule->base + at, partial, lanes));
    if (rule->correction) g = g + ft_get8(rule->correction + at, partial, lanes);
    if (rule->velocity) {
      g = rule->momentum * ft_get8(rule->velocity + at, partial, lanes) + g;
      ft_put8(rule->velocity + at, g, partial, lanes);
    }
  }
  ft_put8(w + at, weight - rule->lr * g, partial, lanes);
}

/* ---- w[in, out] ---------------------------------------------------------------------------- */

/* Rows [i, i + ins) and columns [o, o + 8 vectors) of w. */
FT_INLINE void update_block(uint32_t ins, uint32_t vectors, int partial, int general,
                            const float *x, const float *dy, float *w, uint32_t i, uint32_t o,
                            uint32_t rows, uint32_t in, uint32_t out, uint32_t lanes,
                            const ft_rule *rule) {
  v8 sum[6][4];
  FT_UNROLL for (uint32_t k = 0; k < ins; k++)
    FT_UNROLL for (uint32_t v = 0; v < vectors; v++) sum[k][v] = ft_set8(0.0f);
  x += i;
  dy += o;
  for (uint32_t r = 0; r < rows; r++, x += in, dy += out) {
    v8 gradient[4];
    FT_UNROLL for (uint32_t v = 0; v < vectors; v++)
      gradient[v] = ft_get8(dy + 8 * v, partial, lanes);
    FT_UNROLL for (uint32_t k = 0; k < ins; k++)
      FT_UNROLL for (uint32_t v = 0; v < vectors; v++) sum[k][v] += x[k] * gradient[v];
  }
  FT_UNROLL for (uint32_t k = 0; k < ins; k++)
    FT_UNROLL for (uint32_t v = 0; v < vectors; v++)
      apply(rule, general, w, (size_t)(i + k) * out + o + 8 * v, sum[k][v], partial, lanes);
}

#define UPDATE(name, ins, vectors, partial, general)                                               \
  FT_BLOCK void name(const float *x, const float *dy, float *w, uint32_t i, uint32_t o,            \
                     uint32_t rows, uint32_t in, uint32_t out, uint32_t lanes,                     \
                     const ft_rule *rule) {                                                        \
    update_block(ins, vectors, partial, general, x, dy, w, i, o, rows, in, out, lanes, rule);      \
  }
typedef void update_fn(const float *x, const float *dy, float *w, uint32_t i, uint32_t o,
                       uint32_t rows, uint32_t in, uint32_t out, uint32_t lanes,
                       const ft_rule *rule);
UPDATE(plain_4x16, 4, 2, 0, 0)
UPDATE(plain_1x16, 1, 2, 0, 0)
UPDATE(plain_4x8, 4, 1, 1, 0)
UPDATE(plain_1x8, 1, 1, 1, 0)
UPDATE(general_4x16, 4, 2, 0, 1)
UPDATE(general_1x16, 1, 2, 0, 1)
UPDATE(general_4x8, 4, 1, 1, 1)
UPDATE(general_1x8, 1, 1, 1, 1)
#undef UPDATE

static void update_wide(const float *x, const float *dy, float *w, uint32_t rows, uint32_t in,
                        uint32_t out, const ft_rule *rule, update_fn *const block[4]) {
  for (uint32_t o = 0; o < out;) {
    const int narrow = out - o < 16;
    const uint32_t lanes = out - o < 8 ? out - o : 8;
    uint32_t i = 0;
    for (; i + 4 <= in; i += 4) block[2 * narrow](x, dy, w, i, o, rows, in, out, lanes, rule);
    for (; i < in; i++) block[2 * narrow + 1](x, dy, w, i, o, rows, in, out, lanes, rule);
    o += narrow ? 8 : 16;
  }
}

/* One sample: w -= lr (x dy^T), row by row. */
static void update_outer(const float *x, const float *dy, float *w, uint32_t in, uint32_t out,
                         float lr) {
  for (uint32_t i = 0; i < in; i++, w += out) {
    uint32_t o = 0;
    for (; o + 8 <= out; o += 8)
      ft_store8(w + o, ft_load8(w + o) - lr * (0.0f + x[i] * ft_load8(dy + o)));
    for (; o < out; o++) w[o] = w[o] - lr * (0.0f + x[i] * dy[o]);
  }
}

/* One output: w is a column, and the lanes are eight inputs. */
FT_INLINE void update_column(int general, const float *x, const float *dy, float *w, uint32_t rows,
                             uint32_t in, const ft_rule *rule) {
  for (uint32_t i = 0; i < in; i += 8) {
    const uint32_t lanes = in - i < 8 ? in - i : 8;
    v8 sum = {0};
    for (uint32_t r = 0; r < rows; r++) sum += ft_get8(x + (size_t)r * in + i, 1, lanes) * dy[r];
    apply(rule, general, w, i, sum, 1, lanes);
  }
}

void ft_linear_update_f32(const float *x, const float *dy, float *w, uint32_t rows, uint32_t in,
                          uint32_t out, const ft_rule *rule) {
  static update_fn *const plain[4] = {plain_4x16, plain_1x16, plain_4x8, plain_1x8};
  static update_fn *const general[4] = {general_4x16, general_1x16, general_4x8, general_1x8};
  const int is_plain = ft_rule_is_plain(rule);
  if (out == 1 && is_plain)
    update_column(0, x, dy, w, rows, in, rule);
  else if (out == 1)
    update_column(1, x, dy, w, rows, in, rule);
  else if (rows == 1 && is_plain)
    update_outer(x, dy, w, in, out, rule->lr);
  else
    update_wide(x, dy, w, rows, in, out, rule, is_plain ? plain : general);
}

/* ---- b[channels] --------------------------------------------------------------------------- */

FT_INLINE v8 column_sums(const float *dy, uint32_t size, uint32_t channels, uint32_t lanes) {
  v8 sum = {0};
  for (uint32_t at = 0; at < size; at += channels) sum += ft_get8(dy + at, 1, lanes);
  return sum;
}

FT_INLINE void update_bias(int general, const float *dy, float *b, uint32_t size,
                           uint32_t channels, const ft_rule *rule) {
  for (uint32_t c = 0; c < channels; c += 8) {
    const uint32_t lanes = channels - c < 8 ? channels - c : 8;
    apply(rule, general, b, c, column_sums(dy + c, size - c, channels, lanes), 1, lanes);
  }
}

void ft_bias_update_f32(const float *dy, float *b, uint32_t size, uint32_t channels,
                        const ft_rule *rule) {
  if (ft_rule_is_plain(rule))
    update_bias(0, dy, b, size, channels, rule);
  else
    update_bias(1, dy, b, size, channels, rule);
}

/* ---- squared norms ------------------------------------------------------------------------- */

float ft_linear_norm_f32(const float *x, const float *dy, uint32_t rows, uint32_t in,
                         uint32_t out) {
  v8 squares = {0};
  for (uint32_t i = 0; i < in; i++)
    for (uint32_t o = 0; o < out; o += 8) {
      const uint32_t lanes = out - o < 8 ? out - o : 8;
      v8 g = {0};
      for (uint32_t r = 0; r < rows; r++)
        g += x[(size_t)r * in + i] * ft_get8(dy + (size_t)r * out + o, 1, lanes);
      squares += g * g;
    }
  return ft_tree8(squares);
}

float ft_bias_norm_f32(const float *dy, uint32_t size, uint32_t channels) {
  v8 squares = {0};
  for (uint32_t c = 0; c < channels; c += 8) {
    const v8 g = column_sums(dy + c, size - c, channels, channels - c < 8 ? channels - c : 8);
    squares += g * g;
  }
  return ft_tree8(squares);
}

#endif
