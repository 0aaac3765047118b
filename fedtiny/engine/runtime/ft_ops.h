/* ft_ops.h: the interpreter of ops, and its view of a call; private to the runtime. */
#ifndef FT_OPS_H
#define FT_OPS_H

#include "ft_kernels.h"
#include "ft_lanes.h"

/* One call's view of the memory; the slots are NULL where the hyper-parameters use none. */
typedef struct {
  const ft_program *program;
  const ft_tensor *tensors;
  const ft_hyper *hyper;
  uint8_t *region[4];
  float *velocity;
  const float *base, *correction;
} ft_frame;

static inline const ft_tensor *ft_operand(const ft_frame *f, const ft_op *op, uint32_t k) {
  return &f->tensors[op->t[k]];
}

static inline float *ft_at(const ft_frame *f, const ft_op *op, uint32_t k) {
  const ft_tensor *t = ft_operand(f, op, k);
  return (float *)(void *)(f->region[t->region] + t->offset);
}

/* Runs the ops [op, end); returns the loss, if one of them computed it. */
float ft_run_ops(const ft_frame *f, const ft_op *op, const ft_op *end);

#endif
