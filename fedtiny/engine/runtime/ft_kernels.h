/* ft_kernels.h: what the interpreter calls; private to the runtime.
 *
 * Each kernel has two forms with the same bits: vectors in register blocks (ft_linear.c,
 * ft_elementwise.c, ft_loss.c, ft_update.c), and with FT_SMALL plain loops (ft_small.c), which are
 * also the shortest statement of what each one means; the losses of a batch are one text over two
 * forms of a row. Shapes are row-major: x[rows, in], w[in, out], y[rows, out]. A kernel trusts its
 * arguments: ft_check has proved them.
 */
#ifndef FT_KERNELS_H
#define FT_KERNELS_H

#include "ft_runtime.h"

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

void ft_relu_f32(const float *x, float *y, uint32_t size);
void ft_tanh_f32(const float *x, float *y, uint32_t size);
void ft_sigmoid_f32(const float *x, float *y, uint32_t size);
void ft_add_f32(const float *a, const float *b, float *y, uint32_t size);
void ft_relu_dx_f32(const float *dy, const float *y, float *dx, uint32_t size);
void ft_tanh_dx_f32(const float *dy, const float *y, float *dx, uint32_t size);
void ft_sigmoid_dx_f32(const float *dy, const float *y, float *dx, uint32_t size);

/* What a row's loss is made of. The terms of the sum of exp(z - m) are also put into q if it is not
 * NULL; q may be z. */
float ft_mse_row_f32(const float *prediction, const float *target, uint32_t outputs);
float ft_largest_f32(const float *z, uint32_t classes);
float ft_sum_exponentials_f32(const float *z, float m, float *q, uint32_t classes);

/* The loss of one row; and of a batch, with the gradient by the prediction. */
float ft_mse_f32(const float *prediction, const float *target, float *gradient, uint32_t rows,
                 uint32_t outputs);
float ft_cross_entropy_row_f32(const float *logits, int32_t label, uint32_t classes);
float ft_cross_entropy_f32(const float *logits, const int32_t *labels, float *gradient,
                           uint32_t rows, uint32_t classes);

/* ---- what the checker and the interpreter both know of a tensor ---------------------------- */

static inline uint32_t ft_row_floats(const ft_tensor *t) {
  return t->dims[1] * t->dims[2] * t->dims[3];
}

static inline uint32_t ft_floats(const ft_tensor *t) { return t->dims[0] * ft_row_floats(t); }

static inline uint32_t ft_channels(const ft_tensor *t) {
  return t->dims[t->ndim ? t->ndim - 1 : 0];
}

/* The loss op: ft_check makes sure that there is exactly one. */
const ft_op *ft_loss_op(const ft_program *program);

/* Which operand of a forward op is its output. */
uint32_t ft_output_operand(uint32_t code);

#endif
