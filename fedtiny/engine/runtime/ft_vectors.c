/* ft_vectors.c: between the memory of a program and the averaged vector, whole or compact. */
#include "ft_int8.h"

/* ---- one parameter ------------------------------------------------------------------------- */

static void copy(float *to, const float *from, uint32_t floats) {
  memcpy(to, from, floats * sizeof(float));
}

static int is_dense(const ft_live *w) { return !w->gaps && !w->bits; }

/* What the parameter's part of a vector holds of its values. */
static void pick(const ft_live *w, const float *part, float *values) {
  if (is_dense(w)) {
    copy(values, part, w->count);
    return;
  }
  ft_cursor cursor = ft_first_live(w);
  for (uint32_t i = 0; i < w->count; i++) values[i] = part[ft_next_live(&cursor)];
}

static void spread(const ft_live *w, const float *values, float *part) {
  if (is_dense(w)) {
    copy(part, values, w->count);
    return;
  }
  ft_cursor cursor = ft_first_live(w);
  for (uint32_t i = 0; i < w->count; i++) part[ft_next_live(&cursor)] = values[i];
}

/* ---- one record ---------------------------------------------------------------------------- */

/* A record, the memory of its values, and which of its parameter's they are. */
typedef struct {
  const ft_param *param;
  ft_live live;
  ft_part part;
  int8_t *q;               /* of weights of FT_I8, else NULL */
  float *step;             /* theirs */
} record;

static float *frozen_at(const ft_program *program, const ft_memory *memory, uint32_t tensor) {
  return memory->frozen + program->tensors[tensor].offset / 4;
}

static record record_of(const ft_program *program, const ft_memory *memory, const ft_param *p) {
  record r = {p, ft_live_of(program, memory, p), {NULL, 1, 1, 1, p->count}, NULL, NULL};
  const ft_tensor *t = &program->tensors[p->tensor];
  if (p->axis) {
    const ft_tensor *list = &program->tensors[p->index];
    r.part = ft_part_of(&program->tensors[p[-1].tensor], p->axis, ft_list(program, list),
                        list->dims[0]);
  }
  if (t->dtype != FT_I8) return r;
  if (!p->axis) r.part = ft_part_of(t, FT_WHOLE, NULL, 0);
  r.q = (int8_t *)r.live.values;
  r.step = frozen_at(program, memory, t->scale);
  return r;
}

/* row(from the vector's part, to the values, the first weight's step) for each run of a part. */
#define EACH_RUN(r, call)                                                                          \
  {                                                                                                \
    const ft_part *p = &(r)->part;                                                                 \
    size_t to = 0;                                                                                 \
    for (uint32_t row = 0; row < p->rows; row++)                                                   \
      for (uint32_t j = 0; j < p->listed; j++, to += p->run) {                                     \
        const size_t from =                                                                        \
            ((size_t)row * p->whole + (p->list ? (uint32_t)p->list[j] : j)) * p->run;              \
        const uint32_t first = (r)->param->axis == FT_OUT ? j : 0;                                 \
        (void)from, (void)first, call;                                                             \
      }                                                                                            \
  }

/* The record's floats of the parameter's part of a vector; and back. */
static void pick_part(const record *r, const float *part, float *values) {
  if (r->part.list)
    EACH_RUN(r, copy(values + to, part + from, p->run))
  else
    pick(&r->live, part, values);
}

static void spread_part(const record *r, const float *values, float *part) {
  if (r->part.list)
    EACH_RUN(r, copy(part + from, values + to, p->run))
  else
    spread(&r->live, values, part);
}

/* The steps of weights; of an overlay on the last axis, those of its channels. */
static void load_steps(const ft_program *program, const ft_memory *memory, const record *r,
                       const float *part) {
  const ft_part *p = &r->part;
  if (!p->list) {
    ft_steps_of(part, p->rows, p->run, r->step);
  } else if (r->param->axis == FT_OUT) {
    const ft_tensor *whole = &program->tensors[r->param[-1].tensor];
    ft_take(frozen_at(program, memory, whole->scale), p->list, r->step, 1, p->whole, p->listed, 4);
  }
}

static void load_record(const ft_program *program, const ft_memory *memory, const ft_param *p,
                        const float *part) {
  const record r = record_of(program, memory, p);
  if (p->form == FT_RANGE) {
    ft_put_range(part, r.live.values);
  } else if (r.q) {
    load_steps(program, memory, &r, part);
    EACH_RUN(&r, ft_put_weights(part + from, r.step + first, p->run, r.q + to))
  } else {
    pick_part(&r, part, r.live.values);
  }
}

static void store_record(const ft_program *program, const ft_memory *memory, const ft_param *p,
                         float *part) {
  const record r = record_of(program, memory, p);
  if (p->form == FT_RANGE)
    ft_get_range(r.live.values, part);
  else if (r.q)
    EACH_RUN(&r, ft_get_weights(r.q + to, r.step + first, p->run, part + from))
  else
    spread_part(&r, r.live.values, part);
}

/* ---- the state ----------------------------------------------------------------------------- */

float *ft_slot(const ft_program *program, const ft_memory *memory, uint32_t feature) {
  const ft_header *h = program->header;
  if (!(h->features & feature)) return NULL;
  float *at = memory->state;
  if (feature > FT_MOMENTUM && h->features & FT_MOMENTUM) at += h->trained_floats;
  if (feature > FT_PROX && h->features & FT_PROX) at += h->trained_floats;
  return at;
}

void ft_clear_momentum(const ft_program *program, const ft_memory *memory) {
  float *velocity = ft_slot(program, memory, FT_MOMENTUM);
  if (velocity) memset(velocity, 0, program->header->trained_floats * sizeof(float));
}

void ft_load_correction(const ft_program *program, const ft_memory *memory, const float *vector) {
  float *correction = ft_slot(program, memory, FT_CORRECTION);
  const ft_param *end = program->params + program->header->n_params;
  if (!correction) return;
  for (const ft_param *p = program->params; p < end; p++) {
    if (!p->trained) continue;
    const record r = record_of(program, memory, p);
    pick_part(&r, vector + p->vector_at, correction + ft_state_at(program, memory, p));
  }
}

/* The model that has just been loaded is the one to stay near to; and it is at rest. */
static void begin(const ft_program *program, const ft_memory *memory) {
  const ft_param *end = program->params + program->header->n_params;
  float *base = ft_slot(program, memory, FT_PROX);
  ft_clear_momentum(program, memory);
  if (!base) return;
  for (const ft_param *p = program->params; p < end; p++) {
    if (!p->trained) continue;
    const record r = record_of(program, memory, p);
    float *values = base + ft_state_at(program, memory, p);
    if (r.q)
      EACH_RUN(&r, ft_get_weights(r.q + to, r.step + first, p->run, values + to))
    else
      copy(values, r.live.values, r.live.count);
  }
}

/* ---- the averaged vector ------------------------------------------------------------------- */

void ft_load(const ft_program *program, const ft_memory *memory, const float *vector) {
  const ft_param *end = program->params + program->header->n_params;
  for (const ft_param *p = program->params; p < end; p++)
    load_record(program, memory, p, vector + p->vector_at);
  begin(program, memory);
}

void ft_store(const ft_program *program, const ft_memory *memory, float *vector) {
  const ft_param *end = program->params + program->header->n_params;
  for (const ft_param *p = program->params; p < end; p++)
    store_record(program, memory, p, vector + p->vector_at);
}

void ft_store_gradient(const ft_program *program, const ft_memory *memory, float *vector) {
  const ft_header *h = program->header;
  const float *velocity = ft_slot(program, memory, FT_MOMENTUM);
  memset(vector, 0, h->vector_floats * sizeof(float));
  if (!velocity) return;
  for (const ft_param *p = program->params; p < program->params + h->n_params; p++) {
    if (!p->trained) continue;
    const record r = record_of(program, memory, p);
    spread_part(&r, velocity + ft_state_at(program, memory, p), vector + p->vector_at);
  }
}

/* ---- the compact vector -------------------------------------------------------------------- */

uint32_t ft_live_floats(const ft_program *program, const ft_memory *memory) {
  const ft_param *end = program->params + program->header->n_params;
  uint32_t floats = 0;
  for (const ft_param *p = program->params; p < end; p++)
    if (!p->axis) floats += ft_live_of(program, memory, p).count;
  return floats;
}

/* Live values as they are; of a Program without a pool the parts of the vector. */
void ft_load_live(const ft_program *program, const ft_memory *memory, const float *vector) {
  const ft_param *end = program->params + program->header->n_params;
  const float *part = vector;
  for (const ft_param *p = program->params; p < end; p++) {
    const ft_live w = ft_live_of(program, memory, p);
    if (!p->axis) part = vector, vector += w.count;
    if (p->pruned)
      copy(w.values, part, w.count);
    else
      load_record(program, memory, p, part);
  }
  begin(program, memory);
}

void ft_store_live(const ft_program *program, const ft_memory *memory, float *vector) {
  const ft_param *end = program->params + program->header->n_params;
  float *part = vector;
  for (const ft_param *p = program->params; p < end; p++) {
    const ft_live w = ft_live_of(program, memory, p);
    if (!p->axis) part = vector, vector += w.count;
    if (p->pruned)
      copy(part, w.values, w.count);
    else
      store_record(program, memory, p, part);
  }
}
