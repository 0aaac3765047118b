/* ft_loss.c: the losses and their gradients, eight lanes. The gradient may stand in the place of
 * the prediction: a row's loss is computed before its gradient is written. */
#include "ft_blocks.h"

#ifndef FT_SMALL

float ft_mse_row_f32(const float *prediction, const float *target, uint32_t outputs) {
  v8 sum = {0};
  uint32_t o = 0;
  for (; o + 8 <= outputs; o += 8) {
    const v8 e = ft_load8(prediction + o) - ft_load8(target + o);
    sum += e * e;
  }
  for (; o < outputs; o++) {
    const float e = prediction[o] - target[o];
    sum[o % 8] += e * e;
  }
  return ft_tree8(sum) / (float)outputs;
}

float ft_mse_f32(const float *prediction, const float *target, float *gradient, uint32_t rows,
                 uint32_t outputs) {
  const float share = 2.0f / (float)(rows * outputs);
  float sum = 0.0f;
  for (uint32_t r = 0; r < rows; r++, prediction += outputs, target += outputs) {
    sum += ft_mse_row_f32(prediction, target, outputs);
    for (uint32_t o = 0; o < outputs; o++) *gradient++ = share * (prediction[o] - target[o]);
  }
  return sum / (float)rows;
}

/* Of equal ones, no matter which: only differences to it are used. */
static float largest(const float *z, uint32_t classes) {
  float m = z[0];
  for (uint32_t c = 1; c < classes; c++) m = z[c] > m ? z[c] : m;
  return m;
}

float ft_cross_entropy_row_f32(const float *logits, int32_t label, uint32_t classes) {
  const float m = largest(logits, classes);
  v8 sum = {0};
  uint32_t c = 0;
  for (; c + 8 <= classes; c += 8) sum += ft_exp8(ft_load8(logits + c) - m);
  for (; c < classes; c++) sum[c % 8] += ft_exp(logits[c] - m);
  return ft_log(ft_tree8(sum)) - (logits[label] - m);
}

float ft_cross_entropy_f32(const float *logits, const int32_t *labels, float *gradient,
                           uint32_t rows, uint32_t classes) {
  const float share = 1.0f / (float)rows;
  float total = 0.0f;
  for (uint32_t r = 0; r < rows; r++, logits += classes, gradient += classes) {
    const float m = largest(logits, classes), own = logits[labels[r]] - m;
    v8 sum = {0};
    uint32_t c = 0;
    for (; c + 8 <= classes; c += 8) {
      const v8 q = ft_exp8(ft_load8(logits + c) - m);
      sum += q;
      ft_store8(gradient + c, q);
    }
    for (; c < classes; c++) sum[c % 8] += gradient[c] = ft_exp(logits[c] - m);
    const float s = ft_tree8(sum), factor = share / s;
    total += ft_log(s) - own;
    for (c = 0; c < classes; c++) gradient[c] = gradient[c] * factor;
    gradient[labels[r]] -= share;
  }
  return total / (float)rows;
}

#endif
