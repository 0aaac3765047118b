#undef FT_SMALL /* a host always has lanes */
#include "ft_fleet.h"

#include <math.h>

#include "../ft_kernels.h"
#include "../ft_rng.h"
#include "ft_task.h"

typedef float v4 __attribute__((vector_size(16)));
typedef double v4d __attribute__((vector_size(32)));
typedef int64_t v4l __attribute__((vector_size(32)));
typedef uint8_t v4b __attribute__((vector_size(4)));

typedef struct {
  const ft_fleet *fleet;
  ft_program program;
  ft_memory memory;
  ft_samples samples;
  const float *start; /* the visit starts here: the base, with the device's own coordinates */
  float *mixed;       /* room for such a start */
  float *trained;     /* room for the result, unless the caller wants it */
  float *held;        /* of an int8 Program: room for what the memory holds of the start */
} ft_run;

/* ---- memory -------------------------------------------------------------------------------- */

typedef struct { uint8_t *memory; size_t used; } ft_stack; /* memory NULL: only count */

static void *take(ft_stack *stack, size_t bytes) {
  void *taken = stack->memory ? stack->memory + stack->used : NULL;
  stack->used += (bytes + 15) / 16 * 16;
  return taken;
}

/* At a whole cache line, wherever the memory starts. */
static void *take_scratch(ft_stack *stack, size_t bytes) {
  uint8_t *taken = bytes ? take(stack, bytes + 48) : NULL;
  return taken ? taken + (64 - (uintptr_t)taken % 64) % 64 : NULL;
}

static void take_samples(ft_stack *stack, const ft_task *task, ft_samples *samples) {
  size_t batch = samples->batch;
  samples->index = take(stack, 4 * batch);
  samples->batch_x = take(stack, 4 * batch * samples->features);
  samples->batch_y = take(stack, 4 * batch * samples->outputs);
  if (task->kind != FT_TASK_SINE) return;
  samples->sine[FT_SUPPORT] = take(stack, 8 * ft_sine_room(task->support));
  samples->sine[FT_QUERY] = take(stack, 8 * ft_sine_room(task->query));
}

/* Of an int8 input; NULL of another, or if there is no memory. */
static const float *scale_of_input(const ft_run *run) {
  const ft_program *p = &run->program;
  const ft_tensor *input = p->tensors + p->header->input;
  const float *frozen = run->memory.frozen;
  return frozen && ft_is_int8(p) ? frozen + p->tensors[input->scale].offset / 4 : NULL;
}

/* Gives every part of the run its place; returns the bytes needed. */
static size_t lay_out(ft_run *run, uint8_t *memory) {
  const ft_header *h = run->program.header;
  const ft_fleet *fleet = run->fleet;
  ft_stack stack = {memory, 0};
  run->memory.params = take(&stack, 4 * (size_t)h->param_floats);
  run->memory.frozen = take(&stack, 4 * (size_t)h->frozen_words);
  run->memory.arena = take(&stack, h->arena_bytes);
  run->memory.state = h->state_floats ? take(&stack, 4 * (size_t)h->state_floats) : NULL;
  run->memory.scratch = take_scratch(&stack, ft_scratch_bytes(&run->program));
  run->trained = take(&stack, 4 * (size_t)h->vector_floats);
  run->held = ft_is_int8(&run->program) ? take(&stack, 4 * (size_t)h->vector_floats) : NULL;
  run->mixed = fleet->personal ? take(&stack, 4 * (size_t)h->vector_floats) : NULL;
  run->samples = (ft_samples){.fleet = fleet,
                              .features = fleet->task.features,
                              .outputs = fleet->task.outputs,
                              .scale = scale_of_input(run),
                              .batch = h->batch};
  take_samples(&stack, &fleet->task, &run->samples);
  return stack.used;
}

/* ---- what is checked before anything runs -------------------------------------------------- */

static ft_status check_phase(const ft_program *program, const ft_fleet *fleet, uint32_t at) {
  const ft_phase *phase = fleet->phases + at;
  if (phase->part > FT_QUERY) return FT_E_FLEET;
  if ((phase->hyper.flags & FT_USE_CORRECTION) && !fleet->correction) return FT_E_FEATURE;
  if (phase->flags & FT_RETURN_GRADIENT) {
    if (at + 1 != fleet->n_phases || phase->steps != 1) return FT_E_FLEET;
    if (!(program->header->features & FT_MOMENTUM)) return FT_E_FEATURE;
  }
  return ft_check_hyper(program, &phase->hyper);
}

static ft_status check_fleet(const ft_program *program, const ft_fleet *fleet) {
  ft_status status = ft_task_check(fleet, program);
  if (!fleet->base || !fleet->device || !fleet->outcomes) return FT_E_FLEET;
  if (fleet->personal && !fleet->local) return FT_E_FLEET;
  if (!fleet->mask != !program->header->n_pruned) return FT_E_FLEET;
  for (uint32_t i = 0; !status && i < fleet->n_phases; i++) status = check_phase(program, fleet, i);
  return status;
}

/* Refuses the call, or returns the bytes that it needs. */
static ft_status open_run(ft_run *run, const ft_fleet *fleet, size_t *bytes) {
  *run = (ft_run){.fleet = fleet};
  ft_status status = ft_check(fleet->image, fleet->image_bytes, &run->program);
  if (!status) status = check_fleet(&run->program, fleet);
  *bytes = status ? 0 : lay_out(run, NULL);
  return status;
}

size_t ft_fleet_memory_bytes(const ft_fleet *fleet) {
  ft_run run;
  size_t bytes;
  open_run(&run, fleet, &bytes);
  return bytes;
}

/* ---- the delta and the fold ---------------------------------------------------------------- */

/* Eight coordinates of a visit; where there are fewer, zeros follow. */
typedef struct {
  const float *vector, *base; /* base NULL: the vector is a delta itself */
  const uint8_t *mask;        /* NULL: all count */
} ft_eight;

typedef struct { float vector[8], base[8]; uint8_t mask[8]; } ft_padding;

FT_INLINE ft_eight eight_at(const ft_eight *all, uint32_t at) {
  return (ft_eight){all->vector + at, all->base ? all->base + at : NULL,
                    all->mask ? all->mask + at : NULL};
}

/* The last n % 8 coordinates, moved to where they can be read as eight. */
static ft_eight padded(const ft_eight *all, uint32_t at, uint32_t n, ft_padding *room) {
  memset(room, 0, sizeof *room);
  memcpy(room->vector, all->vector + at, 4 * (n - at));
  if (all->base) memcpy(room->base, all->base + at, 4 * (n - at));
  if (all->mask) memcpy(room->mask, all->mask + at, n - at);
  return (ft_eight){room->vector, room->base, all->mask ? room->mask : NULL};
}

FT_INLINE v4l mask4_of(const uint8_t *mask) {
#ifdef __AVX2__
  int32_t four;
  memcpy(&four, mask, sizeof four);
  return (v4l)_mm256_cvtepu8_epi64(_mm_cvtsi32_si128(four)) != 0;
#else
  v4b four;
  memcpy(&four, mask, sizeof four);
  return __builtin_convertvector(four, v4l) != 0;
#endif
}

FT_INLINE v4d widened(const float *four) {
  v4 x;
  memcpy(&x, four, sizeof x);
  return __builtin_convertvector(x, v4d);
}

/* vector - base of coordinates 4 half .. 4 half + 3 of the eight, 0 where the mask is 0. */
FT_INLINE v4d delta4_of(const ft_eight *eight, int half) {
  v4d delta = widened(eight->vector + 4 * half);
  if (eight->base) delta -= widened(eight->base + 4 * half);
  return eight->mask ? (v4d)((v4l)delta & mask4_of(eight->mask + 4 * half)) : delta;
}

/* Rounding |x| < 2^51 to nearest even: 1.5 * 2^52 more leaves the integer in the low bits. */
FT_INLINE v4l rint4(v4d x) { return (v4l)(x + 0x1.8p52) - 0x4338000000000000; }

FT_INLINE void fold8(const ft_eight *eight, double weight, double scale, int64_t *sum) {
  for (int half = 0; half < 2; half++) {
    v4l old;
    memcpy(&old, sum + 4 * half, sizeof old);
    old += rint4(delta4_of(eight, half) * weight * scale);
    memcpy(sum + 4 * half, &old, sizeof old);
  }
}

void ft_fold(const float *vector, const float *base, const uint8_t *mask, uint32_t n, double weight,
             double scale, int64_t *sum) {
  const ft_eight all = {vector, base, mask};
  uint32_t at = 0;
  for (; n - at >= 8; at += 8) {
    ft_eight eight = eight_at(&all, at);
    fold8(&eight, weight, scale, sum + at);
  }
  if (at == n) return;
  int64_t rest[8] = {0};
  ft_padding room;
  ft_eight eight = padded(&all, at, n, &room);
  fold8(&eight, weight, scale, rest);
  for (uint32_t i = 0; at + i < n; i++) sum[at + i] += rest[i];
}

typedef struct { v4d largest[2], squares[2]; v8i strange; } ft_moved; /* eight lanes of each */

FT_INLINE void measure8(const ft_eight *eight, ft_moved *moved) {
  v8 values = ft_load8(eight->vector);
  moved->strange |= values - values != 0.0f;
  for (int half = 0; half < 2; half++) {
    v4d delta = delta4_of(eight, half);
    v4l size = (v4l)delta & INT64_MAX, largest = (v4l)moved->largest[half];
    v4l further = (v4d)size > moved->largest[half];
    moved->largest[half] = (v4d)((size & further) | (largest & ~further));
    moved->squares[half] += delta * delta;
  }
}

static double tree4(v4d x) { return (x[0] + x[1]) + (x[2] + x[3]); }

/* Fills in how far the visit moved; FT_OK if every coordinate is finite. */
static ft_status measure(const float *vector, const float *base, const uint8_t *mask, uint32_t n,
                         ft_outcome *outcome) {
  const ft_eight all = {vector, base, mask};
  ft_moved moved = {0};
  uint32_t at = 0;
  for (; n - at >= 8; at += 8) {
    ft_eight eight = eight_at(&all, at);
    measure8(&eight, &moved);
  }
  if (at < n) {
    ft_padding room;
    ft_eight eight = padded(&all, at, n, &room);
    measure8(&eight, &moved);
  }
  outcome->squared_norm = tree4(moved.squares[0]) + tree4(moved.squares[1]);
  outcome->moved = 0;
  int is_strange = 0;
  for (int i = 0; i < 8; i++) {
    double largest = moved.largest[i / 4][i % 4];
    outcome->moved = largest > outcome->moved ? largest : outcome->moved;
    is_strange |= moved.strange[i];
  }
  return is_strange ? FT_E_NOT_FINITE : FT_OK;
}

static ft_status check_bounds(const ft_fleet *fleet, const ft_outcome *outcome) {
  if (!(outcome->moved <= fleet->bound)) return FT_E_BOUND;
  int is_far = fleet->norm_bound > 0 && sqrt(outcome->squared_norm) > fleet->norm_bound;
  return is_far ? FT_E_BOUND : FT_OK;
}

/* ---- one visit ----------------------------------------------------------------------------- */

static void start_visit(ft_run *run, uint32_t visit) {
  const ft_fleet *fleet = run->fleet;
  run->start = fleet->base;
  if (fleet->personal) {
    uint32_t n = run->program.header->vector_floats;
    const float *own = fleet->personal + (size_t)visit * n;
    for (uint32_t i = 0; i < n; i++) run->mixed[i] = fleet->local[i] ? own[i] : fleet->base[i];
    run->start = run->mixed;
  }
  ft_load(&run->program, &run->memory, run->start);
  if (run->held) ft_store(&run->program, &run->memory, run->held);
}

/* The numbers of a coordinate stand on a grid beside the start: what is sent is the start, moved as
 * far as they moved. */
static void send_moves(const ft_run *run, float *vector) {
  const ft_program *program = &run->program;
  const ft_param *end = program->params + program->header->n_params;
  for (const ft_param *p = program->params; p < end; p++) {
    if (p->form != FT_RANGE && program->tensors[p->tensor].dtype != FT_I8) continue;
    if (p->axis) continue; /* its whole parameter has been there */
    for (uint32_t i = p->vector_at; i < p->vector_at + p->count; i++)
      vector[i] = run->start[i] + (vector[i] - run->held[i]);
  }
}

static ft_status evaluate(ft_run *run, ft_score *score) {
  ft_samples *samples = &run->samples;
  const ft_part *query = samples->parts + FT_QUERY;
  uint32_t n = query->n, batch = samples->batch;
  ft_status status = FT_OK;
  ft_make_samples(samples, FT_QUERY, n);
  for (uint32_t at = 0; !status && at < n; at += batch) {
    uint32_t left = n - at, valid = left < batch ? left : batch;
    for (uint32_t i = 0; i < batch; i++) samples->index[i] = i < valid ? at + i : n - 1;
    ft_batch taken = ft_take_batch(samples, query);
    status = ft_evaluate(&run->program, &run->memory, taken.x, taken.y, valid, score);
  }
  return status;
}

typedef struct { uint32_t at, epoch, key[4]; } ft_order; /* where in which epoch a phase stands */

/* Names the samples of the next batch. */
static void next_batch(const ft_samples *samples, const ft_phase *phase, ft_order *order) {
  uint32_t n = samples->parts[phase->part].n;
  ft_stream stream = {samples->fleet->run, samples->fleet->round, samples->device, 0};
  int is_shuffled = (phase->flags & FT_SHUFFLED) != 0;
  for (uint32_t i = 0; i < samples->batch; i++) {
    if (is_shuffled && order->at == 0) ft_epoch_key(stream, order->epoch, order->key);
    samples->index[i] = is_shuffled ? ft_shuffled(order->at, n, order->key) : order->at;
    if (++order->at == n) {
      order->at = 0;
      order->epoch++;
    }
  }
}

static ft_status run_phase(ft_run *run, const ft_phase *phase, ft_outcome *outcome) {
  ft_samples *samples = &run->samples;
  const ft_part *part = samples->parts + phase->part;
  uint32_t n = part->n, batch = samples->batch;
  if (!n) return FT_E_EMPTY;
  uint32_t steps = phase->steps ? phase->steps : (n + batch - 1) / batch;
  uint64_t taken_in_all = (uint64_t)steps * batch;
  ft_make_samples(samples, phase->part,
                  phase->flags & FT_SHUFFLED || taken_in_all > n ? n : (uint32_t)taken_in_all);
  ft_hyper hyper = phase->hyper;
  hyper.run = samples->fleet->run, hyper.round = samples->fleet->round;
  hyper.device = samples->device;
  if (phase->flags & FT_RETURN_GRADIENT) hyper.lr = hyper.momentum = 0;
  ft_clear_momentum(&run->program, &run->memory);
  ft_order order = {0};
  for (uint32_t step = 0; step < steps; step++) {
    float loss;
    next_batch(samples, phase, &order);
    hyper.step = outcome->steps;
    ft_batch taken = ft_take_batch(samples, part);
    ft_status status = ft_step(&run->program, &run->memory, taken.x, taken.y, &hyper, &loss);
    if (status) return status;
    outcome->loss_sum += (double)loss;
    outcome->steps++;
  }
  return FT_OK;
}

static void keep_personal(const ft_run *run, uint32_t visit, const float *trained) {
  uint32_t n = run->program.header->vector_floats;
  const uint8_t *local = run->fleet->local;
  float *own = run->fleet->personal + (size_t)visit * n;
  for (uint32_t i = 0; i < n; i++) own[i] = local[i] ? trained[i] : own[i];
}

static int returns_gradient(const ft_fleet *fleet) {
  return fleet->n_phases && fleet->phases[fleet->n_phases - 1].flags & FT_RETURN_GRADIENT;
}

/* Takes the result out of the memory, checks it, folds it. */
static ft_status finish_visit(ft_run *run, uint32_t visit, int64_t *sum, ft_outcome *outcome) {
  const ft_fleet *fleet = run->fleet;
  uint32_t n = run->program.header->vector_floats;
  float *vector = fleet->vectors ? fleet->vectors + (size_t)visit * n : run->trained;
  const float *base = fleet->base;
  memcpy(vector, run->start, 4 * (size_t)n);
  ft_store(&run->program, &run->memory, vector);
  if (run->held) send_moves(run, vector);
  if (fleet->personal) memcpy(run->mixed, vector, 4 * (size_t)n);
  ft_status status = measure(vector, base, fleet->fold_mask, n, outcome);
  if (!status && returns_gradient(fleet)) {
    base = NULL;
    ft_store_gradient(&run->program, &run->memory, vector);
    status = measure(vector, base, fleet->fold_mask, n, outcome);
  }
  if (!status) status = check_bounds(fleet, outcome);
  if (status) return status;
  if (fleet->personal) keep_personal(run, visit, run->mixed);
  if (sum) {
    ft_fold(vector, base, fleet->fold_mask, n, fleet->weight[visit], fleet->scale, sum);
  }
  return FT_OK;
}

static ft_status run_visit(ft_run *run, uint32_t visit, int64_t *sum, ft_outcome *outcome) {
  const ft_fleet *fleet = run->fleet;
  ft_status status = ft_open_visit(&run->samples, visit);
  if (status) return status;
  start_visit(run, visit);
  if (fleet->evaluate & FT_EVALUATE_BEFORE) status = evaluate(run, &outcome->before);
  for (uint32_t i = 0; !status && i < fleet->n_phases; i++) {
    status = run_phase(run, fleet->phases + i, outcome);
  }
  if (!status && fleet->evaluate & FT_EVALUATE_AFTER) status = evaluate(run, &outcome->after);
  return status ? status : finish_visit(run, visit, sum, outcome);
}

ft_status ft_fleet_run(const ft_fleet *fleet, uint32_t first, uint32_t last, void *memory,
                       size_t memory_bytes, int64_t *sum) {
  ft_run run;
  size_t bytes;
  ft_status status = open_run(&run, fleet, &bytes);
  if (status) return status;
  if (first > last || last > fleet->n_visits || (sum && !fleet->weight)) return FT_E_FLEET;
  if ((uintptr_t)memory % 16 || memory_bytes < bytes) return FT_E_MEMORY;
  lay_out(&run, memory);
  if (fleet->mask) status = ft_load_mask(&run.program, &run.memory, fleet->mask);
  if (status) return status;
  if (fleet->correction) ft_load_correction(&run.program, &run.memory, fleet->correction);
  for (uint32_t visit = first; visit < last; visit++) {
    ft_outcome outcome = {0};
    outcome.status = run_visit(&run, visit, sum, &outcome);
    fleet->outcomes[visit] = outcome;
  }
  return FT_OK;
}
