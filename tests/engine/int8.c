/* The numbers of int8 as loops over arrays: what the tests compare with the shared vectors. */
#include "ft_grids.c"

#define EXPORT __attribute__((visibility("default")))

EXPORT void scales(const float *x, float *y, uint32_t n) {
  for (uint32_t i = 0; i < n; i++) y[i] = ft_scale16(x[i]);
}

EXPORT void range(const float *ends, float *scale) { ft_put_range(ends, scale); }

EXPORT void ends(const float *scale, float *found) { ft_get_range(scale, found); }

EXPORT void weights(const float *w, uint32_t rows, uint32_t channels, float *step, int8_t *q) {
  ft_steps_of(w, rows, channels, step);
  for (uint32_t r = 0; r < rows; r++, w += channels, q += channels)
    ft_put_weights(w, step, channels, q);
}

EXPORT void activations(const float *x, uint32_t n, float scale, float zero, int8_t *q) {
  ft_quantise(x, n, scale, zero, q);
}

EXPORT void moves(const uint32_t *words, const float *t, int8_t *q, uint32_t n) {
  for (uint32_t i = 0; i < n; i++) q[i] = ft_rounded(q[i], t[i], ft_uniform(words[i]));
}
