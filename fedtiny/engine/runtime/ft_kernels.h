/* ft_kernels.h: what the interpreter calls; private to the runtime.
 *
 * Each kernel has two forms with the same bits: vectors in register blocks, and with FT_SMALL plain
 * loops (ft_small*.c), which are also the shortest statement of what each one means; the losses of
 * a batch are one text over two forms of a row. Shapes are row-major: x[rows, in], w[in, out],
 * y[rows, out]. A kernel trusts its arguments: ft_check has proved them.
 */
#ifndef FT_KERNELS_H
#define FT_KERNELS_H

#include "ft_live.h"

#include <string.h>

/* How one parameter follows from its gradient. The pointers stand at its first float. */
typedef struct {
  float lr, momentum, weight_decay, prox, scale;
  float *velocity;         /* NULL without momentum */
  const float *base;       /* NULL without a proximal term */
  const float *correction; /* NULL without a correction */
} ft_rule;

/* Nothing but w = w - lr * g: what a scale of 1 multiplies keeps its bits. */
static inline int ft_rule_is_plain(const ft_rule *rule) {
  return rule->scale == 1.0f && rule->weight_decay == 0.0f && !rule->velocity && !rule->base &&
         !rule->correction;
}

void ft_linear_f32(const float *x, const float *w, const float *b, float *y, uint32_t rows,
                   uint32_t in, uint32_t out);
void ft_linear_dx_f32(const float *dy, const float *w, float *dx, uint32_t rows, uint32_t in,
                      uint32_t out);
void ft_linear_update_f32(const float *x, const float *dy, float *w, uint32_t rows, uint32_t in,
                          uint32_t out, const ft_rule *rule);
/* Squared norm of the gradient that the update would use. */
float ft_linear_norm_f32(const float *x, const float *dy, uint32_t rows, uint32_t in, uint32_t out);

/* size counts all floats of the tensor; channels is its innermost axis. */
void ft_bias_f32(const float *x, const float *b, float *y, uint32_t size, uint32_t channels);
void ft_bias_update_f32(const float *dy, float *b, uint32_t size, uint32_t channels,
                        const ft_rule *rule);
float ft_bias_norm_f32(const float *dy, uint32_t size, uint32_t channels);

/* ---- element by element -------------------------------------------------------------------- */

void ft_relu_f32(const float *x, float *y, uint32_t size);
void ft_relu6_f32(const float *x, float *y, uint32_t size);
void ft_leaky_relu_f32(const float *x, float *y, uint32_t size, float slope);
void ft_tanh_f32(const float *x, float *y, uint32_t size);
void ft_sigmoid_f32(const float *x, float *y, uint32_t size);
void ft_hardswish_f32(const float *x, float *y, uint32_t size);
void ft_add_f32(const float *a, const float *b, float *y, uint32_t size);
void ft_relu_dx_f32(const float *dy, const float *y, float *dx, uint32_t size);
void ft_relu6_dx_f32(const float *dy, const float *y, float *dx, uint32_t size);
void ft_leaky_relu_dx_f32(const float *dy, const float *y, float *dx, uint32_t size, float slope);
void ft_tanh_dx_f32(const float *dy, const float *y, float *dx, uint32_t size);
void ft_sigmoid_dx_f32(const float *dy, const float *y, float *dx, uint32_t size);
void ft_hardswish_dx_f32(const float *dy, const float *x, float *dx, uint32_t size);

/* Bit of each y: 0 < y, and y is not `top`, which no relu but relu6 has. */
void ft_mask_f32(const float *y, uint32_t *mask, uint32_t rows, uint32_t row, float top);
void ft_mask_dx_f32(const float *dy, const uint32_t *mask, float *dx, uint32_t rows, uint32_t row,
                    float slope);

void ft_softmax_f32(const float *z, float *y, uint32_t rows, uint32_t classes);
void ft_softmax_dx_f32(const float *dy, const float *y, float *dx, uint32_t rows,
                       uint32_t classes);

/* `columns` of each row; the rows of both sides have a stride of their own. */
void ft_copy_columns_f32(const float *from, uint32_t from_stride, float *to, uint32_t to_stride,
                         uint32_t rows, uint32_t columns);

/* ---- channel by channel -------------------------------------------------------------------- */

void ft_affine_f32(const float *x, const float *g, const float *b, float *y, uint32_t size,
                   uint32_t channels);
void ft_affine_dx_f32(const float *dy, const float *g, float *dx, uint32_t size,
                      uint32_t channels);
void ft_affine_update_f32(const float *x, const float *dy, float *g, uint32_t size,
                          uint32_t channels, const ft_rule *rule);
float ft_affine_norm_f32(const float *x, const float *dy, uint32_t size, uint32_t channels);
void ft_frozen_normalize_f32(const float *x, const float *mean, const float *var, float *y,
                             uint32_t size, uint32_t channels, float eps);
void ft_frozen_normalize_dx_f32(const float *dy, const float *var, float *dx, uint32_t size,
                                uint32_t channels, float eps);

/* x[samples, rows, channels]; each sample's channels in groups; rstd[samples, groups]. Statistics
 * of a whole batch are those of a single sample with a group for each channel. */
typedef struct { uint32_t samples, rows, channels, groups; } ft_groups;

void ft_normalize_f32(const ft_groups *groups, const float *x, float *y, float *rstd, float eps);
void ft_normalize_dx_f32(const ft_groups *groups, const float *dy, const float *y,
                         const float *rstd, float *dx);

/* The statistics of a batch, which running ones follow by `momentum` of the way; `tracked` is NULL
 * where they stay. */
typedef struct { float *mean, *var, momentum; } ft_tracked;

void ft_track_normalize_f32(const float *x, float *y, float *rstd, uint32_t size,
                            uint32_t channels, float eps, const ft_tracked *tracked);

/* A gradient that stands in a buffer. */
void ft_gradient_update_f32(const float *g, float *w, uint32_t size, const ft_rule *rule);
float ft_gradient_norm_f32(const float *g, uint32_t size, uint32_t channels);

/* ---- images -------------------------------------------------------------------------------- */

typedef struct { uint32_t batch, height, width, channels; } ft_image;

/* A window that slides over images. Of a convolution, `y` is its output before any pooling. */
typedef struct {
  ft_image x, y;
  uint32_t kernel_h, kernel_w, stride_h, stride_w, pad_top, pad_left;
} ft_window;

typedef struct {
  ft_window window;
  uint32_t groups;
  uint32_t pool_h, pool_w;   /* of the pooling that is fused to it, else 1 */
} ft_conv;

void ft_conv_f32(const ft_conv *conv, const float *x, const float *w, const float *b, float *y);
void ft_conv_dx_f32(const ft_conv *conv, const float *dy, const float *w, float *dx);
void ft_conv_update_f32(const ft_conv *conv, const float *x, const float *dy, float *w,
                        const ft_rule *rule);
float ft_conv_norm_f32(const ft_conv *conv, const float *x, const float *dy);
/* The gradient itself, of host forms alone. */
void ft_conv_gradient_f32(const ft_conv *conv, const float *x, const float *dy, float *g);
void ft_conv_pool_f32(const ft_conv *conv, const float *x, const float *w, const float *b, float *y,
                      uint32_t *codes);
void ft_conv_pool_update_f32(const ft_conv *conv, const float *x, const float *dy,
                             const uint32_t *codes, float *w, const ft_rule *rule);
float ft_conv_pool_norm_f32(const ft_conv *conv, const float *x, const float *dy,
                            const uint32_t *codes);

/* The weights are those that live. The scratch is the caller's (ft_scratch_bytes). */
void ft_sparse_conv_f32(const ft_conv *conv, const float *x, const ft_live *w, const float *b,
                        float *y, void *scratch);
void ft_sparse_conv_dx_f32(const ft_conv *conv, const float *dy, const ft_live *w, float *dx,
                           void *scratch);
void ft_sparse_conv_update_f32(const ft_conv *conv, const float *x, const float *dy,
                               const ft_live *w, const ft_rule *rule, void *scratch);
float ft_sparse_conv_norm_f32(const ft_conv *conv, const float *x, const float *dy,
                              const ft_live *w, void *scratch);

/* Some rows and columns of images. */
typedef struct {
  ft_image image;
  uint32_t top, left, height, width;
  uint32_t element_bytes;
} ft_region;

void ft_crop(const ft_region *region, const void *x, void *y);
/* Into y; zeros, if there is no part. */
void ft_paste(const ft_region *region, const void *part, void *y);

void ft_max_pool_f32(const ft_window *pool, const float *x, float *y, uint32_t *codes);
void ft_max_pool_dx_f32(const ft_window *pool, const float *dy, const uint32_t *codes, float *dx);
void ft_avg_pool_f32(const ft_window *pool, const float *x, float *y);
void ft_avg_pool_dx_f32(const ft_window *pool, const float *dy, float *dx);

/* ---- losses -------------------------------------------------------------------------------- */

/* What a row's loss is made of. The terms of the sum of exp(z - m) are also put into q if it is not
 * NULL; q may be z. */
float ft_mse_row_f32(const float *prediction, const float *target, uint32_t outputs);
float ft_largest_f32(const float *z, uint32_t classes);
float ft_sum_exponentials_f32(const float *z, float m, float *q, uint32_t classes);
float ft_sum_f32(const float *x, uint32_t count);
/* Sum of label * (log_s - (z - m)). */
float ft_soft_terms_f32(const float *z, const float *label, float m, float log_s,
                        uint32_t classes);

/* The loss of one row; and of a batch, with the gradient by the prediction. */
float ft_mse_f32(const float *prediction, const float *target, float *gradient, uint32_t rows,
                 uint32_t outputs);
float ft_cross_entropy_row_f32(const float *logits, int32_t label, uint32_t classes);
float ft_soft_cross_entropy_row_f32(const float *logits, const float *label, uint32_t classes);
/* Without weights (NULL) each class weighs 1. */
float ft_cross_entropy_f32(const float *logits, const int32_t *labels, const float *weight,
                           float *gradient, uint32_t rows, uint32_t classes);
float ft_soft_cross_entropy_f32(const float *logits, const float *labels, float *gradient,
                                uint32_t rows, uint32_t classes);

/* ---- what the checker and the interpreter both know of a tensor ---------------------------- */

static inline uint32_t ft_row_floats(const ft_tensor *t) {
  return t->dims[1] * t->dims[2] * t->dims[3];
}

static inline uint32_t ft_floats(const ft_tensor *t) { return t->dims[0] * ft_row_floats(t); }

/* In whole words. */
static inline uint32_t ft_bytes(const ft_tensor *t) {
  const uint32_t elements = ft_floats(t);
  return t->dtype == FT_I8 ? (elements + 3) / 4 * 4 : elements * 4;
}

/* Only such a Program has tensors of FT_I8. */
static inline int ft_is_int8(const ft_program *p) {
  return p->tensors[p->header->input].dtype == FT_I8;
}

/* A list of channels in the image. */
static inline const int32_t *ft_list(const ft_program *p, const ft_tensor *t) {
  const uint8_t *image = (const uint8_t *)p->header;
  return (const int32_t *)(const void *)(image + p->header->consts_at + t->offset);
}

static inline uint32_t ft_channels(const ft_tensor *t) {
  return t->dims[t->ndim ? t->ndim - 1 : 0];
}

/* The words that hold `count` numbers of `bits` bits each. */
static inline uint32_t ft_words_of(uint32_t count, uint32_t bits) {
  return (uint32_t)(((uint64_t)count * bits + 31) / 32);
}

/* The bits of a code that names one of `taps` taps. */
static inline uint32_t ft_code_bits(uint32_t taps) { return taps <= 4 ? 2 : taps <= 16 ? 4 : 8; }

static inline uint32_t ft_code_at(const uint32_t *codes, uint32_t index, uint32_t bits) {
  const uint32_t at = 32 / bits;
  return codes[index / at] >> (index % at * bits) & ((1u << bits) - 1);
}

/* What the attributes of an op and its tensors say of its window; ft_check has proved them. */
ft_conv ft_conv_of(const ft_op *op, const ft_tensor *x, const ft_tensor *w);
ft_window ft_pool_of(const ft_op *op, const ft_tensor *x);
uint32_t ft_pool_taps(const ft_op *op);

/* As a sparse op takes them: rows are images of one pixel, a matrix is the window of one tap. */
ft_tensor ft_as_image(const ft_tensor *x, const ft_tensor *w);
ft_tensor ft_as_window(const ft_tensor *w);
ft_conv ft_sparse_conv_of(const ft_op *op, const ft_tensor *x, const ft_tensor *w);

/* The same, proved: FT_OK, FT_E_OP or FT_E_SHAPE. Multiply-adds are added to *work. */
ft_status ft_check_conv(const ft_op *op, const ft_tensor *x, const ft_tensor *w,
                        const ft_tensor *y, int is_pooled, uint64_t *work);
ft_status ft_check_pool(const ft_op *op, const ft_tensor *x, const ft_tensor *y, uint64_t *work);
ft_status ft_check_sparse(const ft_op *op, const ft_tensor *x, const ft_tensor *w,
                          const ft_tensor *y, uint64_t *work);

/* The number and the float among an op's attributes. */
static inline uint32_t ft_number(const ft_op *op) { return op->attr[1]; }

static inline float ft_scalar(const ft_op *op) {
  const uint32_t bits = op->attr[2] | (uint32_t)op->attr[3] << 16;
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

int ft_is_zero(const void *bytes, size_t count);
ft_status ft_check_pool_header(const ft_header *header);
/* Is this tensor a list of channels below `limit`, strictly ascending? */
int ft_is_list(const ft_program *program, uint32_t tensor, uint32_t limit);
/* Is `part` what an overlay on `axis` of `whole` must be, with a list of this length? */
int ft_is_part(const ft_tensor *part, const ft_tensor *whole, uint32_t axis, uint32_t channels);
/* The channels along an axis of a whole tensor that an overlay may have a part of; 0: none. */
uint32_t ft_axis_channels(const ft_tensor *whole, uint32_t axis);
/* How many floats the scale of an FT_I8 tensor has. */
static inline uint32_t ft_scale_floats(const ft_program *p, const ft_tensor *t) {
  return p->tensors[t->scale].dims[0];
}
/* The pool, once the tensors and the parameters are proved. */
ft_status ft_check_live(const ft_program *program);
ft_status ft_check_ops(const ft_program *program);

/* The loss op: ft_check makes sure that there is exactly one. */
const ft_op *ft_loss_op(const ft_program *program);

/* Which operand of a forward op is its output. */
uint32_t ft_output_operand(uint32_t code);

#endif
