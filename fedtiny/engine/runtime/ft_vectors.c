/* ft_vectors.c: between the memory of a program and the averaged vector, whole or compact. */
#include "ft_ops.h"

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
    const ft_live w = ft_live_of(program, memory, p);
    pick(&w, vector + p->vector_at, correction + ft_state_at(program, memory, p));
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
    const ft_live w = ft_live_of(program, memory, p);
    copy(base + ft_state_at(program, memory, p), w.values, w.count);
  }
}

/* ---- the averaged vector ------------------------------------------------------------------- */

void ft_load(const ft_program *program, const ft_memory *memory, const float *vector) {
  const ft_param *end = program->params + program->header->n_params;
  for (const ft_param *p = program->params; p < end; p++) {
    const ft_live w = ft_live_of(program, memory, p);
    pick(&w, vector + p->vector_at, w.values);
  }
  begin(program, memory);
}

void ft_store(const ft_program *program, const ft_memory *memory, float *vector) {
  const ft_param *end = program->params + program->header->n_params;
  for (const ft_param *p = program->params; p < end; p++) {
    const ft_live w = ft_live_of(program, memory, p);
    spread(&w, w.values, vector + p->vector_at);
  }
}

void ft_store_gradient(const ft_program *program, const ft_memory *memory, float *vector) {
  const ft_header *h = program->header;
  const float *velocity = ft_slot(program, memory, FT_MOMENTUM);
  memset(vector, 0, h->vector_floats * sizeof(float));
  if (!velocity) return;
  for (const ft_param *p = program->params; p < program->params + h->n_params; p++) {
    if (!p->trained) continue;
    const ft_live w = ft_live_of(program, memory, p);
    spread(&w, velocity + ft_state_at(program, memory, p), vector + p->vector_at);
  }
}

/* ---- the compact vector -------------------------------------------------------------------- */

uint32_t ft_live_floats(const ft_program *program, const ft_memory *memory) {
  const ft_param *end = program->params + program->header->n_params;
  uint32_t floats = 0;
  for (const ft_param *p = program->params; p < end; p++)
    floats += ft_live_of(program, memory, p).count;
  return floats;
}

void ft_load_live(const ft_program *program, const ft_memory *memory, const float *vector) {
  const ft_param *end = program->params + program->header->n_params;
  for (const ft_param *p = program->params; p < end; p++) {
    const ft_live w = ft_live_of(program, memory, p);
    copy(w.values, vector, w.count);
    vector += w.count;
  }
  begin(program, memory);
}

void ft_store_live(const ft_program *program, const ft_memory *memory, float *vector) {
  const ft_param *end = program->params + program->header->n_params;
  for (const ft_param *p = program->params; p < end; p++) {
    const ft_live w = ft_live_of(program, memory, p);
    copy(vector, w.values, w.count);
    vector += w.count;
  }
}
