/* The canonical functions as loops over arrays, in scalars or in lanes: what the tests compare. */
#include "ft_rng.h"

#define EXPORT __attribute__((visibility("default")))

#ifdef FT_SMALL
#define LOOP(name)                                                      \
  EXPORT void loop_##name(const float *x, float *y, uint32_t n) {       \
    for (uint32_t i = 0; i < n; i++) y[i] = ft_##name(x[i]);            \
  }
#else
#define LOOP(name)                                                      \
  EXPORT void loop_##name(const float *x, float *y, uint32_t n) {       \
    uint32_t i = 0, rest = n % 8;                                       \
    for (; i + 8 <= n; i += 8) ft_store8(y + i, ft_##name##8(ft_load8(x + i))); \
    if (rest) ft_store8_first(y + i, ft_##name##8(ft_load8_first(x + i, rest)), rest); \
  }

EXPORT void sums_of_8(const float *x, float *one_by_one, float *together) {
  v8 rows[8];
  for (int i = 0; i < 8; i++) {
    rows[i] = ft_load8(x + 8 * i);
    one_by_one[i] = ft_tree8(rows[i]);
  }
  ft_store8(together, ft_tree8_of8(rows));
}
#endif

LOOP(exp)
LOOP(log)
LOOP(tanh)
LOOP(sigmoid)
LOOP(sin)
LOOP(cos)

/* The first 4 * blocks words of a stream; blocks is a multiple of 8. */
EXPORT void stream_words(uint64_t run, uint32_t round, uint32_t device, uint32_t purpose,
                         uint32_t blocks, uint32_t *out) {
  ft_stream stream = {run, round, device, purpose};
#ifdef FT_SMALL
  for (uint32_t i = 0; i < blocks; i++) ft_words(&stream, i, out + 4 * i);
#else
  for (uint32_t i = 0; i < blocks; i += 8) {
    v8u words[4];
    ft_words8(&stream, i, words);
    memcpy(out + 4 * i, words, sizeof words);
  }
#endif
}

EXPORT void philox(uint32_t *counter, uint32_t key0, uint32_t key1) {
  ft_philox(counter, key0, key1);
}

EXPORT void uniforms(const uint32_t *words, uint32_t n, float low, float high, float *out) {
  for (uint32_t i = 0; i < n; i++) out[i] = ft_uniform_in(words[i], low, high);
}

EXPORT void belows(const uint32_t *words, uint32_t n, uint32_t bound, uint32_t *out) {
  for (uint32_t i = 0; i < n; i++) out[i] = ft_below(words[i], bound);
}

EXPORT void permutation(uint64_t run, uint32_t round, uint32_t device, uint32_t epoch, uint32_t n,
                        uint32_t *out) {
  ft_stream stream = {run, round, device, 0};
  uint32_t key[4];
  ft_epoch_key(stream, epoch, key);
  for (uint32_t i = 0; i < n; i++) out[i] = ft_shuffled(i, n, key);
}
