/* kernels.c: times training steps, and the arithmetic peak that they are measured against. */
#define _POSIX_C_SOURCE 199309L
#include "ft_math.h"
#include "ft_ops.h"

#include <time.h>

static double seconds_of(clockid_t clock) {
  struct timespec t;
  clock_gettime(clock, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static double now(void) { return seconds_of(CLOCK_MONOTONIC); }

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

/* Seconds of this thread in the ops of one step whose code is marked. */
double bench_ops(const ft_program *program, const ft_memory *memory, const float *x, const void *y,
                 const ft_hyper *hyper, const uint8_t *marked) {
  const ft_op *end = program->ops + program->header->n_ops;
  ft_frame f = ft_frame_of(program, memory, x, y);
  double seconds = 0.0;
  f.hyper = hyper;
  for (const ft_op *op = program->ops; op < end; op++) {
    const double start = seconds_of(CLOCK_THREAD_CPUTIME_ID);
    ft_run_ops(&f, op, op + 1);
    if (marked[op->code]) seconds += seconds_of(CLOCK_THREAD_CPUTIME_ID) - start;
  }
  return seconds;
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
