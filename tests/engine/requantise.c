/* Both forms of a requantisation as loops over arrays. */
#define FT_SMALL
#include "ft_requantise.h"

#define EXPORT __attribute__((visibility("default")))

EXPORT void with_floats(const int32_t *sum, const float *m, int32_t zero, int8_t *q, uint32_t n) {
  for (uint32_t i = 0; i < n; i++) q[i] = ft_requantised_float(sum[i], m[i], zero);
}

EXPORT void with_integers(const int32_t *sum, const float *m, int32_t zero, int8_t *q, uint32_t n) {
  for (uint32_t i = 0; i < n; i++) q[i] = ft_requantised_fixed(sum[i], ft_ratio_of(m[i]), zero);
}
