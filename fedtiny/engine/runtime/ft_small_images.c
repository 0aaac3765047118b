/* ft_small_images.c: convolutions and pools as plain loops, for a microcontroller (FT_SMALL).
 *
 * A position p of an output and a tap of its window name one position q of the input.
 */
#include "ft_grow.h"
#include "ft_small.h"

#ifdef FT_SMALL

typedef struct { uint32_t image, y, x; } position;

static size_t index_of(const ft_image *image, position p) {
  return (((size_t)p.image * image->height + p.y) * image->width + p.x) * image->channels;
}

/* Where in x the tap of the window at p reads; 0 if it is outside the image. A difference below 0
 * wraps, and so is outside. */
static int reads(const ft_window *w, position p, uint32_t ky, uint32_t kx, size_t *at) {
  const position q = {p.image, p.y * w->stride_h + ky - w->pad_top,
                      p.x * w->stride_w + kx - w->pad_left};
  *at = index_of(&w->x, q);
  return q.y < w->x.height && q.x < w->x.width;
}

/* The next position in ascending order; 0 behind the last. */
static int advance(position *p, const ft_image *image) {
  if (++p->x < image->width) return 1;
  p->x = 0;
  if (++p->y < image->height) return 1;
  p->y = 0;
  return ++p->image < image->batch;
}

/* ---- codes --------------------------------------------------------------------------------- */

/* The codes of a pooled image: those of each sample start at a word. */
typedef struct { uint32_t row, words, bits, taps; } code_table;

static code_table codes_of(const ft_image *pooled, uint32_t taps) {
  const uint32_t row = pooled->height * pooled->width * pooled->channels;
  const code_table table = {row, ft_words_of(row, ft_code_bits(taps)), ft_code_bits(taps), taps};
  return table;
}

/* `element` counts over all samples. */
static void put_code(const code_table *t, uint32_t *codes, size_t element, uint32_t code) {
  const uint32_t at = 32 / t->bits, index = (uint32_t)(element % t->row);
  codes[element / t->row * t->words + index / at] |= code << index % at * t->bits;
}

static uint32_t get_code(const code_table *t, const uint32_t *codes, size_t element) {
  return ft_code_at(codes + element / t->row * t->words, (uint32_t)(element % t->row), t->bits);
}

static void clear_codes(const code_table *t, uint32_t *codes, uint32_t batch) {
  memset(codes, 0, (size_t)batch * t->words * sizeof *codes);
}

/* ---- convolutions -------------------------------------------------------------------------- */

static uint32_t group_inputs(const ft_conv *c) { return c->window.x.channels / c->groups; }
static uint32_t group_outputs(const ft_conv *c) { return c->window.y.channels / c->groups; }

/* Output o at position p. */
static float conv_at(const ft_conv *c, const float *x, const float *w, const float *b, position p,
                     uint32_t o) {
  const uint32_t in = group_inputs(c), out = c->window.y.channels;
  float sum = b ? b[o] : 0.0f;
  size_t at;
  x += o / group_outputs(c) * in;
  w += o;
  for (uint32_t ky = 0; ky < c->window.kernel_h; ky++)
    for (uint32_t kx = 0; kx < c->window.kernel_w; kx++, w += (size_t)in * out)
      if (reads(&c->window, p, ky, kx, &at))
        for (uint32_t i = 0; i < in; i++) sum += x[at + i] * w[(size_t)i * out];
  return sum;
}

void ft_conv_f32(const ft_conv *c, const float *x, const float *w, const float *b, float *y) {
  position p = {0, 0, 0};
  do {
    for (uint32_t o = 0; o < c->window.y.channels; o++) *y++ = conv_at(c, x, w, b, p, o);
  } while (advance(&p, &c->window.y));
}

static ft_image pooled_image(const ft_conv *c) {
  ft_image pooled = c->window.y;
  pooled.height /= c->pool_h, pooled.width /= c->pool_w;
  return pooled;
}

/* The position of the convolution's output that tap `code` of the pooling at p reads. */
static position unpooled(const ft_conv *c, position p, uint32_t code) {
  const position q = {p.image, p.y * c->pool_h + code / c->pool_w,
                      p.x * c->pool_w + code % c->pool_w};
  return q;
}

void ft_conv_pool_f32(const ft_conv *c, const float *x, const float *w, const float *b, float *y,
                      uint32_t *codes) {
  const ft_image pooled = pooled_image(c);
  const code_table table = codes_of(&pooled, c->pool_h * c->pool_w);
  size_t element = 0;
  position p = {0, 0, 0};
  clear_codes(&table, codes, pooled.batch);
  do {
    for (uint32_t o = 0; o < pooled.channels; o++, element++) {
      uint32_t code = 0;
      float m = conv_at(c, x, w, b, unpooled(c, p, 0), o);
      for (uint32_t tap = 1; tap < table.taps; tap++) {
        const float z = conv_at(c, x, w, b, unpooled(c, p, tap), o);
        if (z > m || z != z) m = z, code = tap;
      }
      y[element] = m;
      put_code(&table, codes, element, code);
    }
  } while (advance(&p, &pooled));
}

/* The output position that reads place q of one axis by this tap; 0 if none does. */
static int reader(uint32_t q, uint32_t tap, uint32_t stride, uint32_t pad, uint32_t outputs,
                  uint32_t *p) {
  const uint32_t start = q + pad - tap;
  *p = start / stride;
  return q + pad >= tap && start % stride == 0 && *p < outputs;
}

/* dx of channel i at position q; w stands at i's row of its first tap and its group's first o. */
static float conv_dx_at(const ft_conv *c, const float *dy, const float *w, position q) {
  const ft_window *window = &c->window;
  const uint32_t outputs = group_outputs(c);
  const size_t tap = (size_t)group_inputs(c) * window->y.channels;
  float lane[8] = {0};
  position p = q;
  for (uint32_t ky = 0; ky < window->kernel_h; ky++)
    for (uint32_t kx = 0; kx < window->kernel_w; kx++, w += tap) {
      if (!reader(q.y, ky, window->stride_h, window->pad_top, window->y.height, &p.y)) continue;
      if (!reader(q.x, kx, window->stride_w, window->pad_left, window->y.width, &p.x)) continue;
      const float *from = dy + index_of(&window->y, p);
      for (uint32_t o = 0; o < outputs; o++) lane[o % 8] += w[o] * from[o];
    }
  return ft_tree(lane);
}

void ft_conv_dx_f32(const ft_conv *c, const float *dy, const float *w, float *dx) {
  const uint32_t in = group_inputs(c), out = c->window.y.channels;
  position q = {0, 0, 0};
  do {
    for (uint32_t i = 0; i < c->window.x.channels; i++) {
      const uint32_t first = i / in * group_outputs(c);
      *dx++ = conv_dx_at(c, dy + first, w + (size_t)(i % in) * out + first, q);
    }
  } while (advance(&q, &c->window.x));
}

/* ---- gradients of a convolution's weights -------------------------------------------------- */

/* A weight: tap (ky, kx), input i of the group of output o. */
typedef struct { uint32_t ky, kx, i, o; } weight;

/* The input that it belongs to, at the first position. */
static const float *input_of(const ft_conv *c, const float *x, const weight *k) {
  return x + k->o / group_outputs(c) * group_inputs(c) + k->i;
}

static float plain_gradient_at(const ft_conv *c, const float *x, const float *dy,
                               const weight *k) {
  float sum = 0.0f;
  size_t at;
  position p = {0, 0, 0};
  x = input_of(c, x, k);
  dy += k->o;
  do {
    if (reads(&c->window, p, k->ky, k->kx, &at)) sum += x[at] * *dy;
    dy += c->window.y.channels;
  } while (advance(&p, &c->window.y));
  return sum;
}

/* dy is that of the pooled output. */
static float pooled_gradient_at(const ft_conv *c, const float *x, const float *dy,
                                const uint32_t *codes, const weight *k) {
  const ft_image out = pooled_image(c);
  const code_table table = codes_of(&out, c->pool_h * c->pool_w);
  float sum = 0.0f;
  size_t element = k->o, at;
  position p = {0, 0, 0};
  x = input_of(c, x, k);
  do {
    const uint32_t code = get_code(&table, codes, element);
    if (code < table.taps && reads(&c->window, unpooled(c, p, code), k->ky, k->kx, &at))
      sum += x[at] * dy[element];
    element += out.channels;
  } while (advance(&p, &out));
  return sum;
}

static float gradient_at(const ft_conv *c, const float *x, const float *dy, const uint32_t *codes,
                         const weight *k) {
  return codes ? pooled_gradient_at(c, x, dy, codes, k) : plain_gradient_at(c, x, dy, k);
}

/* The next weight of columns [first, end), in the order of the memory; 0 behind the last. */
static int next_weight(weight *k, const ft_conv *c, uint32_t first, uint32_t end) {
  if (++k->o < end) return 1;
  k->o = first;
  if (++k->i < group_inputs(c)) return 1;
  k->i = 0;
  if (++k->kx < c->window.kernel_w) return 1;
  k->kx = 0;
  return ++k->ky < c->window.kernel_h;
}

void ft_conv_pool_update_f32(const ft_conv *c, const float *x, const float *dy,
                             const uint32_t *codes, float *w, const ft_rule *rule) {
  weight k = {0, 0, 0, 0};
  uint32_t at = 0;
  do ft_apply(rule, w, at++, gradient_at(c, x, dy, codes, &k));
  while (next_weight(&k, c, 0, c->window.y.channels));
}

void ft_conv_update_f32(const ft_conv *c, const float *x, const float *dy, float *w,
                        const ft_rule *rule) {
  ft_conv_pool_update_f32(c, x, dy, NULL, w, rule);
}

float ft_conv_pool_norm_f32(const ft_conv *c, const float *x, const float *dy,
                            const uint32_t *codes) {
  const uint32_t out = c->window.y.channels;
  float lane[8] = {0};
  for (uint32_t first = 0; first < out; first += 8) {
    weight k = {0, 0, 0, first};
    do {
      const float g = gradient_at(c, x, dy, codes, &k);
      lane[k.o % 8] += g * g;
    } while (next_weight(&k, c, first, out - first < 8 ? out : first + 8));
  }
  return ft_tree(lane);
}

float ft_conv_norm_f32(const ft_conv *c, const float *x, const float *dy) {
  return ft_conv_pool_norm_f32(c, x, dy, NULL);
}

void ft_scan_f32(const ft_conv *c, const float *x, const float *dy, const ft_live *w,
                 ft_heap *heap) {
  ft_walk walk = ft_first_dead(w);
  weight k = {0, 0, 0, 0};
  uint32_t at = 0;
  do {
    if (ft_is_dead(&walk, at)) ft_heap_offer(heap, at, plain_gradient_at(c, x, dy, &k));
    at++;
  } while (next_weight(&k, c, 0, c->window.y.channels));
}

/* ---- pools --------------------------------------------------------------------------------- */

void ft_max_pool_f32(const ft_window *pool, const float *x, float *y, uint32_t *codes) {
  const uint32_t taps = pool->kernel_h * pool->kernel_w;
  const code_table table = codes_of(&pool->y, taps);
  size_t element = 0, at;
  position p = {0, 0, 0};
  clear_codes(&table, codes, pool->y.batch);
  do {
    for (uint32_t c = 0; c < pool->y.channels; c++, element++) {
      uint32_t code = taps;
      float m = 0.0f;
      for (uint32_t tap = 0; tap < taps; tap++) {
        if (!reads(pool, p, tap / pool->kernel_w, tap % pool->kernel_w, &at)) continue;
        const float z = x[at + c];
        if (code == taps || z > m || z != z) m = z, code = tap;
      }
      y[element] = m;
      put_code(&table, codes, element, code);
    }
  } while (advance(&p, &pool->y));
}

void ft_max_pool_dx_f32(const ft_window *pool, const float *dy, const uint32_t *codes, float *dx) {
  const code_table table = codes_of(&pool->y, pool->kernel_h * pool->kernel_w);
  const ft_image *x = &pool->x;
  size_t element = 0, at;
  position p = {0, 0, 0};
  memset(dx, 0, (size_t)x->batch * x->height * x->width * x->channels * sizeof *dx);
  do {
    for (uint32_t c = 0; c < pool->y.channels; c++, element++) {
      const uint32_t code = get_code(&table, codes, element);
      if (code < table.taps && reads(pool, p, code / pool->kernel_w, code % pool->kernel_w, &at))
        dx[at + c] += dy[element];
    }
  } while (advance(&p, &pool->y));
}

void ft_avg_pool_f32(const ft_window *pool, const float *x, float *y) {
  const float area = (float)(pool->kernel_h * pool->kernel_w);
  position p = {0, 0, 0};
  size_t at;
  do {
    for (uint32_t c = 0; c < pool->y.channels; c++) {
      float sum = 0.0f;
      for (uint32_t ky = 0; ky < pool->kernel_h; ky++)
        for (uint32_t kx = 0; kx < pool->kernel_w; kx++)
          if (reads(pool, p, ky, kx, &at)) sum += x[at + c];
      *y++ = sum / area;
    }
  } while (advance(&p, &pool->y));
}

/* The outputs whose windows hold place q of one axis. */
typedef struct { uint32_t first, end; } holders;

static holders holders_of(uint32_t q, uint32_t stride, uint32_t pad, uint32_t kernel,
                          uint32_t outputs) {
  const uint32_t start = q + pad, end = start / stride + 1;
  const holders h = {start >= kernel ? (start - kernel) / stride + 1 : 0,
                     end < outputs ? end : outputs};
  return h;
}

static float avg_pool_dx_at(const ft_image *out, const float *dy, holders rows, holders columns) {
  float sum = 0.0f;
  for (uint32_t y = rows.first; y < rows.end; y++)
    for (uint32_t x = columns.first; x < columns.end; x++)
      sum += dy[(y * out->width + x) * out->channels];
  return sum;
}

void ft_avg_pool_dx_f32(const ft_window *pool, const float *dy, float *dx) {
  const float area = (float)(pool->kernel_h * pool->kernel_w);
  const ft_image *out = &pool->y;
  position q = {0, 0, 0};
  do {
    const holders rows =
        holders_of(q.y, pool->stride_h, pool->pad_top, pool->kernel_h, out->height);
    const holders columns =
        holders_of(q.x, pool->stride_w, pool->pad_left, pool->kernel_w, out->width);
    const float *from = dy + (size_t)q.image * out->height * out->width * out->channels;
    for (uint32_t c = 0; c < out->channels; c++)
      *dx++ = avg_pool_dx_at(out, from + c, rows, columns) / area;
  } while (advance(&q, &pool->x));
}

#endif
