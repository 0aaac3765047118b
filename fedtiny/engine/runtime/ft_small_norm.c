/* ft_small_norm.c: affine maps and norms as plain loops, for a microcontroller (FT_SMALL). */
#include "ft_small.h"

#include <math.h>

#ifdef FT_SMALL

/* ---- affine -------------------------------------------------------------------------------- */

void ft_affine_f32(const float *x, const float *g, const float *b, float *y, uint32_t size,
                   uint32_t channels) {
  for (uint32_t i = 0; i < size; i++) y[i] = x[i] * g[i % channels] + b[i % channels];
}

void ft_affine_dx_f32(const float *dy, const float *g, float *dx, uint32_t size,
                      uint32_t channels) {
  for (uint32_t i = 0; i < size; i++) dx[i] = dy[i] * g[i % channels];
}

/* The gradient of one channel's factor: x and dy stand at it in their first rows. */
static float factor_gradient(const float *x, const float *dy, uint32_t size, uint32_t channels) {
  float sum = 0.0f;
  for (uint32_t at = 0; at < size; at += channels) sum += x[at] * dy[at];
  return sum;
}

void ft_affine_update_f32(const float *x, const float *dy, float *g, uint32_t size,
                          uint32_t channels, const ft_rule *rule) {
  for (uint32_t c = 0; c < channels; c++)
    ft_apply(rule, g, c, factor_gradient(x + c, dy + c, size, channels));
}

float ft_affine_norm_f32(const float *x, const float *dy, uint32_t size, uint32_t channels) {
  float lane[8] = {0};
  for (uint32_t c = 0; c < channels; c++) {
    const float g = factor_gradient(x + c, dy + c, size, channels);
    lane[c % 8] += g * g;
  }
  return ft_tree(lane);
}

/* ---- statistics that stand fast ------------------------------------------------------------ */

void ft_frozen_normalize_f32(const float *x, const float *mean, const float *var, float *y,
                             uint32_t size, uint32_t channels, float eps) {
  for (uint32_t c = 0; c < channels; c++) {
    const float rstd = 1.0f / sqrtf(var[c] + eps);
    for (uint32_t at = c; at < size; at += channels) y[at] = (x[at] - mean[c]) * rstd;
  }
}

void ft_frozen_normalize_dx_f32(const float *dy, const float *var, float *dx, uint32_t size,
                                uint32_t channels, float eps) {
  for (uint32_t c = 0; c < channels; c++) {
    const float rstd = 1.0f / sqrtf(var[c] + eps);
    for (uint32_t at = c; at < size; at += channels) dx[at] = dy[at] * rstd;
  }
}

/* ---- statistics of a group of channels ----------------------------------------------------- */

/* One group of one sample: `columns` neighbouring channels of `rows` rows. */
typedef struct { uint32_t rows, columns, stride; } group;

/* Sums over the group of a, of (a - shift)^2, of a * b; each channel by itself, then in lanes. */
enum { PLAIN, SQUARES, PRODUCTS };

static float sum_of(const group *g, int kind, const float *a, const float *b, float shift) {
  float lane[8] = {0};
  for (uint32_t c = 0; c < g->columns; c++) {
    float sum = 0.0f;
    for (uint32_t r = 0, at = c; r < g->rows; r++, at += g->stride) {
      const float e = a[at] - shift;
      sum += kind == PLAIN ? a[at] : kind == SQUARES ? e * e : a[at] * b[at];
    }
    lane[c % 8] += sum;
  }
  return ft_tree(lane);
}

static float count_of(const group *g) { return (float)(g->rows * g->columns); }

/* Returns the group's rstd. */
static float normalize(const group *g, const float *x, float *y, float eps) {
  const float mean = sum_of(g, PLAIN, x, NULL, 0.0f) / count_of(g);
  const float var = sum_of(g, SQUARES, x, NULL, mean) / count_of(g);
  const float rstd = 1.0f / sqrtf(var + eps);
  for (uint32_t r = 0; r < g->rows; r++, x += g->stride, y += g->stride)
    for (uint32_t c = 0; c < g->columns; c++) y[c] = (x[c] - mean) * rstd;
  return rstd;
}

static void normalize_dx(const group *g, const float *dy, const float *y, float rstd, float *dx) {
  const float a = sum_of(g, PLAIN, dy, NULL, 0.0f) / count_of(g);
  const float b = sum_of(g, PRODUCTS, dy, y, 0.0f) / count_of(g);
  for (uint32_t r = 0; r < g->rows; r++, dy += g->stride, y += g->stride, dx += g->stride)
    for (uint32_t c = 0; c < g->columns; c++) dx[c] = rstd * ((dy[c] - a) - y[c] * b);
}

/* One channel; the running statistics follow those of the batch. */
static void track_normalize(const group *g, const float *x, float *y, float *rstd, float eps,
                            const ft_tracked *tracked, uint32_t c) {
  const float mean = sum_of(g, PLAIN, x, NULL, 0.0f) / count_of(g);
  const float squares = sum_of(g, SQUARES, x, NULL, mean), var = squares / (float)(g->rows - 1);
  *rstd = normalize(g, x, y, eps);
  if (!tracked) return;
  tracked->mean[c] += tracked->momentum * (mean - tracked->mean[c]);
  tracked->var[c] += tracked->momentum * (var - tracked->var[c]);
}

void ft_track_normalize_f32(const float *x, float *y, float *rstd, uint32_t size,
                            uint32_t channels, float eps, const ft_tracked *tracked) {
  const group g = {size / channels, 1, channels};
  for (uint32_t c = 0; c < channels; c++)
    track_normalize(&g, x + c, y + c, rstd + c, eps, tracked, c);
}

static group group_of(const ft_groups *groups) {
  const group g = {groups->rows, groups->channels / groups->groups, groups->channels};
  return g;
}

/* Where group k of a sample starts. */
static size_t start_of(const ft_groups *groups, uint32_t sample, uint32_t k) {
  return (size_t)sample * groups->rows * groups->channels +
         k * (groups->channels / groups->groups);
}

void ft_normalize_f32(const ft_groups *groups, const float *x, float *y, float *rstd, float eps) {
  const group g = group_of(groups);
  for (uint32_t sample = 0; sample < groups->samples; sample++)
    for (uint32_t k = 0; k < groups->groups; k++) {
      const size_t at = start_of(groups, sample, k);
      *rstd++ = normalize(&g, x + at, y + at, eps);
    }
}

void ft_normalize_dx_f32(const ft_groups *groups, const float *dy, const float *y,
                         const float *rstd, float *dx) {
  const group g = group_of(groups);
  for (uint32_t sample = 0; sample < groups->samples; sample++)
    for (uint32_t k = 0; k < groups->groups; k++) {
      const size_t at = start_of(groups, sample, k);
      normalize_dx(&g, dy + at, y + at, *rstd++, dx + at);
    }
}

#endif
