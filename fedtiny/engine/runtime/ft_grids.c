/* ft_grids.c: between floats and the numbers of int8 tensors. */
#include "ft_pairs.h"

static int is_extent(float e) { return e >= FT_TINY && e < __builtin_inff(); }

void ft_put_range(const float *range, float *scale) {
  const float low = range[0] < 0.0f ? range[0] : 0.0f, high = range[1] > 0.0f ? range[1] : 0.0f;
  const float extent = high - low;
  if (!is_extent(extent)) {
    scale[0] = FT_STEP_OF_NONE, scale[1] = 0.0f;
    return;
  }
  scale[0] = ft_scale16(extent / 255.0f);
  scale[1] = ft_clamped(ft_rint(ft_clamped(-128.0f - low / scale[0], -1024.0f, 1024.0f)), -128.0f,
                        127.0f);
}

void ft_get_range(const float *scale, float *range) {
  const float step = scale[0], zero = scale[1];
  range[0] = (-128.0f - zero) * step;
  range[1] = (127.0f - zero) * step;
}

/* The largest weight is 96 steps: in a visit it can grow by a third. */
static float step_of(float largest) { return ft_scale16(largest / 96.0f); }

void ft_steps_of(const float *w, uint32_t rows, uint32_t channels, float *step) {
  float most = 0.0f;
  for (uint32_t o = 0; o < channels; o++) step[o] = 0.0f;
  for (uint32_t r = 0; r < rows; r++, w += channels)
    for (uint32_t o = 0; o < channels; o++) {
      const float size = w[o] < 0.0f ? -w[o] : w[o];
      step[o] = size > step[o] ? size : step[o];
    }
  for (uint32_t o = 0; o < channels; o++) most = step[o] > most ? step[o] : most;
  const float of_small = is_extent(most) ? step_of(most) : FT_STEP_OF_NONE;
  for (uint32_t o = 0; o < channels; o++)
    step[o] = is_extent(step[o]) ? step_of(step[o]) : of_small;
}

void ft_put_weights(const float *w, const float *step, uint32_t channels, int8_t *q) {
  for (uint32_t o = 0; o < channels; o++)
    q[o] = (int8_t)ft_rint(ft_clamped(w[o] / step[o], -127.0f, 127.0f));
}

void ft_get_weights(const int8_t *q, const float *step, uint32_t channels, float *w) {
  for (uint32_t o = 0; o < channels; o++) w[o] = (float)q[o] * step[o];
}

void ft_quantise(const float *x, uint32_t count, float scale, float zero, int8_t *q) {
  const int32_t at = (int32_t)ft_clamped(zero, -128.0f, 127.0f);
  uint32_t i = 0;
#ifndef FT_SMALL
  for (; i + FT_GROUP <= count; i += FT_GROUP) {
    const ft_reals v[2] = {ft_half_reals(x + i, 0) / scale, ft_half_reals(x + i, 1) / scale};
    ft_put_numbers(q + i, ft_rounded_group(v, at), FT_GROUP);
  }
#endif
  for (; i < count; i++) q[i] = ft_quantised(x[i] / scale, at);
}
