/* ft_real.c: float ops over int8 operands, on hosts: their real values stand in the scratch while
 * the float kernels run.
 */
#include "ft_int8.h"

#ifndef FT_SMALL

#include "ft_pairs.h"
#include "ft_sparse.h"

/* ---- room ---------------------------------------------------------------------------------- */

static size_t lines(size_t bytes) { return (bytes + 63) / 64 * 64; }

static int is_norm(const ft_op *op) {
  return op->code >= FT_OP_LINEAR_NORM && op->code < FT_OP_LINEAR_GRADIENT;
}

/* An operand that stands in the scratch. A norm has the weights for their shape. */
static int is_widened(const ft_tensor *tensors, const ft_op *op, uint32_t k) {
  return op->t[k] != FT_NONE && tensors[op->t[k]].dtype == FT_I8 && !(k == 3 && is_norm(op));
}

size_t ft_real_room(const ft_program *program, const ft_op *op) {
  size_t bytes = 0;
  for (uint32_t k = 0; k < 4; k++)
    if (is_widened(program->tensors, op, k))
      bytes += lines(sizeof(float) * ft_floats(&program->tensors[op->t[k]]));
  return bytes;
}

static size_t room_of(const ft_program *program, const ft_op *op) {
  if (op->code != FT_OP_CONV8) return ft_real_room(program, op);
  const ft_conv conv =
      ft_sparse_conv_of(op, &program->tensors[op->t[0]], &program->tensors[op->t[1]]);
  return ft_conv8_room(&conv);
}

size_t ft_scratch_bytes(const ft_program *program) {
  const ft_header *h = program->header;
  size_t most = 0;
  if (h->n_pruned) return FT_SCRATCH_FLOATS * sizeof(float);
  for (uint32_t i = 0; ft_is_int8(program) && i < h->n_ops; i++) {
    const size_t bytes = room_of(program, &program->ops[i]);
    most = bytes > most ? bytes : most;
  }
  return most;
}

/* ---- real values --------------------------------------------------------------------------- */

/* Its scale are steps. */
static int is_weight(const ft_op *op, uint32_t k) {
  return k == 1 && (op->code == FT_OP_LINEAR || op->code == FT_OP_LINEAR_DX ||
                    op->code == FT_OP_CONV_DX);
}

static void widen_weights(const int8_t *q, const float *step, uint32_t size, uint32_t channels,
                          float *to) {
  for (uint32_t at = 0; at < size; at += channels) ft_get_weights(q + at, step, channels, to + at);
}

static void widen_activation(const int8_t *q, ft_grid grid, uint32_t size, float *to) {
  for (uint32_t i = 0; i < size; i++) to[i] = ft_real(q[i], grid);
}

static void widen(const ft_frame *f, const ft_op *op, uint32_t k, float *to) {
  const ft_tensor *t = ft_operand(f, op, k);
  const int8_t *q = ft_bytes_at(f, op, k);
  const float *scale = ft_scale_at(f, op, k);
  if (is_weight(op, k))
    widen_weights(q, scale, ft_floats(t), ft_channels(t), to);
  else
    widen_activation(q, ft_grid_of(scale), ft_floats(t), to);
}

/* ---- stochastic rounding ------------------------------------------------------------------- */

enum { TILE = 256 };       /* weights that move at a time */

typedef int8_t b8 __attribute__((vector_size(8)));

/* The uniforms of `count` words of a stream from `word` on; how many stand before them. */
static uint32_t draw(const ft_stream *stream, uint32_t word, uint32_t count, float *u) {
  const uint32_t before = word % 4;
  for (uint32_t at = 0; at < before + count; at += 32) {
    v8u words[4];
    ft_words8(stream, word / 4 + at / 4, words);
    FT_UNROLL for (uint32_t k = 0; k < 4; k++)
      ft_store8(u + at + 8 * k, ft_uniform_in8(words[k], 0.0f, 1.0f));
  }
  return before;
}

/* What the rule makes of gradients from element `at` on: in place. */
static void follow(const ft_rule *rule, const float *real, uint32_t at, uint32_t count, float *g) {
#define EACH(statement)                                                                            \
  for (uint32_t i = 0; i < count; i++) statement
  if (rule->scale != 1.0f) EACH(g[i] = rule->scale * g[i]);
  if (rule->weight_decay != 0.0f) EACH(g[i] = g[i] + rule->weight_decay * real[i]);
  if (rule->base) EACH(g[i] = g[i] + rule->prox * (real[i] - rule->base[at + i]));
  if (rule->correction) EACH(g[i] = g[i] + rule->correction[at + i]);
  if (rule->velocity) {
    EACH(g[i] = rule->momentum * rule->velocity[at + i] + g[i]);
    memcpy(rule->velocity + at, g, count * sizeof *g);
  }
#undef EACH
}

/* The steps of the weights of a tile. */
static void gather_steps(const ft_rounding *r, uint32_t at, uint32_t count, float *step) {
  uint32_t channel = at % r->channels;
  for (uint32_t i = 0, some; i < count; i += some, channel = 0) {
    some = r->channels - channel < count - i ? r->channels - channel : count - i;
    memcpy(step + i, r->step + channel, some * sizeof *step);
  }
}

/* ft_rounded, eight at a time, but for the upper end, at which put_ints stops. */
FT_INLINE v8i rounded8(v8i q, v8 t, v8 u) {
  t = (v8)((v8i)t & (t == t));
  const v8 moved = ft_min8(ft_max8(t, ft_set8(-256.0f)), ft_set8(256.0f)) + u;
  const v8i whole = __builtin_convertvector(moved, v8i);
  const v8i far = q - whole - (__builtin_convertvector(whole, v8) > moved);
  const v8i below = far < -127;
  return (far & ~below) | (-127 & below);
}

FT_INLINE v8i ints_at(const int8_t *q) {
#ifdef __AVX2__
  return (v8i)_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)q));
#else
  b8 numbers;
  memcpy(&numbers, q, sizeof numbers);
  return __builtin_convertvector(numbers, v8i);
#endif
}

/* Those above 127 as 127; none is below -128. */
FT_INLINE void put_ints(int8_t *to, v8i q) {
#ifdef __SSE2__
  __m128i half[2];
  memcpy(half, &q, sizeof q);
  const __m128i words = _mm_packs_epi32(half[0], half[1]);
  _mm_storel_epi64((__m128i *)(void *)to, _mm_packs_epi16(words, words));
#else
  for (uint32_t k = 0; k < 8; k++) to[k] = (int8_t)(q[k] < 127 ? q[k] : 127);
#endif
}

/* Moves numbers by lr * g. */
static void move(float lr, const float *g, const float *step, const float *u, uint32_t count,
                 int8_t *q) {
  uint32_t i = 0;
  for (; i + 8 <= count; i += 8) {
    const v8 t = (lr * ft_load8(g + i)) / ft_load8(step + i);
    put_ints(q + i, rounded8(ints_at(q + i), t, ft_load8(u + i)));
  }
  for (; i < count; i++) q[i] = ft_rounded(q[i], (lr * g[i]) / step[i], u[i]);
}

static void round_tile(const ft_rule *rule, const ft_rounding *r, const float *gradient,
                       uint32_t at, uint32_t count, int8_t *w) {
  float g[TILE], real[TILE], step[TILE], u[TILE + 32];
  uint32_t before;
  gather_steps(r, at, count, step);
  before = draw(&r->stream, r->word + at, count, u);
  if (!ft_rule_is_plain(rule)) {
    memcpy(g, gradient + at, count * sizeof *g);
    ft_get_weights(w + at, step, count, real);
    follow(rule, real, at, count, g);
  }
  move(rule->lr, ft_rule_is_plain(rule) ? gradient + at : g, step, u + before, count, w + at);
}

static void round_update(const ft_rule *rule, const ft_rounding *r, const float *g, int8_t *w,
                         uint32_t size) {
  for (uint32_t at = 0, count; at < size; at += count) {
    count = size - at < TILE ? size - at : TILE;
    round_tile(rule, r, g, at, count, w);
  }
}

/* ---- an op --------------------------------------------------------------------------------- */

/* The op over tensors of floats: operand k of the copy is tensor k of the view. */
typedef struct { ft_op op; ft_tensor tensors[8]; ft_frame frame; } view;

static void put_view(const ft_frame *f, const ft_op *op, int moves, view *v) {
  uint32_t used = 0;
  v->op = *op;
  v->frame = *f;
  v->frame.tensors = v->tensors;
  for (uint32_t k = 0; k < 8; k++) {
    if (op->t[k] == FT_NONE) continue;
    v->op.t[k] = (uint16_t)k;
    v->tensors[k] = *ft_operand(f, op, k);
    v->tensors[k].dtype = v->tensors[k].dtype == FT_I8 ? FT_F32 : v->tensors[k].dtype;
    if (!is_widened(f->tensors, op, k)) continue;
    v->tensors[k].region = FT_REGIONS;
    v->tensors[k].offset = used;
    float *to = (float *)(void *)((uint8_t *)f->memory->scratch + used);
    used += (uint32_t)lines(sizeof(float) * ft_floats(&v->tensors[k]));
    if (moves && k == 2)
      memset(to, 0, sizeof(float) * ft_floats(&v->tensors[k]));
    else
      widen(f, op, k, to);
  }
}

/* Of an update: its gradient first, in the scratch. */
static void update(const ft_frame *f, const ft_op *op) {
  const ft_rule rule = ft_rule_of(f, op);
  const ft_rounding rounding = ft_rounding_of(f, op);
  const float *g = ft_at(f, op, 1);
  if (op->code != FT_OP_GRADIENT_UPDATE) {
    view v;
    put_view(f, op, 1, &v);
    v.op.code += FT_OP_LINEAR_GRADIENT - FT_OP_LINEAR_UPDATE;
    ft_run_op(&v.frame, &v.op);
    g = ft_at(&v.frame, &v.op, 2);
  }
  round_update(&rule, &rounding, g, ft_bytes_at(f, op, 2), ft_floats(ft_operand(f, op, 2)));
}

void ft_run_real(const ft_frame *f, const ft_op *op) {
  const int is_update = op->code >= FT_OP_LINEAR_UPDATE && op->code < FT_OP_LINEAR_NORM;
  view v;
  if (is_norm(op) && !(f->hyper->clip > 0.0f)) return;
  if (is_update && ft_operand(f, op, 2)->dtype == FT_I8) {
    update(f, op);
    return;
  }
  put_view(f, op, 0, &v);
  ft_run_op(&v.frame, &v.op);
}

#endif
