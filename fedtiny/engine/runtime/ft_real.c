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

enum { TILE = 256, DRAWN = 32 }; /* weights that move at a time; words that are drawn */

typedef int8_t b8 __attribute__((vector_size(8)));

/* The uniforms of DRAWN words from a block on. */
FT_INLINE void draw(const ft_blocks *blocks, uint32_t block, float *u) {
  v8u words[DRAWN / 8];
  FT_UNROLL for (uint32_t k = 0; k < DRAWN / 16; k++)
    ft_words4(blocks, block + 4 * k, words + 2 * k);
  FT_UNROLL for (uint32_t k = 0; k < DRAWN / 8; k++) ft_store8(u + 8 * k, ft_uniform8(words[k]));
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

/* ft_rounded, eight at a time, but for the ends, at which put_ints stops. */
FT_INLINE v8i moved8(v8i q, v8 t, v8 u) {
  t = (v8)((v8i)t & (t == t));
  const v8 moved = ft_min8(ft_max8(t, ft_set8(-256.0f)), ft_set8(256.0f)) + u;
  const v8i whole = __builtin_convertvector(moved, v8i);
  return q - whole - (__builtin_convertvector(whole, v8) > moved);
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

/* None below -127 or above 127. */
FT_INLINE void put_ints(int8_t *to, v8i q) {
#ifdef __SSE2__
  __m128i half[2];
  memcpy(half, &q, sizeof q);
  const __m128i least = _mm_set1_epi16(-127);
  const __m128i words = _mm_max_epi16(_mm_packs_epi32(half[0], half[1]), least);
  _mm_storel_epi64((__m128i *)(void *)to, _mm_packs_epi16(words, words));
#else
  for (uint32_t k = 0; k < 8; k++) to[k] = (int8_t)ft_clamped_int(q[k], -127, 127);
#endif
}

/* Numbers by lr * g. */
FT_INLINE void move8(float lr, const float *g, const float *step, const float *u, int8_t *q) {
  const v8 t = (lr * ft_load8(g)) / ft_load8(step);
  put_ints(q, moved8(ints_at(q), t, ft_load8(u)));
}

FT_INLINE int are_zeros(const float *g, uint32_t count) {
  v8i set = {0};
  if (count < DRAWN) return 0;
  FT_UNROLL for (uint32_t k = 0; k < DRAWN; k += 8) set |= ft_load8(g + k) != 0.0f;
  return ft_are_zero8(set);
}

/* Numbers, with the words from `word` on. What has no gradient stays, whatever is drawn. */
static void move(const ft_blocks *blocks, uint32_t word, float lr, const float *g,
                 const float *step, uint32_t count, int8_t *q) {
  const uint32_t before = word % 4;
  for (uint32_t at = 0, i = 0, end; at < count; at = end, i = end) {
    float words[2 * DRAWN], *u = words + before;
    end = count - at < DRAWN ? count : at + DRAWN;
    if (are_zeros(g + at, end - at)) continue;
    draw(blocks, (word + at) / 4, words);
    if (before + end - at > DRAWN) draw(blocks, (word + at + DRAWN) / 4, words + DRAWN);
    if (end - at == DRAWN)
      FT_UNROLL for (uint32_t k = 0; k < DRAWN; k += 8, i += 8)
        move8(lr, g + i, step + i, u + k, q + i);
    for (; i + 8 <= end; i += 8) move8(lr, g + i, step + i, u + (i - at), q + i);
    for (; i < end; i++) q[i] = ft_rounded(q[i], (lr * g[i]) / step[i], u[i - at]);
  }
}

static void round_tile(const ft_rule *rule, const ft_blocks *blocks, uint32_t word,
                       const float *step, const float *gradient, uint32_t at, uint32_t count,
                       int8_t *w) {
  float g[TILE], real[TILE];
  if (!ft_rule_is_plain(rule)) {
    memcpy(g, gradient, count * sizeof *g);
    ft_get_weights(w + at, step, count, real);
    follow(rule, real, at, count, g);
    gradient = g;
  }
  move(blocks, word + at, rule->lr, gradient, step, count, w + at);
}

/* A tile is some rows of weights, whose steps then stand side by side, or a part of one. */
static void round_update(const ft_rule *rule, const ft_rounding *r, const float *g, int8_t *w,
                         uint32_t size) {
  const uint32_t channels = r->channels, rows = TILE / channels;
  const ft_blocks blocks = ft_blocks_of(&r->stream);
  float steps[TILE];
  for (uint32_t row = 0; row < rows; row++)
    memcpy(steps + row * channels, r->step, channels * sizeof *steps);
  for (uint32_t at = 0, count; at < size; at += count) {
    const uint32_t channel = at % channels, left = rows ? size - at : channels - channel;
    const uint32_t most = rows ? rows * channels : TILE;
    count = left < most ? left : most;
    round_tile(rule, &blocks, r->word, rows ? steps : r->step + channel, g + at, at, count, w);
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
    if (!moves || k != 2) widen(f, op, k, to);
  }
}

/* Of the view of an update, in the place of its target. */
static const float *gradient_of(view *v) {
  const ft_tensor *t = v->tensors;
  float *g = ft_at(&v->frame, &v->op, 2);
  if (v->op.code == FT_OP_CONV_UPDATE) {
    const ft_conv conv = ft_sparse_conv_of(&v->op, &t[0], &t[2]);
    ft_conv_gradient_f32(&conv, ft_at(&v->frame, &v->op, 0), ft_at(&v->frame, &v->op, 1), g);
    return g;
  }
  memset(g, 0, sizeof *g * ft_floats(&t[2]));
  v->op.code += FT_OP_LINEAR_GRADIENT - FT_OP_LINEAR_UPDATE;
  ft_run_op(&v->frame, &v->op);
  return g;
}

static void update(const ft_frame *f, const ft_op *op) {
  const ft_rule rule = ft_rule_of(f, op);
  const ft_rounding rounding = ft_rounding_of(f, op);
  const float *g = ft_at(f, op, 1);
  view v;
  if (op->code != FT_OP_GRADIENT_UPDATE) {
    put_view(f, op, 1, &v);
    g = gradient_of(&v);
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
