/* ft_small.c: the kernels as plain loops, for a microcontroller (FT_SMALL).
 *
 * Each follows the order of ft_runtime.h term by term, and so gives the bits of the vector form.
 */
#include "ft_small.h"

#include "ft_math.h"

#ifdef FT_SMALL

float ft_tree(const float lane[8]) {
  return ((lane[0] + lane[1]) + (lane[2] + lane[3])) + ((lane[4] + lane[5]) + (lane[6] + lane[7]));
}

/* Eight lanes over the products of two rows. */
static float dot(const float *a, const float *b, uint32_t count) {
  float lane[8] = {0};
  for (uint32_t i = 0; i < count; i++) lane[i % 8] += a[i] * b[i];
  return ft_tree(lane);
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

float ft_followed(const ft_rule *rule, float w, uint32_t i, float g) {
  if (rule->scale != 1.0f) g = rule->scale * g;
  if (rule->weight_decay != 0.0f) g = g + rule->weight_decay * w;
  if (rule->base) g = g + rule->prox * (w - rule->base[i]);
  if (rule->correction) g = g + rule->correction[i];
  if (rule->velocity) g = rule->velocity[i] = rule->momentum * rule->velocity[i] + g;
  return g;
}

void ft_apply(const ft_rule *rule, float *w, uint32_t i, float g) {
  w[i] = w[i] - rule->lr * ft_followed(rule, w[i], i, g);
}

void ft_linear_update_f32(const float *x, const float *dy, float *w, uint32_t rows, uint32_t in,
                          uint32_t out, const ft_rule *rule) {
  for (uint32_t i = 0; i < in; i++)
    for (uint32_t o = 0; o < out; o++)
      ft_apply(rule, w, i * out + o, outer(x + i, dy + o, rows, in, out));
}

void ft_bias_update_f32(const float *dy, float *b, uint32_t size, uint32_t channels,
                        const ft_rule *rule) {
  for (uint32_t c = 0; c < channels; c++) ft_apply(rule, b, c, column_sum(dy + c, size, channels));
}

float ft_linear_norm_f32(const float *x, const float *dy, uint32_t rows, uint32_t in,
                         uint32_t out) {
  float lane[8] = {0};
  for (uint32_t i = 0; i < in; i++)
    for (uint32_t o = 0; o < out; o++) {
      const float g = outer(x + i, dy + o, rows, in, out);
      lane[o % 8] += g * g;
    }
  return ft_tree(lane);
}

float ft_bias_norm_f32(const float *dy, uint32_t size, uint32_t channels) {
  float lane[8] = {0};
  for (uint32_t c = 0; c < channels; c++) {
    const float g = column_sum(dy + c, size, channels);
    lane[c % 8] += g * g;
  }
  return ft_tree(lane);
}

void ft_gradient_update_f32(const float *g, float *w, uint32_t size, const ft_rule *rule) {
  for (uint32_t i = 0; i < size; i++) ft_apply(rule, w, i, g[i]);
}

float ft_gradient_norm_f32(const float *g, uint32_t size, uint32_t channels) {
  float lane[8] = {0};
  for (uint32_t at = 0; at < size; at += channels)
    for (uint32_t o = 0; o < channels; o++) lane[o % 8] += g[at + o] * g[at + o];
  return ft_tree(lane);
}

/* ---- element by element -------------------------------------------------------------------- */

static float clamped(float x) { return x <= 0.0f ? 0.0f : x >= 6.0f ? 6.0f : x; }

static float hardswish_dx(float dy, float x) {
  return x <= -3.0f ? 0.0f : x >= 3.0f ? dy : dy * (x / 3.0f + 0.5f);
}

#define EACH(result)                                                                               \
  {                                                                                                \
    for (uint32_t i = 0; i < size; i++) *to++ = (result);                                          \
  }
#define UNARY(name, result)                                                                        \
  void ft_##name##_f32(const float *x, float *to, uint32_t size) EACH(result)
#define BINARY(name, result)                                                                       \
  void ft_##name##_f32(const float *a, const float *y, float *to, uint32_t size) EACH(result)

UNARY(relu, x[i] <= 0.0f ? 0.0f : x[i])
UNARY(relu6, clamped(x[i]))
UNARY(tanh, ft_tanh(x[i]))
UNARY(sigmoid, ft_sigmoid(x[i]))
UNARY(hardswish, (x[i] * clamped(x[i] + 3.0f)) / 6.0f)
BINARY(add, a[i] + y[i])
BINARY(relu_dx, y[i] > 0.0f ? a[i] : 0.0f)
BINARY(relu6_dx, y[i] > 0.0f && y[i] < 6.0f ? a[i] : 0.0f)
BINARY(tanh_dx, a[i] * (1.0f - y[i] * y[i]))
BINARY(sigmoid_dx, a[i] * (y[i] * (1.0f - y[i])))
BINARY(hardswish_dx, hardswish_dx(a[i], y[i]))

void ft_leaky_relu_f32(const float *x, float *to, uint32_t size, float slope)
    EACH(x[i] > 0.0f ? x[i] : slope * x[i])

void ft_leaky_relu_dx_f32(const float *dy, const float *y, float *to, uint32_t size, float slope)
    EACH(y[i] > 0.0f ? dy[i] : slope * dy[i])

void ft_bias_f32(const float *x, const float *b, float *y, uint32_t size, uint32_t channels) {
  for (uint32_t at = 0; at < size; at += channels)
    for (uint32_t c = 0; c < channels; c++) y[at + c] = x[at + c] + b[c];
}

void ft_mask_f32(const float *y, uint32_t *mask, uint32_t rows, uint32_t row, float top) {
  const uint32_t words = ft_words_of(row, 1);
  memset(mask, 0, (size_t)rows * words * sizeof *mask);
  for (uint32_t r = 0; r < rows; r++, y += row, mask += words)
    for (uint32_t j = 0; j < row; j++)
      if (y[j] > 0.0f && y[j] != top) mask[j / 32] |= 1u << j % 32;
}

void ft_mask_dx_f32(const float *dy, const uint32_t *mask, float *dx, uint32_t rows, uint32_t row,
                    float slope) {
  for (uint32_t r = 0; r < rows; r++)
    for (uint32_t left = row, some; left; left -= some, dy += some, dx += some) {
      uint32_t bits = *mask++;
      some = left < 32 ? left : 32;
      for (uint32_t j = 0; j < some; j++, bits >>= 1)
        dx[j] = bits & 1 ? dy[j] : slope == 0.0f ? 0.0f : slope * dy[j];
    }
}

void ft_softmax_f32(const float *z, float *y, uint32_t rows, uint32_t classes) {
  for (uint32_t r = 0; r < rows; r++, z += classes, y += classes) {
    const float s = ft_sum_exponentials_f32(z, ft_largest_f32(z, classes), y, classes);
    for (uint32_t c = 0; c < classes; c++) y[c] = y[c] / s;
  }
}

void ft_softmax_dx_f32(const float *dy, const float *y, float *dx, uint32_t rows,
                       uint32_t classes) {
  for (uint32_t r = 0; r < rows; r++, dy += classes, y += classes, dx += classes) {
    const float d = dot(dy, y, classes);
    for (uint32_t c = 0; c < classes; c++) dx[c] = y[c] * (dy[c] - d);
  }
}

/* ---- one row of a loss --------------------------------------------------------------------- */

float ft_mse_row_f32(const float *prediction, const float *target, uint32_t outputs) {
  float lane[8] = {0};
  for (uint32_t o = 0; o < outputs; o++) {
    const float e = prediction[o] - target[o];
    lane[o % 8] += e * e;
  }
  return ft_tree(lane) / (float)outputs;
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
  return ft_tree(lane);
}

float ft_sum_f32(const float *x, uint32_t count) {
  float lane[8] = {0};
  for (uint32_t i = 0; i < count; i++) lane[i % 8] += x[i];
  return ft_tree(lane);
}

float ft_soft_terms_f32(const float *z, const float *label, float m, float log_s,
                        uint32_t classes) {
  float lane[8] = {0};
  for (uint32_t c = 0; c < classes; c++) lane[c % 8] += label[c] * (log_s - (z[c] - m));
  return ft_tree(lane);
}

#endif
