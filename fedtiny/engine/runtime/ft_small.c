/* ft_small.c: the kernels as plain loops, for a microcontroller (FT_SMALL).
 *
 * Each follows the order of ft_runtime.h term by term, and so gives the bits of the vector form.
 */
#include "ft_kernels.h"
#include "ft_math.h"

#ifdef FT_SMALL

static float tree8(const float lane[8]) {
  return ((lane[0] + lane[1]) + (lane[2] + lane[3])) + ((lane[4] + lane[5]) + (lane[6] + lane[7]));
}

/* Eight lanes over the products of two rows. */
static float dot(const float *a, const float *b, uint32_t count) {
  float lane[8] = {0};
  for (uint32_t i = 0; i < count; i++) lane[i % 8] += a[i] * b[i];
  return tree8(lane);
}

/* ---- linear -------------------------------------------------------------------------------- */

void ft_linear_f32(const float *x, const float *w, const float *b, float *y, uint32_t rows,
                   uint32_t in, uint32_t out) {
  for (uint32_t r = 0; r < rows; r++, x += in, y += out) {
    if (out == 1) {
      y[0] = b ? dot(x, w, in) + b[0] : dot(x, w, in);
      continue;
    }
    for (uint32_t o = 0; o < out; o++) {
      const float *weight = w + o;
      float sum = b ? b[o] : 0.0f;
      for (uint32_t i = 0; i < in; i++, weight += out) sum += x[i] * *weight;
      y[o] = sum;
    }
  }
}

void ft_linear_dx_f32(const float *dy, const float *w, float *dx, uint32_t rows, uint32_t in,
                      uint32_t out) {
  for (uint32_t r = 0; r < rows; r++, dy += out, dx += in) {
    const float *row = w;
    for (uint32_t i = 0; i < in; i++, row += out)
      dx[i] = out == 1 ? dy[0] * row[0] : dot(row, dy, out);
  }
}

/* The gradient of w[i, o]: x and dy stand at column i and o of their first rows. */
static float outer(const float *x, const float *dy, uint32_t rows, uint32_t in, uint32_t out) {
  float sum = 0.0f;
  for (uint32_t r = 0; r < rows; r++, x += in, dy += out) sum += *x * *dy;
  return sum;
}

static float column_sum(const float *dy, uint32_t size, uint32_t channels) {
  float sum = 0.0f;
  for (uint32_t at = 0; at < size; at += channels) sum += dy[at];
  return sum;
}

/* ---- updates ------------------------------------------------------------------------------- */

static void update(const ft_rule *rule, float *w, uint32_t i, float g) {
  if (rule->scale != 1.0f) g = rule->scale * g;
  if (rule->weight_decay != 0.0f) g = g + rule->weight_decay * w[i];
  if (rule->base) g = g + rule->prox * (w[i] - rule->base[i]);
  if (rule->correction) g = g + rule->correction[i];
  if (rule->velocity) g = rule->velocity[i] = rule->momentum * rule->velocity[i] + g;
  w[i] = w[i] - rule->lr * g;
}

void ft_linear_update_f32(const float *x, const float *dy, float *w, uint32_t rows, uint32_t in,
                          uint32_t out, const ft_rule *rule) {
  for (uint32_t i = 0; i < in; i++)
    for (uint32_t o = 0; o < out; o++)
      update(rule, w, i * out + o, outer(x + i, dy + o, rows, in, out));
}

void ft_bias_update_f32(const float *dy, float *b, uint32_t size, uint32_t channels,
                        const ft_rule *rule) {
  for (uint32_t c = 0; c < channels; c++) update(rule, b, c, column_sum(dy + c, size, channels));
}

float ft_linear_norm_f32(const float *x, const float *dy, uint32_t rows, uint32_t in,
                         uint32_t out) {
  float lane[8] = {0};
  for (uint32_t i = 0; i < in; i++)
    for (uint32_t o = 0; o < out; o++) {
      const float g = outer(x + i, dy + o, rows, in, out);
      lane[o % 8] += g * g;
    }
  return tree8(lane);
}

float ft_bias_norm_f32(const float *dy, uint32_t size, uint32_t channels) {
  float lane[8] = {0};
  for (uint32_t c = 0; c < channels; c++) {
    const float g = column_sum(dy + c, size, channels);
    lane[c % 8] += g * g;
  }
  return tree8(lane);
}

/* ---- element-wise -------------------------------------------------------------------------- */

void ft_bias_f32(const float *x, const float *b, float *y, uint32_t size, uint32_t channels) {
  for (uint32_t at = 0; at < size; at += channels)
    for (uint32_t c = 0; c < channels; c++) y[at + c] = x[at + c] + b[c];
}

void ft_relu_f32(const float *x, float *y, uint32_t size) {
  for (uint32_t i = 0; i < size; i++) y[i] = x[i] <= 0.0f ? 0.0f : x[i];
}

void ft_tanh_f32(const float *x, float *y, uint32_t size) {
  for (uint32_t i = 0; i < size; i++) y[i] = ft_tanh(x[i]);
}

void ft_sigmoid_f32(const float *x, float *y, uint32_t size) {
  for (uint32_t i = 0; i < size; i++) y[i] = ft_sigmoid(x[i]);
}

void ft_add_f32(const float *a, const float *b, float *y, uint32_t size) {
  for (uint32_t i = 0; i < size; i++) y[i] = a[i] + b[i];
}

void ft_relu_dx_f32(const float *dy, const float *y, float *dx, uint32_t size) {
  for (uint32_t i = 0; i < size; i++) dx[i] = y[i] > 0.0f ? dy[i] : 0.0f;
}

void ft_tanh_dx_f32(const float *dy, const float *y, float *dx, uint32_t size) {
  for (uint32_t i = 0; i < size; i++) dx[i] = dy[i] * (1.0f - y[i] * y[i]);
}

void ft_sigmoid_dx_f32(const float *dy, const float *y, float *dx, uint32_t size) {
  for (uint32_t i = 0; i < size; i++) dx[i] = dy[i] * (y[i] * (1.0f - y[i]));
}

/* ---- one row of a loss --------------------------------------------------------------------- */

float ft_mse_row_f32(const float *prediction, const float *target, uint32_t outputs) {
  float lane[8] = {0};
  for (uint32_t o = 0; o < outputs; o++) {
    const float e = prediction[o] - target[o];
    lane[o % 8] += e * e;
  }
  return tree8(lane) / (float)outputs;
}

float ft_largest_f32(const float *z, uint32_t classes) {
  float m = z[0];
  for (uint32_t c = 1; c < classes; c++) m = z[c] > m ? z[c] : m;
  return m;
}

float ft_sum_exponentials_f32(const float *z, float m, float *q, uint32_t classes) {
  float lane[8] = {0};
  for (uint32_t c = 0; c < classes; c++) {
    const float term = ft_exp(z[c] - m);
    lane[c % 8] += term;
    if (q) q[c] = term;
  }
  return tree8(lane);
}

#endif
