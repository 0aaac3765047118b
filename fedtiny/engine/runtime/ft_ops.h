/* ft_ops.h: the interpreter of ops, and its view of a call; private to the runtime. */
#ifndef FT_OPS_H
#define FT_OPS_H

#include "ft_kernels.h"
#include "ft_lanes.h"

/* One call's view of the memory; the slots are NULL where the hyper-parameters use none. */
typedef struct {
  const ft_program *program;
  const ft_memory *memory;
  const ft_tensor *tensors;
  const ft_hyper *hyper;
  uint8_t *region[FT_REGIONS + 1]; /* the last is the scratch */
  float *velocity;
  const float *base, *correction;
  int is_int8;             /* some operands are FT_I8 */
  int by_batch;            /* tracked normalisations go by the batch, not by what they track */
  const struct ft_growth *growth; /* instead of updates; else NULL */
} ft_frame;

static inline const ft_tensor *ft_operand(const ft_frame *f, const ft_op *op, uint32_t k) {
  return &f->tensors[op->t[k]];
}

/* Of any tensor but one of the pool. */
static inline float *ft_at(const ft_frame *f, const ft_op *op, uint32_t k) {
  const ft_tensor *t = ft_operand(f, op, k);
  return (float *)(void *)(f->region[t->region] + t->offset);
}

/* Of a tensor of FT_I8. */
static inline int8_t *ft_bytes_at(const ft_frame *f, const ft_op *op, uint32_t k) {
  return (int8_t *)(void *)ft_at(f, op, k);
}

/* The scale of an operand of FT_I8. */
static inline const float *ft_scale_at(const ft_frame *f, const ft_op *op, uint32_t k) {
  const ft_tensor *scale = &f->tensors[ft_operand(f, op, k)->scale];
  return (const float *)(const void *)(f->region[FT_FROZEN] + scale->offset);
}

ft_frame ft_frame_of(const ft_program *program, const ft_memory *memory, const void *x,
                     const void *y);

/* The state slot of a feature; NULL if the Program reserved none. */
float *ft_slot(const ft_program *program, const ft_memory *memory, uint32_t feature);

/* FT_E_LABEL if one of the first `count` labels is no class. */
ft_status ft_check_labels(const ft_program *program, const void *y, uint32_t count);

/* Runs one op, whatever its group. */
void ft_run_op(const ft_frame *f, const ft_op *op);

/* Runs the ops [op, end); returns the loss, if one of them computed it. */
float ft_run_ops(const ft_frame *f, const ft_op *op, const ft_op *end);

#endif
