/* ft_run.c: the calls that execute a program which ft_check has passed. */
#include "ft_int8.h"

uint32_t ft_abi(void) { return FT_ABI; }

/* ---- a batch ------------------------------------------------------------------------------- */

/* Nothing is ever written to the input and the labels: ft_check lets ops write the arena and
 * trained parameters alone. */
ft_frame ft_frame_of(const ft_program *program, const ft_memory *memory, const void *x,
                     const void *y) {
  ft_frame f = {0};
  f.program = program;
  f.memory = memory;
  f.tensors = program->tensors;
  f.is_int8 = ft_is_int8(program);
  f.region[FT_ARENA] = memory->arena;
  f.region[FT_PARAMS] = (uint8_t *)memory->params;
  f.region[FT_INPUT] = (uint8_t *)(uintptr_t)x;
  f.region[FT_LABELS] = (uint8_t *)(uintptr_t)y;
  f.region[FT_FROZEN] = (uint8_t *)memory->frozen;
  f.region[FT_CONST] = (uint8_t *)(uintptr_t)program->header + program->header->consts_at;
  f.region[FT_REGIONS] = memory->scratch;
  return f;
}

static void run_forward(const ft_frame *f) {
  ft_run_ops(f, f->program->ops, f->program->ops + f->program->header->n_forward);
}

ft_status ft_check_hyper(const ft_program *program, const ft_hyper *hyper) {
  uint32_t needed = (hyper->momentum != 0.0f ? FT_MOMENTUM : 0u) |
                    (hyper->clip != 0.0f ? FT_CLIP : 0u) | (hyper->prox != 0.0f ? FT_PROX : 0u) |
                    (hyper->flags & FT_USE_CORRECTION ? FT_CORRECTION : 0u);
  return needed & ~(uint32_t)program->header->features ? FT_E_FEATURE : FT_OK;
}

ft_status ft_check_labels(const ft_program *program, const void *y, uint32_t count) {
  const ft_header *h = program->header;
  if (program->tensors[h->label].dtype != FT_I32) return FT_OK;
  const int32_t *labels = y;
  uint32_t classes = ft_row_floats(&program->tensors[h->output]);
  for (uint32_t i = 0; i < count; i++)
    if ((uint32_t)labels[i] >= classes) return FT_E_LABEL;
  return FT_OK;
}

ft_status ft_step(const ft_program *program, const ft_memory *memory, const void *x, const void *y,
                  const ft_hyper *hyper, float *loss) {
  ft_status status = ft_check_hyper(program, hyper);
  if (!status) status = ft_check_labels(program, y, program->header->batch);
  if (status) return status;
  ft_frame f = ft_frame_of(program, memory, x, y);
  f.hyper = hyper;
  f.by_batch = 1;
  f.velocity = ft_slot(program, memory, FT_MOMENTUM);
  if (hyper->prox != 0.0f) f.base = ft_slot(program, memory, FT_PROX);
  if (hyper->flags & FT_USE_CORRECTION) f.correction = ft_slot(program, memory, FT_CORRECTION);
  *loss = ft_run_ops(&f, program->ops, program->ops + program->header->n_ops);
  return FT_OK;
}

static const float *output_of(const ft_program *program, const ft_memory *memory) {
  const ft_tensor *output = &program->tensors[program->header->output];
  return (const float *)(const void *)(memory->arena + output->offset);
}

const float *ft_predict(const ft_program *program, const ft_memory *memory, const void *x) {
  const ft_frame f = ft_frame_of(program, memory, x, NULL);
  run_forward(&f);
  return output_of(program, memory);
}

static uint32_t first_largest(const float *row, uint32_t classes) {
  uint32_t best = 0;
  for (uint32_t c = 1; c < classes; c++)
    if (row[c] > row[best]) best = c;
  return best;
}

static uint32_t valid_rows(const ft_program *program, uint32_t valid) {
  return valid < program->header->batch ? valid : program->header->batch;
}

/* Adds sample i, whose output is the row. */
static void score_row(uint32_t code, const float *row, const void *y, uint32_t i, uint32_t outputs,
                      ft_score *score) {
  const float *target = (const float *)y + (size_t)i * outputs;
  const int32_t *labels = y;
  if (code == FT_OP_MSE) {
    score->loss_sum += (double)ft_mse_row_f32(row, target, outputs);
    return;
  }
  const int is_soft = code == FT_OP_SOFT_CROSS_ENTROPY;
  const uint32_t label = is_soft ? first_largest(target, outputs) : (uint32_t)labels[i];
  score->loss_sum += (double)(is_soft ? ft_soft_cross_entropy_row_f32(row, target, outputs)
                                      : ft_cross_entropy_row_f32(row, labels[i], outputs));
  score->correct += first_largest(row, outputs) == label;
}

ft_status ft_evaluate(const ft_program *program, const ft_memory *memory, const void *x,
                      const void *y, uint32_t valid, ft_score *score) {
  valid = valid_rows(program, valid);
  ft_status status = ft_check_labels(program, y, valid);
  if (status) return status;
  const float *row = ft_predict(program, memory, x);
  const uint32_t outputs = ft_row_floats(&program->tensors[program->header->output]);
  const uint32_t code = ft_loss_op(program)->code;
  for (uint32_t i = 0; i < valid; i++, row += outputs) score_row(code, row, y, i, outputs, score);
  score->count += valid;
  return FT_OK;
}

static void add_moments(ft_moments *m, const float *values, uint32_t count) {
  if (count && !m->count) m->min = m->max = values[0];
  for (uint32_t i = 0; i < count; i++) {
    const float value = values[i];
    m->sum += (double)value;
    m->sum_squares += (double)value * (double)value;
    m->min = value < m->min ? value : m->min;
    m->max = value > m->max ? value : m->max;
  }
  m->count += count;
}

/* Of an op's output: the first samples. */
static void add_output(const ft_frame *f, const ft_op *op, uint32_t valid, ft_moments *moments) {
  const uint32_t k = ft_output_operand(op->code);
  const ft_tensor *t = ft_operand(f, op, k);
  const uint32_t count = valid * ft_row_floats(t);
  if (op->code == FT_OP_MERGE || t->dtype == FT_I32) return;
  if (t->dtype == FT_F32) {
    add_moments(moments, ft_at(f, op, k), count);
    return;
  }
  const ft_grid grid = ft_grid_of(ft_scale_at(f, op, k));
  for (uint32_t i = 0; i < count; i++) {
    const float value = ft_real(ft_bytes_at(f, op, k)[i], grid);
    add_moments(moments, &value, 1);
  }
}

void ft_calibrate(const ft_program *program, const ft_memory *memory, const void *x,
                  uint32_t valid, ft_moments *moments) {
  const ft_frame f = ft_frame_of(program, memory, x, NULL);
  valid = valid_rows(program, valid);
  for (uint32_t i = 0; i < program->header->n_forward; i++) {
    const ft_op *op = &program->ops[i];
    ft_run_ops(&f, op, op + 1);
    add_output(&f, op, valid, &moments[i]);
  }
}

/* Each channel's sum to the first half, its sum of squares to the second. */
static void add_powers(double *sums, const float *x, uint32_t size, uint32_t channels) {
  for (uint32_t at = 0; at < size; at += channels)
    for (uint32_t c = 0; c < channels; c++) {
      const double value = (double)x[at + c];
      sums[c] += value;
      sums[channels + c] += value * value;
    }
}

void ft_observe(const ft_program *program, const ft_memory *memory, const void *x, double *sums) {
  ft_frame f = ft_frame_of(program, memory, x, NULL);
  f.by_batch = 1;
  for (const ft_op *op = program->ops; op < program->ops + program->header->n_forward; op++) {
    if (op->code == FT_OP_TRACKED_NORMALIZE) {
      const ft_tensor *in = ft_operand(&f, op, 0);
      add_powers(sums, ft_at(&f, op, 0), ft_floats(in), ft_channels(in));
      sums += 2 * ft_channels(in);
    }
    ft_run_ops(&f, op, op + 1);
  }
}
