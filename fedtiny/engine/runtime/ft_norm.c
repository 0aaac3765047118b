/* ft_norm.c: affine maps and normalisation, channel by channel.
 *
 * The lanes are channels, so a sum over rows is sequential by itself; up to four vectors of
 * channels go side by side, since one alone would wait for each addition. Channels come in parts of
 * at most 32, whose sums and factors stand on the stack.
 */
#include "ft_channels.h"

#include <math.h>

#ifndef FT_SMALL

#define PART 32u /* channels; a multiple of the lanes of a sum */

typedef struct { float at[PART]; } ft_part;

/* rows of x, of which `columns` channels are meant; `stride` floats from row to row. */
typedef struct { uint32_t rows, columns, stride; } ft_columns;

/* ---- sums over the rows -------------------------------------------------------------------- */

/* Of a; of (a - shift)^2; of a * b. */
enum { PLAIN, SQUARES, PRODUCTS };

FT_INLINE void add_rows(int kind, uint32_t vectors, int partial, uint32_t c, const ft_columns *part,
                        const float *a, const float *b, const ft_part *shift, ft_part *sums) {
  const uint32_t lanes = part->columns - c, rows = part->rows, stride = part->stride;
  vw sum[4], mean[4];
  FT_UNROLL for (uint32_t v = 0; v < vectors; v++) {
    sum[v] = FT_W(set)(0.0f);
    if (kind == SQUARES) mean[v] = ft_get(shift->at + c + FT_WIDTH * v, partial, lanes);
  }
  a += c;
  if (kind == PRODUCTS) b += c;
  for (uint32_t r = 0; r < rows; r++, a += stride) {
    FT_UNROLL for (uint32_t v = 0; v < vectors; v++) {
      const vw x = ft_get(a + FT_WIDTH * v, partial, lanes);
      if (kind == PLAIN) sum[v] += x;
      if (kind == SQUARES) sum[v] += (x - mean[v]) * (x - mean[v]);
      if (kind == PRODUCTS) sum[v] += x * ft_get(b + FT_WIDTH * v, partial, lanes);
    }
    if (kind == PRODUCTS) b += stride;
  }
  FT_UNROLL for (uint32_t v = 0; v < vectors; v++)
    ft_put(sums->at + c + FT_WIDTH * v, sum[v], partial, lanes);
}

FT_BAND void sum_rows(const ft_columns *part, const float *a, ft_part *sums) {
#define ADD(vectors, partial, c) add_rows(PLAIN, vectors, partial, c, part, a, NULL, NULL, sums)
  FT_EACH_VECTOR(part->columns, ADD)
#undef ADD
}

FT_BAND void sum_squares(const ft_columns *part, const float *a, const ft_part *shift,
                         ft_part *sums) {
#define ADD(vectors, partial, c) add_rows(SQUARES, vectors, partial, c, part, a, NULL, shift, sums)
  FT_EACH_VECTOR(part->columns, ADD)
#undef ADD
}

FT_BAND void sum_products(const ft_columns *part, const float *a, const float *b, ft_part *sums) {
#define ADD(vectors, partial, c) add_rows(PRODUCTS, vectors, partial, c, part, a, b, NULL, sums)
  FT_EACH_VECTOR(part->columns, ADD)
#undef ADD
}

/* ---- maps ---------------------------------------------------------------------------------- */

/* Of x, with factors of each channel: x * p + q; (x - p) * q; p * ((x - q) - other * s). */
enum { AFFINE, NORMALIZE, NORMALIZE_DX };

FT_INLINE void map_rows(int kind, uint32_t vectors, int partial, uint32_t c, const ft_columns *part,
                        const float *x, const float *other, const float *p, const float *q,
                        const float *s, float *y) {
  const uint32_t lanes = part->columns - c, rows = part->rows, stride = part->stride;
  vw factor[4], shift[4], slope[4];
  FT_UNROLL for (uint32_t v = 0; v < vectors; v++) {
    factor[v] = ft_get(p + c + FT_WIDTH * v, partial, lanes);
    shift[v] = ft_get(q + c + FT_WIDTH * v, partial, lanes);
    if (kind == NORMALIZE_DX) slope[v] = ft_get(s + c + FT_WIDTH * v, partial, lanes);
  }
  for (size_t r = 0, at = c; r < rows; r++, at += stride)
    FT_UNROLL for (uint32_t v = 0; v < vectors; v++) {
      const vw in = ft_get(x + at + FT_WIDTH * v, partial, lanes);
      vw out;
      if (kind == AFFINE) out = in * factor[v] + shift[v];
      if (kind == NORMALIZE) out = (in - factor[v]) * shift[v];
      if (kind == NORMALIZE_DX)
        out = factor[v] *
              ((in - shift[v]) - ft_get(other + at + FT_WIDTH * v, partial, lanes) * slope[v]);
      ft_put(y + at + FT_WIDTH * v, out, partial, lanes);
    }
}

FT_BAND void affine_rows(const ft_columns *part, const float *x, const float *g, const float *b,
                         float *y) {
#define MAP(vectors, partial, c)                                                                   \
  map_rows(AFFINE, vectors, partial, c, part, x, NULL, g, b, NULL, y)
  FT_EACH_VECTOR(part->columns, MAP)
#undef MAP
}

FT_BAND void normalize_rows(const ft_columns *part, const float *x, const float *mean,
                            const float *rstd, float *y) {
#define MAP(vectors, partial, c)                                                                   \
  map_rows(NORMALIZE, vectors, partial, c, part, x, NULL, mean, rstd, NULL, y)
  FT_EACH_VECTOR(part->columns, MAP)
#undef MAP
}

FT_BAND void normalize_rows_dx(const ft_columns *part, const float *dy, const float *y,
                               const ft_part *rstd, const ft_part *a, const ft_part *b,
                               float *dx) {
#define MAP(vectors, partial, c)                                                                   \
  map_rows(NORMALIZE_DX, vectors, partial, c, part, dy, y, rstd->at, a->at, b->at, dx)
  FT_EACH_VECTOR(part->columns, MAP)
#undef MAP
}

/* ---- parts of at most 32 channels ---------------------------------------------------------- */

static const ft_part zeros;

/* Channels [c, ...) of rows that are `channels` wide. */
static ft_columns part_at(uint32_t c, uint32_t end, uint32_t rows, uint32_t channels) {
  return (ft_columns){rows, end - c < PART ? end - c : PART, channels};
}

void ft_affine_f32(const float *x, const float *g, const float *b, float *y, uint32_t size,
                   uint32_t channels) {
  for (uint32_t c = 0; c < channels; c += PART) {
    const ft_columns part = part_at(c, channels, size / channels, channels);
    affine_rows(&part, x + c, g + c, b + c, y + c);
  }
}

/* dy - 0 is dy, also of -0. */
void ft_affine_dx_f32(const float *dy, const float *g, float *dx, uint32_t size,
                      uint32_t channels) {
  for (uint32_t c = 0; c < channels; c += PART) {
    const ft_columns part = part_at(c, channels, size / channels, channels);
    normalize_rows(&part, dy + c, zeros.at, g + c, dx + c);
  }
}

static const float *moved(const float *state, uint32_t by) { return state ? state + by : NULL; }

void ft_affine_update_f32(const float *x, const float *dy, float *g, uint32_t size,
                          uint32_t channels, const ft_rule *rule) {
  for (uint32_t c = 0; c < channels; c += PART) {
    const ft_columns part = part_at(c, channels, size / channels, channels);
    ft_rule own = *rule;
    ft_part sums;
    if (rule->velocity) own.velocity += c;
    own.base = moved(rule->base, c);
    own.correction = moved(rule->correction, c);
    sum_products(&part, x + c, dy + c, &sums);
    ft_gradient_update_f32(sums.at, g + c, part.columns, &own);
  }
}

/* The sums of a part, or the last of several, added to the lanes. */
static ft_lanes in_lanes(ft_lanes lanes, const ft_part *sums, uint32_t columns, int squared) {
  for (uint32_t c = 0; c < columns; c += 8) {
    const ft_lanes sum = columns - c < 8 ? ft_lanes_first(sums->at + c, columns - c)
                                         : ft_lanes_at(sums->at + c);
    if (squared)
      ft_add_products(&lanes, sum, sum);
    else
      lanes = ft_sum(lanes, sum);
  }
  return lanes;
}

float ft_affine_norm_f32(const float *x, const float *dy, uint32_t size, uint32_t channels) {
  ft_lanes squares = ft_no_lanes();
  for (uint32_t c = 0; c < channels; c += PART) {
    const ft_columns part = part_at(c, channels, size / channels, channels);
    ft_part sums;
    sum_products(&part, x + c, dy + c, &sums);
    squares = in_lanes(squares, &sums, part.columns, 1);
  }
  return ft_tree(squares);
}

/* ---- statistics that stand fast ------------------------------------------------------------ */

static ft_part rstd_of(const float *var, uint32_t columns, float eps) {
  ft_part rstd = {{0}};
  for (uint32_t c = 0; c < columns; c++) rstd.at[c] = 1.0f / sqrtf(var[c] + eps);
  return rstd;
}

void ft_frozen_normalize_f32(const float *x, const float *mean, const float *var, float *y,
                             uint32_t size, uint32_t channels, float eps) {
  for (uint32_t c = 0; c < channels; c += PART) {
    const ft_columns part = part_at(c, channels, size / channels, channels);
    const ft_part rstd = rstd_of(var + c, part.columns, eps);
    normalize_rows(&part, x + c, mean + c, rstd.at, y + c);
  }
}

void ft_frozen_normalize_dx_f32(const float *dy, const float *var, float *dx, uint32_t size,
                                uint32_t channels, float eps) {
  for (uint32_t c = 0; c < channels; c += PART) {
    const ft_columns part = part_at(c, channels, size / channels, channels);
    const ft_part rstd = rstd_of(var + c, part.columns, eps);
    normalize_rows(&part, dy + c, zeros.at, rstd.at, dx + c);
  }
}

/* ---- statistics of a batch that running ones follow ---------------------------------------- */

static void divide(ft_part *sums, uint32_t columns, float by) {
  for (uint32_t c = 0; c < columns; c++) sums->at[c] /= by;
}

static void follow(float *running, const ft_part *batch, uint32_t columns, float momentum) {
  for (uint32_t c = 0; c < columns; c++) running[c] += momentum * (batch->at[c] - running[c]);
}

/* The running statistics of a part, and the sums that its batch has: (x - mean)^2. */
static void track_part(const ft_tracked *tracked, uint32_t c, const ft_part *mean,
                       const ft_part *squares, const ft_columns *part) {
  ft_part var = *squares;
  divide(&var, part->columns, (float)(part->rows - 1));
  follow(tracked->mean + c, mean, part->columns, tracked->momentum);
  follow(tracked->var + c, &var, part->columns, tracked->momentum);
}

void ft_track_normalize_f32(const float *x, float *y, float *rstd, uint32_t size,
                            uint32_t channels, float eps, const ft_tracked *tracked) {
  for (uint32_t c = 0; c < channels; c += PART) {
    const ft_columns part = part_at(c, channels, size / channels, channels);
    ft_part mean, squares, own;
    sum_rows(&part, x + c, &mean);
    divide(&mean, part.columns, (float)part.rows);
    sum_squares(&part, x + c, &mean, &squares);
    if (tracked) track_part(tracked, c, &mean, &squares, &part);
    divide(&squares, part.columns, (float)part.rows);
    own = rstd_of(squares.at, part.columns, eps);
    memcpy(rstd + c, own.at, part.columns * sizeof(float));
    normalize_rows(&part, x + c, mean.at, own.at, y + c);
  }
}

/* ---- statistics of groups of channels ------------------------------------------------------ */

/* Groups of one sample that are treated together: several that fill one part, or a single one,
 * which may have many parts. */
typedef struct { uint32_t groups, columns, rows, stride; } run;

/* Of each group: the sum of its channels' sums in lanes, divided by the number of its elements. */
static ft_part means(const run *g, int kind, const float *a, const float *b,
                     const ft_part *shift) {
  const uint32_t own = g->columns / g->groups;
  ft_lanes whole = ft_no_lanes();
  ft_part sums, mean = {{0}};
  for (uint32_t c = 0; c < g->columns; c += PART) {
    const ft_columns part = part_at(c, g->columns, g->rows, g->stride);
    if (kind == PLAIN) sum_rows(&part, a + c, &sums);
    if (kind == SQUARES) sum_squares(&part, a + c, shift, &sums);
    if (kind == PRODUCTS) sum_products(&part, a + c, b + c, &sums);
    if (g->groups == 1) whole = in_lanes(whole, &sums, part.columns, 0);
  }
  for (uint32_t k = 0; k < g->groups; k++) {
    const float sum = g->groups == 1 ? ft_tree(whole) : ft_sum_f32(sums.at + k * own, own);
    mean.at[k] = sum / (float)(g->rows * own);
  }
  return mean;
}

/* The number of each group at each of its channels. */
static ft_part spread(const run *g, const float *numbers) {
  const uint32_t own = g->groups == 1 ? PART : g->columns / g->groups;
  ft_part all = {{0}};
  for (uint32_t k = 0; k < g->groups; k++)
    for (uint32_t c = 0; c < own; c++) all.at[k * own + c] = numbers[k];
  return all;
}

static void normalize(const run *g, const float *x, float *y, float *rstd, float eps) {
  const ft_part mean = means(g, PLAIN, x, NULL, NULL), shift = spread(g, mean.at);
  const ft_part var = means(g, SQUARES, x, NULL, &shift), own = rstd_of(var.at, g->groups, eps);
  const ft_part factor = spread(g, own.at);
  memcpy(rstd, own.at, g->groups * sizeof(float));
  for (uint32_t c = 0; c < g->columns; c += PART) {
    const ft_columns part = part_at(c, g->columns, g->rows, g->stride);
    normalize_rows(&part, x + c, shift.at, factor.at, y + c);
  }
}

static void normalize_dx(const run *g, const float *dy, const float *y, const float *rstd,
                         float *dx) {
  const ft_part sums = means(g, PLAIN, dy, NULL, NULL), a = spread(g, sums.at);
  const ft_part products = means(g, PRODUCTS, dy, y, NULL), b = spread(g, products.at);
  const ft_part factor = spread(g, rstd);
  for (uint32_t c = 0; c < g->columns; c += PART) {
    const ft_columns part = part_at(c, g->columns, g->rows, g->stride);
    normalize_rows_dx(&part, dy + c, y + c, &factor, &a, &b, dx + c);
  }
}

/* The run that starts at group k. */
static run run_at(const ft_groups *g, uint32_t k) {
  const uint32_t own = g->channels / g->groups, room = own < PART ? PART / own : 1;
  const uint32_t groups = g->groups - k < room ? g->groups - k : room;
  return (run){groups, groups * own, g->rows, g->channels};
}

void ft_normalize_f32(const ft_groups *groups, const float *x, float *y, float *rstd, float eps) {
  for (uint32_t sample = 0; sample < groups->samples; sample++)
    for (uint32_t k = 0; k < groups->groups;) {
      const run g = run_at(groups, k);
      const size_t at = (size_t)sample * groups->rows * g.stride +
                        k * (groups->channels / groups->groups);
      normalize(&g, x + at, y + at, rstd, eps);
      rstd += g.groups, k += g.groups;
    }
}

void ft_normalize_dx_f32(const ft_groups *groups, const float *dy, const float *y,
                         const float *rstd, float *dx) {
  for (uint32_t sample = 0; sample < groups->samples; sample++)
    for (uint32_t k = 0; k < groups->groups;) {
      const run g = run_at(groups, k);
      const size_t at = (size_t)sample * groups->rows * g.stride +
                        k * (groups->channels / groups->groups);
      normalize_dx(&g, dy + at, y + at, rstd, dx + at);
      rstd += g.groups, k += g.groups;
    }
}

#endif
