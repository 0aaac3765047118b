/* kernels.c: times training steps, and the arithmetic peak that they are measured against. */
#define _POSIX_C_SOURCE 199309L
#include "ft_kernels.h"
#include "ft_math.h"

#include <time.h>

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Seconds of `steps` steps over `samples` batches in turn. */
double bench_steps(const ft_program *program, const ft_memory *memory, const float *x,
                   const float *y, uint32_t x_floats, uint32_t y_floats, uint32_t batches,
                   uint32_t steps, const ft_hyper *hyper) {
  float loss = 0.0f;
  double start = now();
  for (uint32_t s = 0; s < steps; s++) {
    uint32_t b = s % batches;
    if (ft_step(program, memory, x + (size_t)b * x_floats, y + (size_t)b * y_floats, hyper, &loss))
      return -1.0;
  }
  return now() - start;
}

/* FLOP/s of multiplications and additions that never leave the registers. */
double bench_peak(uint32_t rounds) {
  v8 sum[12] = {{0}};
  v8 x = ft_set8(0.999f), y = ft_set8(1e-3f);
  double start = now();
  for (uint32_t n = 0; n < rounds; n++) {
#pragma GCC unroll 12
    for (int i = 0; i < 12; i++) sum[i] = sum[i] * x + y;
  }
  double seconds = now() - start;
  for (int i = 1; i < 12; i++) sum[0] += sum[i];
  return ft_tree8(sum[0]) > -1.0f ? rounds * 12.0 * 16.0 / seconds : 0.0;
}
