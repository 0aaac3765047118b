/* ft_loss.c: the losses and their gradients. The gradient may stand in the place of the prediction:
 * what a row's loss needs is read before its gradient is written. */
#include "ft_blocks.h"

#ifndef FT_SMALL

/* ---- mean squared error -------------------------------------------------------------------- */

float ft_mse_row_f32(const float *prediction, const float *target, uint32_t outputs) {
  ft_lanes sum = ft_no_lanes();
  uint32_t o = 0;
  for (; o + 8 <= outputs; o += 8) {
    const ft_lanes e = ft_difference(ft_lanes_at(prediction + o), ft_lanes_at(target + o));
    ft_add_products(&sum, e, e);
  }
  if (o < outputs) {
    const uint32_t rest = outputs - o;
    const ft_lanes e =
        ft_difference(ft_lanes_first(prediction + o, rest), ft_lanes_first(target + o, rest));
    ft_add_products(&sum, e, e);
  }
  return ft_tree(sum) / (float)outputs;
}

/* One output: a row's loss is its square. */
static float mse_column(const float *prediction, const float *target, float *gradient,
                        uint32_t rows, float share) {
  float sum = 0.0f;
  for (uint32_t r = 0; r < rows; r++) {
    const float e = prediction[r] - target[r];
    sum += e * e;
    gradient[r] = share * e;
  }
  return sum / (float)rows;
}

float ft_mse_f32(const float *prediction, const float *target, float *gradient, uint32_t rows,
                 uint32_t outputs) {
  const float share = 2.0f / (float)(rows * outputs);
  if (outputs == 1) return mse_column(prediction, target, gradient, rows, share);
  float sum = 0.0f;
  for (uint32_t r = 0; r < rows; r++, prediction += outputs, target += outputs) {
    sum += ft_mse_row_f32(prediction, target, outputs);
    for (uint32_t o = 0; o < outputs; o++) *gradient++ = share * (prediction[o] - target[o]);
  }
  return sum / (float)rows;
}

/* ---- cross-entropy ------------------------------------------------------------------------- */

static float largest(const float *z, uint32_t classes) {
  float m = z[0];
  for (uint32_t c = 1; c < classes; c++) m = z[c] > m ? z[c] : m;
  return m;
}

/* exp(z - m) of eight logits. */
FT_INLINE ft_lanes exponentials(ft_lanes z, float m) {
  FT_UNROLL for (int p = 0; p < FT_PARTS; p++) z.part[p] = FT_W(exp)(z.part[p] - m);
  return z;
}

FT_INLINE void put(float *to, ft_lanes x) {
  FT_UNROLL for (int p = 0; p < FT_PARTS; p++) FT_W(store)(to + FT_WIDTH * p, x.part[p]);
}

/* The sum of exp(z - m), whose terms are also put into q if it is not NULL; q may be z. */
FT_INLINE float sum_exponentials(const float *z, float m, float *q, uint32_t classes) {
  ft_lanes sum = ft_no_lanes();
  uint32_t c = 0;
  for (; c + 8 <= classes; c += 8) {
    const ft_lanes terms = exponentials(ft_lanes_at(z + c), m);
    FT_UNROLL for (int p = 0; p < FT_PARTS; p++) sum.part[p] += terms.part[p];
    if (q) put(q + c, terms);
  }
  if (c < classes) {
    float last[8];
    put(last, exponentials(ft_lanes_first(z + c, classes - c), m));
    const ft_lanes terms = ft_lanes_first(last, classes - c);
    FT_UNROLL for (int p = 0; p < FT_PARTS; p++) sum.part[p] += terms.part[p];
    if (q) memcpy(q + c, last, (classes - c) * sizeof(float));
  }
  return ft_tree(sum);
}

float ft_cross_entropy_row_f32(const float *logits, int32_t label, uint32_t classes) {
  const float m = largest(logits, classes);
  return ft_log(sum_exponentials(logits, m, NULL, classes)) - (logits[label] - m);
}

float ft_cross_entropy_f32(const float *logits, const int32_t *labels, float *gradient,
                           uint32_t rows, uint32_t classes) {
  const float share = 1.0f / (float)rows;
  float sum = 0.0f;
  for (uint32_t r = 0; r < rows; r++, logits += classes, gradient += classes) {
    const float m = largest(logits, classes), own = logits[labels[r]] - m;
    const float s = sum_exponentials(logits, m, gradient, classes), factor = share / s;
    sum += ft_log(s) - own;
    for (uint32_t c = 0; c < classes; c++) gradient[c] = gradient[c] * factor;
    gradient[labels[r]] -= share;
  }
  return sum / (float)rows;
}

#endif
