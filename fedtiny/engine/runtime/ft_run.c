/* ft_run.c: executes a program that ft_check has passed. */
#include "ft_kernels.h"
#include "ft_lanes.h"

#include <math.h>

uint32_t ft_abi(void) { return FT_ABI; }

/* ---- parameters and state ------------------------------------------------------------------ */

/* The state slot of a feature; NULL if the Program reserved none. */
static float *slot(const ft_program *program, const ft_memory *memory, uint32_t feature) {
  const ft_header *h = program->header;
  if (!(h->features & feature)) return NULL;
  float *at = memory->state;
  if (feature > FT_MOMENTUM && h->features & FT_MOMENTUM) at += h->trained_floats;
  if (feature > FT_PROX && h->features & FT_PROX) at += h->trained_floats;
  return at;
}

static void copy(float *to, const float *from, uint32_t floats) {
  memcpy(to, from, floats * sizeof(float));
}

/* The parts of the averaged vector that are trained, into a state slot. */
static void load_slot(const ft_program *program, float *state, const float *vector) {
  const ft_param *end = program->params + program->header->n_params;
  for (const ft_param *p = program->params; p < end; p++)
    if (p->trained) copy(state + p->state_at, vector + p->vector_at, p->count);
}

static float *param_at(const ft_program *program, const ft_memory *memory, const ft_param *p) {
  return memory->params + program->tensors[p->tensor].offset / sizeof(float);
}

void ft_load(const ft_program *program, const ft_memory *memory, const float *vector) {
  const ft_param *end = program->params + program->header->n_params;
  for (const ft_param *p = program->params; p < end; p++)
    copy(param_at(program, memory, p), vector + p->vector_at, p->count);
  float *base = slot(program, memory, FT_PROX);
  if (base) load_slot(program, base, vector);
  ft_clear_momentum(program, memory);
}

void ft_clear_momentum(const ft_program *program, const ft_memory *memory) {
  float *velocity = slot(program, memory, FT_MOMENTUM);
  if (velocity) memset(velocity, 0, program->header->trained_floats * sizeof(float));
}

void ft_load_correction(const ft_program *program, const ft_memory *memory, const float *vector) {
  float *correction = slot(program, memory, FT_CORRECTION);
  if (correction) load_slot(program, correction, vector);
}

void ft_store(const ft_program *program, const ft_memory *memory, float *vector) {
  const ft_param *end = program->params + program->header->n_params;
  for (const ft_param *p = program->params; p < end; p++)
    copy(vector + p->vector_at, param_at(program, memory, p), p->count);
}

void ft_store_gradient(const ft_program *program, const ft_memory *memory, float *vector) {
  const ft_header *h = program->header;
  const float *velocity = slot(program, memory, FT_MOMENTUM);
  memset(vector, 0, h->vector_floats * sizeof(float));
  if (!velocity) return;
  for (const ft_param *p = program->params; p < program->params + h->n_params; p++)
    if (p->trained) copy(vector + p->vector_at, velocity + p->state_at, p->count);
}

/* ---- the interpreter ----------------------------------------------------------------------- */

/* One call's view of the memory; the slots are NULL where the hyper-parameters use none. */
typedef struct {
  const ft_program *program;
  const ft_tensor *tensors;
  const ft_hyper *hyper;
  uint8_t *region[4];
  float *velocity;
  const float *base, *correction;
} ft_frame;

/* Nothing is ever written to the input and the labels: ft_check lets ops write the arena and
 * trained parameters alone. */
static ft_frame frame_of(const ft_program *program, const ft_memory *memory, const float *x,
                         const void *y) {
  ft_frame f = {0};
  f.program = program;
  f.tensors = program->tensors;
  f.region[FT_ARENA] = memory->arena;
  f.region[FT_PARAMS] = (uint8_t *)memory->params;
  f.region[FT_INPUT] = (uint8_t *)(uintptr_t)x;
  f.region[FT_LABELS] = (uint8_t *)(uintptr_t)y;
  return f;
}

FT_INLINE const ft_tensor *tensor(const ft_frame *f, const ft_op *op, uint32_t k) {
  return &f->tensors[op->t[k]];
}

FT_INLINE float *at(const ft_frame *f, const ft_op *op, uint32_t k) {
  const ft_tensor *t = tensor(f, op, k);
  return (float *)(void *)(f->region[t->region] + t->offset);
}

FT_INLINE float *at_or_null(const ft_frame *f, const ft_op *op, uint32_t k) {
  return op->t[k] == FT_NONE ? NULL : at(f, op, k);
}

FT_INLINE ft_rule rule_of(const ft_frame *f, const ft_op *op) {
  const ft_hyper *hyper = f->hyper;
  const uint32_t state_at = f->program->params[op->attr[0]].state_at;
  ft_rule rule;
  rule.lr = hyper->lr;
  rule.momentum = hyper->momentum;
  rule.weight_decay = hyper->weight_decay;
  rule.prox = hyper->prox;
  rule.scale = op->t[3] == FT_NONE ? 1.0f : *at(f, op, 3);
  rule.velocity = f->velocity ? f->velocity + state_at : NULL;
  rule.base = f->base ? f->base + state_at : NULL;
  rule.correction = f->correction ? f->correction + state_at : NULL;
  return rule;
}

/* ---- one function an op: its operands and extents ---- */

FT_INLINE void linear(const ft_frame *f, const ft_op *op) {
  const ft_tensor *w = tensor(f, op, 1);
  ft_linear_f32(at(f, op, 0), at(f, op, 1), at_or_null(f, op, 2), at(f, op, 3),
                tensor(f, op, 3)->dims[0], w->dims[0], w->dims[1]);
}

FT_INLINE void bias(const ft_frame *f, const ft_op *op) {
  const ft_tensor *y = tensor(f, op, 2);
  ft_bias_f32(at(f, op, 0), at(f, op, 1), at(f, op, 2), ft_floats(y), ft_channels(y));
}

typedef void unary_fn(const float *x, float *y, uint32_t size);
typedef void binary_fn(const float *a, const float *b, float *y, uint32_t size);

FT_INLINE void unary(const ft_frame *f, const ft_op *op, unary_fn *kernel) {
  kernel(at(f, op, 0), at(f, op, 1), ft_floats(tensor(f, op, 1)));
}

FT_INLINE void binary(const ft_frame *f, const ft_op *op, binary_fn *kernel) {
  kernel(at(f, op, 0), at(f, op, 1), at(f, op, 2), ft_floats(tensor(f, op, 2)));
}

FT_INLINE float mse(const ft_frame *f, const ft_op *op) {
  const ft_tensor *p = tensor(f, op, 0);
  return *at(f, op, 3) = ft_mse_f32(at(f, op, 0), at(f, op, 1), at(f, op, 2), p->dims[0],
                                    ft_row_floats(p));
}

FT_INLINE float cross_entropy(const ft_frame *f, const ft_op *op) {
  const ft_tensor *z = tensor(f, op, 0);
  const int32_t *labels = (const int32_t *)(const void *)f->region[FT_LABELS];
  return *at(f, op, 3) = ft_cross_entropy_f32(at(f, op, 0), labels, at(f, op, 2), z->dims[0],
                                              ft_row_floats(z));
}

FT_INLINE void linear_dx(const ft_frame *f, const ft_op *op) {
  const ft_tensor *w = tensor(f, op, 1);
  ft_linear_dx_f32(at(f, op, 0), at(f, op, 1), at(f, op, 2), tensor(f, op, 0)->dims[0], w->dims[0],
                   w->dims[1]);
}

FT_INLINE void linear_update(const ft_frame *f, const ft_op *op) {
  const ft_tensor *w = tensor(f, op, 2);
  const ft_rule rule = rule_of(f, op);
  ft_linear_update_f32(at(f, op, 0), at(f, op, 1), at(f, op, 2), tensor(f, op, 0)->dims[0],
                       w->dims[0], w->dims[1], &rule);
}

FT_INLINE void bias_update(const ft_frame *f, const ft_op *op) {
  const ft_tensor *dy = tensor(f, op, 1);
  const ft_rule rule = rule_of(f, op);
  ft_bias_update_f32(at(f, op, 1), at(f, op, 2), ft_floats(dy), ft_channels(dy), &rule);
}

FT_INLINE void linear_norm(const ft_frame *f, const ft_op *op) {
  const ft_tensor *x = tensor(f, op, 0), *dy = tensor(f, op, 1);
  if (f->hyper->clip > 0.0f)
    *at(f, op, 2) += ft_linear_norm_f32(at(f, op, 0), at(f, op, 1), x->dims[0], ft_row_floats(x),
                                        ft_row_floats(dy));
}

FT_INLINE void bias_norm(const ft_frame *f, const ft_op *op) {
  const ft_tensor *dy = tensor(f, op, 1);
  if (f->hyper->clip > 0.0f)
    *at(f, op, 2) += ft_bias_norm_f32(at(f, op, 1), ft_floats(dy), ft_channels(dy));
}

FT_INLINE void norm_scale(const ft_frame *f, const ft_op *op) {
  const float norm = sqrtf(*at(f, op, 0)), clip = f->hyper->clip;
  *at(f, op, 1) = clip > 0.0f && norm > clip ? clip / norm : 1.0f;
}

/* Returns the loss, if an op computed one. */
static float run(const ft_frame *f, const ft_op *op, const ft_op *end) {
  float loss = 0.0f;
  for (; op < end; op++) {
    if (op->group != FT_ALWAYS && !(f->hyper->groups >> op->group & 1)) continue;
    switch (op->code) {
      case FT_OP_LINEAR: linear(f, op); break;
      case FT_OP_BIAS: bias(f, op); break;
      case FT_OP_RELU: unary(f, op, ft_relu_f32); break;
      case FT_OP_TANH: unary(f, op, ft_tanh_f32); break;
      case FT_OP_SIGMOID: unary(f, op, ft_sigmoid_f32); break;
      case FT_OP_ADD: binary(f, op, ft_add_f32); break;
      case FT_OP_MSE: loss = mse(f, op); break;
      case FT_OP_CROSS_ENTROPY: loss = cross_entropy(f, op); break;
      case FT_OP_LINEAR_DX: linear_dx(f, op); break;
      case FT_OP_RELU_DX: binary(f, op, ft_relu_dx_f32); break;
      case FT_OP_TANH_DX: binary(f, op, ft_tanh_dx_f32); break;
      case FT_OP_SIGMOID_DX: binary(f, op, ft_sigmoid_dx_f32); break;
      case FT_OP_LINEAR_UPDATE: linear_update(f, op); break;
      case FT_OP_BIAS_UPDATE: bias_update(f, op); break;
      case FT_OP_NORM_ZERO: *at(f, op, 0) = 0.0f; break;
      case FT_OP_LINEAR_NORM: linear_norm(f, op); break;
      case FT_OP_BIAS_NORM: bias_norm(f, op); break;
      default: norm_scale(f, op); /* ft_check lets no other code in */
    }
  }
  return loss;
}

static void run_forward(const ft_frame *f) {
  run(f, f->program->ops, f->program->ops + f->program->header->n_forward);
}

/* ---- a batch ------------------------------------------------------------------------------- */

ft_status ft_check_hyper(const ft_program *program, const ft_hyper *hyper) {
  uint32_t needed = (hyper->momentum != 0.0f ? FT_MOMENTUM : 0u) |
                    (hyper->clip != 0.0f ? FT_CLIP : 0u) | (hyper->prox != 0.0f ? FT_PROX : 0u) |
                    (hyper->flags & FT_USE_CORRECTION ? FT_CORRECTION : 0u);
  return needed & ~(uint32_t)program->header->features ? FT_E_FEATURE : FT_OK;
}

static ft_status check_labels(const ft_program *program, const void *y, uint32_t count) {
  const ft_header *h = program->header;
  if (program->tensors[h->label].dtype != FT_I32) return FT_OK;
  const int32_t *labels = y;
  uint32_t classes = ft_row_floats(&program->tensors[h->output]);
  for (uint32_t i = 0; i < count; i++)
    if ((uint32_t)labels[i] >= classes) return FT_E_LABEL;
  return FT_OK;
}

ft_status ft_step(const ft_program *program, const ft_memory *memory, const float *x, const void *y,
                  const ft_hyper *hyper, float *loss) {
  ft_status status = ft_check_hyper(program, hyper);
  if (!status) status = check_labels(program, y, program->header->batch);
  if (status) return status;
  ft_frame f = frame_of(program, memory, x, y);
  f.hyper = hyper;
  f.velocity = slot(program, memory, FT_MOMENTUM);
  if (hyper->prox != 0.0f) f.base = slot(program, memory, FT_PROX);
  if (hyper->flags & FT_USE_CORRECTION) f.correction = slot(program, memory, FT_CORRECTION);
  *loss = run(&f, program->ops, program->ops + program->header->n_ops);
  return FT_OK;
}

static const float *output_of(const ft_program *program, const ft_memory *memory) {
  const ft_tensor *output = &program->tensors[program->header->output];
  return (const float *)(const void *)(memory->arena + output->offset);
}

const float *ft_predict(const ft_program *program, const ft_memory *memory, const float *x) {
  const ft_frame f = frame_of(program, memory, x, NULL);
  run_forward(&f);
  return output_of(program, memory);
}

static int is_first_largest(const float *row, uint32_t label, uint32_t classes) {
  uint32_t best = 0;
  for (uint32_t c = 1; c < classes; c++)
    if (row[c] > row[best]) best = c;
  return best == label;
}

static uint32_t valid_rows(const ft_program *program, uint32_t valid) {
  return valid < program->header->batch ? valid : program->header->batch;
}

ft_status ft_evaluate(const ft_program *program, const ft_memory *memory, const float *x,
                      const void *y, uint32_t valid, ft_score *score) {
  valid = valid_rows(program, valid);
  ft_status status = check_labels(program, y, valid);
  if (status) return status;
  const float *row = ft_predict(program, memory, x), *target = y;
  const int32_t *labels = y;
  const uint32_t outputs = ft_row_floats(&program->tensors[program->header->output]);
  const int is_mse = ft_loss_op(program)->code == FT_OP_MSE;
  for (uint32_t i = 0; i < valid; i++, row += outputs) {
    if (is_mse) {
      score->loss_sum += (double)ft_mse_row_f32(row, target + (size_t)i * outputs, outputs);
    } else {
      score->loss_sum += (double)ft_cross_entropy_row_f32(row, labels[i], outputs);
      score->correct += (uint32_t)is_first_largest(row, (uint32_t)labels[i], outputs);
    }
  }
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

void ft_calibrate(const ft_program *program, const ft_memory *memory, const float *x,
                  uint32_t valid, ft_moments *moments) {
  const ft_frame f = frame_of(program, memory, x, NULL);
  valid = valid_rows(program, valid);
  for (uint32_t i = 0; i < program->header->n_forward; i++) {
    const ft_op *op = &program->ops[i];
    run(&f, op, op + 1);
    const uint32_t k = ft_output_operand(op->code);
    add_moments(&moments[i], at(&f, op, k), valid * ft_row_floats(tensor(&f, op, k)));
  }
}
