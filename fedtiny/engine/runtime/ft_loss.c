/* ft_loss.c: the losses and their gradients. The gradient may stand in the place of the prediction:
 * what a row's loss needs is read before its gradient is written. */
#include "ft_blocks.h"

/* ---- one row, in lanes (ft_small.c has the plain loops) ------------------------------------ */

#ifndef FT_SMALL

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

/* m = z > m ? z : m, ascending. In lanes that all start at z[0] the largest is the same; of equal
 * ones, +0 and -0, it does not matter which, since only differences to it are used. */
float ft_largest_f32(const float *z, uint32_t classes) {
  float m = z[0];
  uint32_t c = 1;
  if (classes >= FT_WIDTH) {
    vw most = FT_W(set)(m);
    for (c = 0; c + FT_WIDTH <= classes; c += FT_WIDTH) most = FT_W(max)(FT_W(load)(z + c), most);
    for (int lane = 0; lane < FT_WIDTH; lane++) m = most[lane] > m ? most[lane] : m;
  }
  for (; c < classes; c++) m = z[c] > m ? z[c] : m;
  return m;
}

/* exp(z - m) of eight logits. */
FT_INLINE ft_lanes exponentials(ft_lanes z, float m) {
  FT_UNROLL for (int p = 0; p < FT_PARTS; p++) z.part[p] = FT_W(exp)(z.part[p] - m);
  return z;
}

float ft_sum_exponentials_f32(const float *z, float m, float *q, uint32_t classes) {
  ft_lanes sum = ft_no_lanes();
  uint32_t c = 0;
  for (; c + 8 <= classes; c += 8) {
    const ft_lanes terms = exponentials(ft_lanes_at(z + c), m);
    sum = ft_sum(sum, terms);
    if (q) ft_put_lanes(q + c, terms);
  }
  if (c < classes) {
    const uint32_t rest = classes - c;
    const ft_lanes terms = ft_keep_first(exponentials(ft_lanes_first(z + c, rest), m), rest);
    sum = ft_sum(sum, terms);
    if (q) ft_put_lanes_first(q + c, terms, rest);
  }
  return ft_tree(sum);
}

float ft_sum_f32(const float *x, uint32_t count) {
  ft_lanes sum = ft_no_lanes();
  uint32_t i = 0;
  for (; i + 8 <= count; i += 8) sum = ft_sum(sum, ft_lanes_at(x + i));
  if (i < count) sum = ft_sum(sum, ft_lanes_first(x + i, count - i));
  return ft_tree(sum);
}

/* log_s - (z - m) of eight logits. */
FT_INLINE ft_lanes surprises(ft_lanes z, float m, float log_s) {
  FT_UNROLL for (int p = 0; p < FT_PARTS; p++) z.part[p] = log_s - (z.part[p] - m);
  return z;
}

float ft_soft_terms_f32(const float *z, const float *label, float m, float log_s,
                        uint32_t classes) {
  ft_lanes sum = ft_no_lanes();
  uint32_t c = 0;
  for (; c + 8 <= classes; c += 8)
    ft_add_products(&sum, ft_lanes_at(label + c), surprises(ft_lanes_at(z + c), m, log_s));
  if (c < classes) {
    const uint32_t rest = classes - c;
    const ft_lanes terms = surprises(ft_lanes_first(z + c, rest), m, log_s);
    ft_add_products(&sum, ft_lanes_first(label + c, rest), ft_keep_first(terms, rest));
  }
  return ft_tree(sum);
}

#endif

/* ---- mean squared error -------------------------------------------------------------------- */

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

float ft_cross_entropy_row_f32(const float *logits, int32_t label, uint32_t classes) {
  const float m = ft_largest_f32(logits, classes);
  return ft_log(ft_sum_exponentials_f32(logits, m, NULL, classes)) - (logits[label] - m);
}

float ft_soft_cross_entropy_row_f32(const float *logits, const float *label, uint32_t classes) {
  const float m = ft_largest_f32(logits, classes);
  const float s = ft_sum_exponentials_f32(logits, m, NULL, classes);
  return ft_soft_terms_f32(logits, label, m, ft_log(s), classes);
}

/* What all rows weigh together. */
static float total_weight(const int32_t *labels, const float *weight, uint32_t rows) {
  float total = 0.0f;
  for (uint32_t r = 0; r < rows; r++) total += weight ? weight[labels[r]] : 1.0f;
  return total;
}

float ft_cross_entropy_f32(const float *logits, const int32_t *labels, const float *weight,
                           float *gradient, uint32_t rows, uint32_t classes) {
  const float total = total_weight(labels, weight, rows);
  float sum = 0.0f;
  for (uint32_t r = 0; r < rows; r++, logits += classes, gradient += classes) {
    const int32_t label = labels[r];
    const float own_weight = weight ? weight[label] : 1.0f, share = own_weight / total;
    const float m = ft_largest_f32(logits, classes), own = logits[label] - m;
    const float s = ft_sum_exponentials_f32(logits, m, gradient, classes), factor = share / s;
    sum += own_weight * (ft_log(s) - own);
    for (uint32_t c = 0; c < classes; c++) gradient[c] = gradient[c] * factor;
    gradient[label] -= share;
  }
  return sum / total;
}

/* A row's loss needs its logits, in whose place its gradient may stand: so the exponentials are
 * computed again for the gradient. */
float ft_soft_cross_entropy_f32(const float *logits, const float *labels, float *gradient,
                                uint32_t rows, uint32_t classes) {
  const float share = 1.0f / (float)rows;
  float sum = 0.0f;
  for (uint32_t r = 0; r < rows; r++) {
    sum += ft_soft_cross_entropy_row_f32(logits, labels, classes);
    const float m = ft_largest_f32(logits, classes);
    const float s = ft_sum_exponentials_f32(logits, m, gradient, classes);
    const float factor = ft_sum_f32(labels, classes) / s;
    for (uint32_t c = 0; c < classes; c++)
      gradient[c] = (gradient[c] * factor - labels[c]) * share;
    logits += classes, labels += classes, gradient += classes;
  }
  return sum / (float)rows;
}
