/* ft_small_sparse.c: convolutions by the weights that live, as plain loops, for a microcontroller
 * (FT_SMALL).
 */
#include "ft_small.h"

#ifdef FT_SMALL

size_t ft_scratch_bytes(const ft_program *program) {
  (void)program;
  return 0;
}

/* ---- weights and what they meet ------------------------------------------------------------ */

/* A weight: tap (ky, kx) from channel i to channel o. */
typedef struct { uint32_t ky, kx, i, o; } weight;

static weight next_weight(ft_cursor *cursor, const ft_window *w) {
  const uint32_t at = ft_next_live(cursor), row = at / w->y.channels, tap = row / w->x.channels;
  const weight next = {tap / w->kernel_w, tap % w->kernel_w, row % w->x.channels,
                       at % w->y.channels};
  return next;
}

typedef struct { uint32_t b, y, x; } position;

static size_t index_of(const ft_image *image, position p, uint32_t channel) {
  return (((size_t)p.b * image->height + p.y) * image->width + p.x) * image->channels + channel;
}

/* The element of x that the weight meets at output position p; 0 if it is outside the image. A
 * difference below 0 wraps, and so is outside. */
static int meets(const ft_window *w, const weight *k, position p, size_t *at) {
  const position q = {p.b, p.y * w->stride_h + k->ky - w->pad_top,
                      p.x * w->stride_w + k->kx - w->pad_left};
  *at = index_of(&w->x, q, k->i);
  return q.y < w->x.height && q.x < w->x.width;
}

/* The next output position in ascending order; 0 behind the last. */
static int advance(position *p, const ft_image *image) {
  if (++p->x < image->width) return 1;
  p->x = 0;
  if (++p->y < image->height) return 1;
  p->y = 0;
  return ++p->b < image->batch;
}

/* ---- forward, and back to the input -------------------------------------------------------- */

static size_t floats_of(const ft_image *image) {
  return (size_t)image->batch * image->height * image->width * image->channels;
}

void ft_sparse_conv_f32(const ft_conv *conv, const float *x, const ft_live *w, const float *b,
                        float *y, void *scratch) {
  const ft_window *window = &conv->window;
  const size_t size = floats_of(&window->y);
  ft_cursor cursor = ft_first_live(w);
  (void)scratch;
  for (size_t i = 0; i < size; i++) y[i] = b ? b[i % window->y.channels] : 0.0f;
  for (uint32_t j = 0; j < w->count; j++) {
    const weight k = next_weight(&cursor, window);
    position p = {0, 0, 0};
    size_t at;
    do {
      const float read = meets(window, &k, p, &at) ? x[at] : 0.0f;
      y[index_of(&window->y, p, k.o)] += read * w->values[j];
    } while (advance(&p, &window->y));
  }
}

void ft_sparse_conv_dx_f32(const ft_conv *conv, const float *dy, const ft_live *w, float *dx,
                           void *scratch) {
  const ft_window *window = &conv->window;
  ft_cursor cursor = ft_first_live(w);
  (void)scratch;
  memset(dx, 0, floats_of(&window->x) * sizeof *dx);
  for (uint32_t j = 0; j < w->count; j++) {
    const weight k = next_weight(&cursor, window);
    position p = {0, 0, 0};
    size_t at;
    do
      if (meets(window, &k, p, &at))
        dx[at] += w->values[j] * dy[index_of(&window->y, p, k.o)];
    while (advance(&p, &window->y));
  }
}

/* ---- gradients of the weights -------------------------------------------------------------- */

/* A lane takes every eighth sample, so the lanes can be summed one by one. */
static float lane_of(const ft_window *window, const weight *k, uint32_t first, const float *x,
                     const float *dy) {
  float sum = 0.0f;
  for (uint32_t b = first; b < window->y.batch; b += 8) {
    position p = {b, 0, 0};
    size_t at;
    do {
      const float read = meets(window, k, p, &at) ? x[at] : 0.0f;
      sum += read * dy[index_of(&window->y, p, k->o)];
    } while (advance(&p, &window->y) && p.b == b);
  }
  return sum;
}

static float gradient_of(const ft_window *window, const weight *k, const float *x,
                         const float *dy) {
  float lane[8];
  for (uint32_t i = 0; i < 8; i++) lane[i] = lane_of(window, k, i, x, dy);
  return ft_tree(lane);
}

void ft_sparse_conv_update_f32(const ft_conv *conv, const float *x, const float *dy,
                               const ft_live *w, const ft_rule *rule, void *scratch) {
  ft_cursor cursor = ft_first_live(w);
  (void)scratch;
  for (uint32_t j = 0; j < w->count; j++) {
    const weight k = next_weight(&cursor, &conv->window);
    ft_apply(rule, w->values, j, gradient_of(&conv->window, &k, x, dy));
  }
}

float ft_sparse_conv_norm_f32(const ft_conv *conv, const float *x, const float *dy,
                              const ft_live *w, void *scratch) {
  ft_cursor cursor = ft_first_live(w);
  float lane[8] = {0};
  (void)scratch;
  for (uint32_t j = 0; j < w->count; j++) {
    const weight k = next_weight(&cursor, &conv->window);
    const float g = gradient_of(&conv->window, &k, x, dy);
    lane[j % 8] += g * g;
  }
  return ft_tree(lane);
}

#endif
