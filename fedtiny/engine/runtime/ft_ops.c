/* ft_ops.c: from an op to its kernel: which tensors, and which extents. */
#include "ft_grow.h"
#include "ft_int8.h"

#include <math.h>

static inline float *at_or_null(const ft_frame *f, const ft_op *op, uint32_t k) {
  return op->t[k] == FT_NONE ? NULL : ft_at(f, op, k);
}

static inline uint32_t *bits_at(const ft_frame *f, const ft_op *op, uint32_t k) {
  return (uint32_t *)(void *)ft_at(f, op, k);
}

static inline uint32_t size_of(const ft_frame *f, const ft_op *op, uint32_t k) {
  return ft_floats(ft_operand(f, op, k));
}

static inline uint32_t channels_of(const ft_frame *f, const ft_op *op, uint32_t k) {
  return ft_channels(ft_operand(f, op, k));
}

static inline uint32_t rows_of(const ft_frame *f, const ft_op *op, uint32_t k) {
  return ft_operand(f, op, k)->dims[0];
}

static inline uint32_t row_of(const ft_frame *f, const ft_op *op, uint32_t k) {
  return ft_row_floats(ft_operand(f, op, k));
}

/* The bytes of an element. */
static inline uint32_t element_of(const ft_frame *f, const ft_op *op, uint32_t k) {
  return ft_operand(f, op, k)->dtype == FT_I8 ? 1 : 4;
}

/* ---- element by element -------------------------------------------------------------------- */

typedef void unary_fn(const float *x, float *y, uint32_t size);
typedef void binary_fn(const float *a, const float *b, float *y, uint32_t size);

FT_INLINE void unary(const ft_frame *f, const ft_op *op, unary_fn *kernel) {
  kernel(ft_at(f, op, 0), ft_at(f, op, 1), size_of(f, op, 1));
}

FT_INLINE void binary(const ft_frame *f, const ft_op *op, binary_fn *kernel) {
  kernel(ft_at(f, op, 0), ft_at(f, op, 1), ft_at(f, op, 2), size_of(f, op, 2));
}

/* Of the y that a relu has just made. */
static void mask(const ft_frame *f, const ft_op *op, float top) {
  if (op->t[2] != FT_NONE)
    ft_mask_f32(ft_at(f, op, 1), bits_at(f, op, 2), rows_of(f, op, 1), row_of(f, op, 1), top);
}

static void relu(const ft_frame *f, const ft_op *op) {
  unary(f, op, ft_relu_f32);
  mask(f, op, 0.0f);
}

static void relu6(const ft_frame *f, const ft_op *op) {
  unary(f, op, ft_relu6_f32);
  mask(f, op, 6.0f);
}

static void leaky_relu(const ft_frame *f, const ft_op *op) {
  ft_leaky_relu_f32(ft_at(f, op, 0), ft_at(f, op, 1), size_of(f, op, 1), ft_scalar(op));
  mask(f, op, 0.0f);
}

static void leaky_relu_dx(const ft_frame *f, const ft_op *op) {
  ft_leaky_relu_dx_f32(ft_at(f, op, 0), ft_at(f, op, 1), ft_at(f, op, 2), size_of(f, op, 2),
                       ft_scalar(op));
}

static void mask_dx(const ft_frame *f, const ft_op *op) {
  ft_mask_dx_f32(ft_at(f, op, 0), bits_at(f, op, 1), ft_at(f, op, 2), rows_of(f, op, 2),
                 row_of(f, op, 2), ft_scalar(op));
}

static void softmax(const ft_frame *f, const ft_op *op) {
  const uint32_t classes = channels_of(f, op, 0);
  ft_softmax_f32(ft_at(f, op, 0), ft_at(f, op, 1), size_of(f, op, 0) / classes, classes);
}

static void softmax_dx(const ft_frame *f, const ft_op *op) {
  const uint32_t classes = channels_of(f, op, 0);
  ft_softmax_dx_f32(ft_at(f, op, 0), ft_at(f, op, 1), ft_at(f, op, 2),
                    size_of(f, op, 0) / classes, classes);
}

static void bias(const ft_frame *f, const ft_op *op) {
  ft_bias_f32(ft_at(f, op, 0), ft_at(f, op, 1), ft_at(f, op, 2), size_of(f, op, 2),
              channels_of(f, op, 2));
}

/* ---- copies -------------------------------------------------------------------------------- */

static void concat(const ft_frame *f, const ft_op *op) {
  const uint32_t first = channels_of(f, op, 0), second = channels_of(f, op, 1);
  const uint32_t rows = size_of(f, op, 0) / first;
  float *y = ft_at(f, op, 2);
  ft_copy_columns_f32(ft_at(f, op, 0), first, y, first + second, rows, first);
  ft_copy_columns_f32(ft_at(f, op, 1), second, y + first, first + second, rows, second);
}

static void slice(const ft_frame *f, const ft_op *op) {
  const uint32_t columns = channels_of(f, op, 1);
  ft_copy_columns_f32(ft_at(f, op, 0) + ft_number(op), channels_of(f, op, 0), ft_at(f, op, 1),
                      columns, size_of(f, op, 1) / columns, columns);
}

static void reshape(const ft_frame *f, const ft_op *op) {
  const float *x = ft_at(f, op, 0);
  float *y = ft_at(f, op, 1);
  if (x != y) memcpy(y, x, (size_t)size_of(f, op, 1) * element_of(f, op, 1));
}

static const int32_t *list_at(const ft_frame *f, const ft_op *op, uint32_t k) {
  return (const int32_t *)(const void *)ft_at(f, op, k);
}

static void take(const ft_frame *f, const ft_op *op) {
  const uint32_t channels = channels_of(f, op, 0);
  ft_take(ft_at(f, op, 0), list_at(f, op, 1), ft_at(f, op, 2), size_of(f, op, 0) / channels,
          channels, size_of(f, op, 1), element_of(f, op, 0));
}

static void merge(const ft_frame *f, const ft_op *op) {
  const ft_tensor *w = ft_operand(f, op, 0);
  const ft_part part = ft_part_of(w, ft_number(op), list_at(f, op, 2), size_of(f, op, 2));
  const uint32_t bytes = element_of(f, op, 0);
  memcpy(ft_at(f, op, 3), ft_at(f, op, 0), (size_t)ft_floats(w) * bytes);
  ft_merge(&part, ft_at(f, op, 1), ft_at(f, op, 3), bytes);
}

static ft_region region_of(const ft_frame *f, const ft_op *op, uint32_t whole) {
  const uint32_t *dims = ft_operand(f, op, whole)->dims;
  const uint16_t *at = op->attr + 1;
  const ft_region region = {{dims[0], dims[1], dims[2], dims[3]}, at[0], at[1], at[2], at[3],
                            element_of(f, op, whole)};
  return region;
}

static void crop(const ft_frame *f, const ft_op *op) {
  const ft_region region = region_of(f, op, 0);
  ft_crop(&region, ft_at(f, op, 0), ft_at(f, op, 1));
}

static void paste(const ft_frame *f, const ft_op *op) {
  const ft_region region = region_of(f, op, 2);
  const float *base = at_or_null(f, op, 0);
  float *y = ft_at(f, op, 2);
  const size_t bytes = (size_t)size_of(f, op, 2) * region.element_bytes;
  if (!base) memset(y, 0, bytes);
  else if (base != y) memcpy(y, base, bytes);
  ft_paste(&region, at_or_null(f, op, 1), y);
}

static void zero(const ft_frame *f, const ft_op *op) {
  memset(ft_at(f, op, 0), 0, size_of(f, op, 0) * sizeof(float));
}

/* ---- linear, convolutions, pools ----------------------------------------------------------- */

static void linear(const ft_frame *f, const ft_op *op) {
  const ft_tensor *w = ft_operand(f, op, 1);
  ft_linear_f32(ft_at(f, op, 0), ft_at(f, op, 1), at_or_null(f, op, 2), ft_at(f, op, 3),
                rows_of(f, op, 3), w->dims[0], w->dims[1]);
}

static void linear_dx(const ft_frame *f, const ft_op *op) {
  const ft_tensor *w = ft_operand(f, op, 1);
  ft_linear_dx_f32(ft_at(f, op, 0), ft_at(f, op, 1), ft_at(f, op, 2), rows_of(f, op, 0),
                   w->dims[0], w->dims[1]);
}

static ft_conv conv_of(const ft_frame *f, const ft_op *op, uint32_t x, uint32_t w) {
  return ft_conv_of(op, ft_operand(f, op, x), ft_operand(f, op, w));
}

static void conv(const ft_frame *f, const ft_op *op) {
  const ft_conv c = conv_of(f, op, 0, 1);
  ft_conv_f32(&c, ft_at(f, op, 0), ft_at(f, op, 1), at_or_null(f, op, 2), ft_at(f, op, 3));
}

static void conv_pool(const ft_frame *f, const ft_op *op) {
  const ft_conv c = conv_of(f, op, 0, 1);
  ft_conv_pool_f32(&c, ft_at(f, op, 0), ft_at(f, op, 1), at_or_null(f, op, 2), ft_at(f, op, 3),
                   bits_at(f, op, 4));
}

static void conv_dx(const ft_frame *f, const ft_op *op) {
  const ft_conv c = conv_of(f, op, 2, 1);
  ft_conv_dx_f32(&c, ft_at(f, op, 0), ft_at(f, op, 1), ft_at(f, op, 2));
}

static ft_conv sparse_conv_of(const ft_frame *f, const ft_op *op, uint32_t x, uint32_t w) {
  return ft_sparse_conv_of(op, ft_operand(f, op, x), ft_operand(f, op, w));
}

static ft_live live_of(const ft_frame *f, const ft_op *op, uint32_t w) {
  return ft_live_at(f->program, f->memory, ft_operand(f, op, w)->offset);
}

static void sparse_conv(const ft_frame *f, const ft_op *op) {
  const ft_conv c = sparse_conv_of(f, op, 0, 1);
  const ft_live w = live_of(f, op, 1);
  ft_sparse_conv_f32(&c, ft_at(f, op, 0), &w, at_or_null(f, op, 2), ft_at(f, op, 3),
                     f->memory->scratch);
}

static void sparse_conv_dx(const ft_frame *f, const ft_op *op) {
  const ft_conv c = sparse_conv_of(f, op, 2, 1);
  const ft_live w = live_of(f, op, 1);
  ft_sparse_conv_dx_f32(&c, ft_at(f, op, 0), &w, ft_at(f, op, 2), f->memory->scratch);
}

static void max_pool(const ft_frame *f, const ft_op *op) {
  const ft_window pool = ft_pool_of(op, ft_operand(f, op, 0));
  ft_max_pool_f32(&pool, ft_at(f, op, 0), ft_at(f, op, 1), bits_at(f, op, 2));
}

static void max_pool_dx(const ft_frame *f, const ft_op *op) {
  const ft_window pool = ft_pool_of(op, ft_operand(f, op, 2));
  ft_max_pool_dx_f32(&pool, ft_at(f, op, 0), bits_at(f, op, 1), ft_at(f, op, 2));
}

static void avg_pool(const ft_frame *f, const ft_op *op) {
  const ft_window pool = ft_pool_of(op, ft_operand(f, op, 0));
  ft_avg_pool_f32(&pool, ft_at(f, op, 0), ft_at(f, op, 1));
}

static void avg_pool_dx(const ft_frame *f, const ft_op *op) {
  const ft_window pool = ft_pool_of(op, ft_operand(f, op, 1));
  ft_avg_pool_dx_f32(&pool, ft_at(f, op, 0), ft_at(f, op, 1));
}

/* ---- int8 ---------------------------------------------------------------------------------- */

static ft_grid grid_of(const ft_frame *f, const ft_op *op, uint32_t k) {
  return ft_grid_of(ft_scale_at(f, op, k));
}

static void conv8(const ft_frame *f, const ft_op *op) {
  const ft_conv c = sparse_conv_of(f, op, 0, 1);
  ft_conv8(&c, ft_bytes_at(f, op, 0), grid_of(f, op, 0), ft_bytes_at(f, op, 1),
           ft_scale_at(f, op, 1), at_or_null(f, op, 2), ft_bytes_at(f, op, 3), grid_of(f, op, 3),
           f->memory->scratch);
}

static void add8(const ft_frame *f, const ft_op *op) {
  ft_add8(ft_bytes_at(f, op, 0), grid_of(f, op, 0), ft_bytes_at(f, op, 1), grid_of(f, op, 1),
          ft_bytes_at(f, op, 2), grid_of(f, op, 2), size_of(f, op, 2));
}

static void avg_pool8(const ft_frame *f, const ft_op *op) {
  const ft_window pool = ft_pool_of(op, ft_operand(f, op, 0));
  ft_avg_pool8(&pool, ft_bytes_at(f, op, 0), grid_of(f, op, 0), ft_bytes_at(f, op, 1),
               grid_of(f, op, 1));
}

static void max_pool8(const ft_frame *f, const ft_op *op) {
  const ft_window pool = ft_pool_of(op, ft_operand(f, op, 0));
  ft_max_pool8(&pool, ft_bytes_at(f, op, 0), ft_bytes_at(f, op, 1), bits_at(f, op, 2));
}

static void mask8(const ft_frame *f, const ft_op *op) {
  ft_mask8(ft_bytes_at(f, op, 0), grid_of(f, op, 0), bits_at(f, op, 1), rows_of(f, op, 0),
           row_of(f, op, 0), ft_scalar(op));
}

/* ---- channel by channel -------------------------------------------------------------------- */

static void affine(const ft_frame *f, const ft_op *op) {
  ft_affine_f32(ft_at(f, op, 0), ft_at(f, op, 1), ft_at(f, op, 2), ft_at(f, op, 3),
                size_of(f, op, 3), channels_of(f, op, 3));
}

static void affine_dx(const ft_frame *f, const ft_op *op) {
  ft_affine_dx_f32(ft_at(f, op, 0), ft_at(f, op, 1), ft_at(f, op, 2), size_of(f, op, 2),
                   channels_of(f, op, 2));
}

static void frozen_normalize(const ft_frame *f, const ft_op *op) {
  ft_frozen_normalize_f32(ft_at(f, op, 0), ft_at(f, op, 1), ft_at(f, op, 2), ft_at(f, op, 3),
                          size_of(f, op, 3), channels_of(f, op, 3), ft_scalar(op));
}

static void frozen_normalize_dx(const ft_frame *f, const ft_op *op) {
  ft_frozen_normalize_dx_f32(ft_at(f, op, 0), ft_at(f, op, 1), ft_at(f, op, 2),
                             size_of(f, op, 2), channels_of(f, op, 2), ft_scalar(op));
}

/* A step tracks, unless it is told not to. */
static void track_normalize(const ft_frame *f, const ft_op *op) {
  const uint32_t size = size_of(f, op, 3), channels = channels_of(f, op, 3);
  const float *x = ft_at(f, op, 0), eps = ft_scalar(op);
  const ft_tracked tracked = {ft_at(f, op, 1), ft_at(f, op, 2), (float)ft_number(op) / 1000.0f};
  const int tracks = f->hyper && !(f->hyper->flags & FT_KEEP_STATISTICS);
  float *y = ft_at(f, op, 3), *rstd = ft_at(f, op, 4);
  if (f->by_batch) {
    ft_track_normalize_f32(x, y, rstd, size, channels, eps, tracks ? &tracked : NULL);
    return;
  }
  for (uint32_t c = 0; c < channels; c++) rstd[c] = 1.0f / sqrtf(tracked.var[c] + eps);
  ft_frozen_normalize_f32(x, tracked.mean, tracked.var, y, size, channels, eps);
}

/* Number 0: the statistics of a whole batch. */
static ft_groups groups_of(const ft_op *op, const ft_tensor *x) {
  const uint32_t channels = ft_channels(x), number = ft_number(op);
  const ft_groups batch = {1, ft_floats(x) / channels, channels, channels};
  const ft_groups sample = {x->dims[0], ft_row_floats(x) / channels, channels, number};
  return number ? sample : batch;
}

static void normalize(const ft_frame *f, const ft_op *op) {
  const ft_groups groups = groups_of(op, ft_operand(f, op, 0));
  ft_normalize_f32(&groups, ft_at(f, op, 0), ft_at(f, op, 1), ft_at(f, op, 2), ft_scalar(op));
}

static void normalize_dx(const ft_frame *f, const ft_op *op) {
  const ft_groups groups = groups_of(op, ft_operand(f, op, 0));
  ft_normalize_dx_f32(&groups, ft_at(f, op, 0), ft_at(f, op, 1), ft_at(f, op, 2),
                      ft_at(f, op, 3));
}

/* ---- losses -------------------------------------------------------------------------------- */

typedef float distance_fn(const float *prediction, const float *target, float *gradient,
                          uint32_t rows, uint32_t outputs);

FT_INLINE float distance(const ft_frame *f, const ft_op *op, distance_fn *kernel) {
  return *ft_at(f, op, 3) = kernel(ft_at(f, op, 0), ft_at(f, op, 1), ft_at(f, op, 2),
                                   rows_of(f, op, 0), row_of(f, op, 0));
}

static float cross_entropy(const ft_frame *f, const ft_op *op) {
  const int32_t *labels = (const int32_t *)(const void *)f->region[FT_LABELS];
  return *ft_at(f, op, 3) =
             ft_cross_entropy_f32(ft_at(f, op, 0), labels, at_or_null(f, op, 4), ft_at(f, op, 2),
                                  rows_of(f, op, 0), row_of(f, op, 0));
}

/* ---- parameters: updates, gradients in a buffer, norms ------------------------------------- */

/* A gradient is summed in a buffer b by b = b - (-1 * g). */
ft_rule ft_rule_of(const ft_frame *f, const ft_op *op) {
  static const ft_rule sum = {-1.0f, 0.0f, 0.0f, 0.0f, 1.0f, NULL, NULL, NULL};
  if (op->code >= FT_OP_LINEAR_GRADIENT) return sum;
  const ft_hyper *hyper = f->hyper;
  const uint32_t state_at =
      ft_state_at(f->program, f->memory, &f->program->params[op->attr[0]]);
  ft_rule rule;
  rule.lr = hyper->lr;
  rule.momentum = hyper->momentum;
  rule.weight_decay = hyper->weight_decay;
  rule.prox = hyper->prox;
  rule.scale = op->t[3] == FT_NONE ? 1.0f : *ft_at(f, op, 3);
  rule.velocity = f->velocity ? f->velocity + state_at : NULL;
  rule.base = f->base ? f->base + state_at : NULL;
  rule.correction = f->correction ? f->correction + state_at : NULL;
  return rule;
}

ft_rounding ft_rounding_of(const ft_frame *f, const ft_op *op) {
  const ft_hyper *h = f->hyper;
  ft_rounding rounding;
  rounding.stream.run = h->run;
  rounding.stream.round = h->round;
  rounding.stream.device = h->device;
  rounding.stream.purpose = FT_PURPOSE_WEIGHT + (h->step << 8);
  rounding.word = f->program->params[op->attr[0]].state_at;
  rounding.step = ft_scale_at(f, op, 2);
  rounding.channels = channels_of(f, op, 2);
  return rounding;
}

static void linear_update(const ft_frame *f, const ft_op *op, const ft_rule *rule) {
  const ft_tensor *w = ft_operand(f, op, 2);
  ft_linear_update_f32(ft_at(f, op, 0), ft_at(f, op, 1), ft_at(f, op, 2), rows_of(f, op, 0),
                       w->dims[0], w->dims[1], rule);
}

static void conv_update(const ft_frame *f, const ft_op *op, const ft_rule *rule) {
  const ft_conv c = conv_of(f, op, 0, 2);
  ft_conv_update_f32(&c, ft_at(f, op, 0), ft_at(f, op, 1), ft_at(f, op, 2), rule);
}

static void conv_pool_update(const ft_frame *f, const ft_op *op, const ft_rule *rule) {
  const ft_conv c = conv_of(f, op, 0, 2);
  ft_conv_pool_update_f32(&c, ft_at(f, op, 0), ft_at(f, op, 1), bits_at(f, op, 4),
                          ft_at(f, op, 2), rule);
}

static void sparse_conv_update(const ft_frame *f, const ft_op *op, const ft_rule *rule) {
  const ft_conv c = sparse_conv_of(f, op, 0, 2);
  const ft_live w = live_of(f, op, 2);
  ft_sparse_conv_update_f32(&c, ft_at(f, op, 0), ft_at(f, op, 1), &w, rule, f->memory->scratch);
}

static void update(const ft_frame *f, const ft_op *op) {
  const ft_rule rule = ft_rule_of(f, op);
  if (op->code == FT_OP_SPARSE_CONV_UPDATE) {
    sparse_conv_update(f, op, &rule);
    return;
  }
  const float *dy = ft_at(f, op, 1);
  float *w = ft_at(f, op, 2);
  const uint32_t size = size_of(f, op, 1), channels = channels_of(f, op, 1);
  switch (op->code) {
    case FT_OP_LINEAR_UPDATE: case FT_OP_LINEAR_GRADIENT: linear_update(f, op, &rule); break;
    case FT_OP_BIAS_UPDATE: case FT_OP_BIAS_GRADIENT:
      ft_bias_update_f32(dy, w, size, channels, &rule);
      break;
    case FT_OP_CONV_UPDATE: case FT_OP_CONV_GRADIENT: conv_update(f, op, &rule); break;
    case FT_OP_CONV_POOL_UPDATE: case FT_OP_CONV_POOL_GRADIENT:
      conv_pool_update(f, op, &rule);
      break;
    case FT_OP_AFFINE_UPDATE: case FT_OP_AFFINE_GRADIENT:
      ft_affine_update_f32(ft_at(f, op, 0), dy, w, size, channels, &rule);
      break;
    default: ft_gradient_update_f32(dy, w, size, &rule);
  }
}

static float conv_norm(const ft_frame *f, const ft_op *op) {
  const ft_conv c = conv_of(f, op, 0, 3);
  return ft_conv_norm_f32(&c, ft_at(f, op, 0), ft_at(f, op, 1));
}

static float conv_pool_norm(const ft_frame *f, const ft_op *op) {
  const ft_conv c = conv_of(f, op, 0, 3);
  return ft_conv_pool_norm_f32(&c, ft_at(f, op, 0), ft_at(f, op, 1), bits_at(f, op, 4));
}

static float sparse_conv_norm(const ft_frame *f, const ft_op *op) {
  const ft_conv c = sparse_conv_of(f, op, 0, 3);
  const ft_live w = live_of(f, op, 3);
  return ft_sparse_conv_norm_f32(&c, ft_at(f, op, 0), ft_at(f, op, 1), &w, f->memory->scratch);
}

static float norm_of(const ft_frame *f, const ft_op *op) {
  const float *dy = ft_at(f, op, 1);
  const uint32_t size = size_of(f, op, 1), channels = channels_of(f, op, 1);
  switch (op->code) {
    case FT_OP_LINEAR_NORM:
      return ft_linear_norm_f32(ft_at(f, op, 0), dy, rows_of(f, op, 0), row_of(f, op, 0),
                                row_of(f, op, 1));
    case FT_OP_BIAS_NORM: return ft_bias_norm_f32(dy, size, channels);
    case FT_OP_CONV_NORM: return conv_norm(f, op);
    case FT_OP_CONV_POOL_NORM: return conv_pool_norm(f, op);
    case FT_OP_SPARSE_CONV_NORM: return sparse_conv_norm(f, op);
    case FT_OP_AFFINE_NORM: return ft_affine_norm_f32(ft_at(f, op, 0), dy, size, channels);
    default: return ft_gradient_norm_f32(dy, size, channels);
  }
}

static void norm(const ft_frame *f, const ft_op *op) {
  if (f->hyper->clip > 0.0f) *ft_at(f, op, 2) += norm_of(f, op);
}

static void norm_scale(const ft_frame *f, const ft_op *op) {
  const float total = sqrtf(*ft_at(f, op, 0)), clip = f->hyper->clip;
  *ft_at(f, op, 1) = clip > 0.0f && total > clip ? clip / total : 1.0f;
}

/* ---- an op, and a range of them ------------------------------------------------------------ */

static void forward(const ft_frame *f, const ft_op *op) {
  switch (op->code) {
    case FT_OP_LINEAR: linear(f, op); break;
    case FT_OP_BIAS: bias(f, op); break;
    case FT_OP_RELU: relu(f, op); break;
    case FT_OP_RELU6: relu6(f, op); break;
    case FT_OP_LEAKY_RELU: leaky_relu(f, op); break;
    case FT_OP_TANH: unary(f, op, ft_tanh_f32); break;
    case FT_OP_SIGMOID: unary(f, op, ft_sigmoid_f32); break;
    case FT_OP_HARDSWISH: unary(f, op, ft_hardswish_f32); break;
    case FT_OP_ADD: binary(f, op, ft_add_f32); break;
    case FT_OP_SOFTMAX: softmax(f, op); break;
    case FT_OP_CONCAT: concat(f, op); break;
    case FT_OP_RESHAPE: reshape(f, op); break;
    case FT_OP_CONV: conv(f, op); break;
    case FT_OP_CONV_POOL: conv_pool(f, op); break;
    case FT_OP_MAX_POOL: max_pool(f, op); break;
    case FT_OP_AVG_POOL: avg_pool(f, op); break;
    case FT_OP_SPARSE_CONV: sparse_conv(f, op); break;
    case FT_OP_AFFINE: affine(f, op); break;
    case FT_OP_FROZEN_NORMALIZE: frozen_normalize(f, op); break;
    case FT_OP_TRACKED_NORMALIZE: track_normalize(f, op); break;
    case FT_OP_CONV8: conv8(f, op); break;
    case FT_OP_ADD8: add8(f, op); break;
    case FT_OP_AVG_POOL8: avg_pool8(f, op); break;
    case FT_OP_MAX_POOL8: max_pool8(f, op); break;
    case FT_OP_MASK8: mask8(f, op); break;
    case FT_OP_TAKE: take(f, op); break;
    case FT_OP_MERGE: merge(f, op); break;
    case FT_OP_CROP: crop(f, op); break;
    case FT_OP_PASTE: paste(f, op); break;
    default: normalize(f, op);
  }
}

static float loss(const ft_frame *f, const ft_op *op) {
  switch (op->code) {
    case FT_OP_MSE: return distance(f, op, ft_mse_f32);
    case FT_OP_SOFT_CROSS_ENTROPY: return distance(f, op, ft_soft_cross_entropy_f32);
    default: return cross_entropy(f, op);
  }
}

static void backward(const ft_frame *f, const ft_op *op) {
  switch (op->code) {
    case FT_OP_LINEAR_DX: linear_dx(f, op); break;
    case FT_OP_RELU_DX: binary(f, op, ft_relu_dx_f32); break;
    case FT_OP_RELU6_DX: binary(f, op, ft_relu6_dx_f32); break;
    case FT_OP_LEAKY_RELU_DX: leaky_relu_dx(f, op); break;
    case FT_OP_MASK_DX: mask_dx(f, op); break;
    case FT_OP_TANH_DX: binary(f, op, ft_tanh_dx_f32); break;
    case FT_OP_SIGMOID_DX: binary(f, op, ft_sigmoid_dx_f32); break;
    case FT_OP_HARDSWISH_DX: binary(f, op, ft_hardswish_dx_f32); break;
    case FT_OP_SOFTMAX_DX: softmax_dx(f, op); break;
    case FT_OP_SLICE: slice(f, op); break;
    case FT_OP_CONV_DX: conv_dx(f, op); break;
    case FT_OP_MAX_POOL_DX: max_pool_dx(f, op); break;
    case FT_OP_AVG_POOL_DX: avg_pool_dx(f, op); break;
    case FT_OP_SPARSE_CONV_DX: sparse_conv_dx(f, op); break;
    case FT_OP_AFFINE_DX: affine_dx(f, op); break;
    case FT_OP_FROZEN_NORMALIZE_DX: frozen_normalize_dx(f, op); break;
    case FT_OP_ZERO: zero(f, op); break;
    case FT_OP_NORM_SCALE: norm_scale(f, op); break;
    default: normalize_dx(f, op);
  }
}

/* Ops that move parameters, or serve those that do. */
static int is_moving(const ft_op *op) {
  return op->code >= FT_OP_LINEAR_UPDATE || op->code == FT_OP_NORM_SCALE;
}

FT_INLINE void run_op(const ft_frame *f, const ft_op *op, float *result) {
  if (op->code < FT_OP_MSE) forward(f, op);
  else if (op->code < FT_OP_LINEAR_DX) *result = loss(f, op);
  else if (op->code < FT_OP_LINEAR_UPDATE) backward(f, op);
  else if (op->code >= FT_OP_LINEAR_NORM && op->code < FT_OP_LINEAR_GRADIENT) norm(f, op);
  else update(f, op);
}

void ft_run_op(const ft_frame *f, const ft_op *op) {
  float result;
  run_op(f, op, &result);
}

int ft_is_real_op(const ft_frame *f, const ft_op *op) {
  const uint32_t code = op->code;
  if (code == FT_OP_RESHAPE || (code >= FT_OP_CONV8 && code < FT_OP_MSE)) return 0;
  int any = 0;
  for (uint32_t k = 0; k < 4; k++)
    any |= op->t[k] != FT_NONE && ft_operand(f, op, k)->dtype == FT_I8;
  return any;
}

float ft_run_ops(const ft_frame *f, const ft_op *op, const ft_op *end) {
  float result = 0.0f;
  for (; op < end; op++) {
    if (f->growth && is_moving(op)) {
      if (op->code == FT_OP_SPARSE_CONV_UPDATE) ft_grow_op(f, op);
      continue;
    }
    if (op->group != FT_ALWAYS && !(f->hyper->groups >> op->group & 1)) continue;
    if (f->is_int8 && ft_is_real_op(f, op)) ft_run_real(f, op);
    else run_op(f, op, &result);
  }
  return result;
}
