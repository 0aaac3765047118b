/* ft_small_int8.c: the int8 kernels but the convolution, as plain loops (FT_SMALL). */
#include "ft_requantise.h"

#ifdef FT_SMALL

void ft_add8(const int8_t *a, ft_grid a_grid, const int8_t *b, ft_grid b_grid, int8_t *y,
             ft_grid y_grid, uint32_t size) {
  const float ra = a_grid.scale / y_grid.scale, rb = b_grid.scale / y_grid.scale;
  const int32_t za = a_grid.zero, zb = b_grid.zero, zy = y_grid.zero;
  for (uint32_t i = 0; i < size; i++) {
    const float v = (float)(a[i] - za) * ra + (float)(b[i] - zb) * rb;
    y[i] = v == v ? ft_nearest(v, zy) : ft_quantised(v, zy);
  }
}

/* ---- pools --------------------------------------------------------------------------------- */

/* The taps of a window that stand inside the image: [first, end) along one axis; the first of them
 * reads place `at`. */
typedef struct { uint32_t first, end, at; } taps;

static taps taps_inside(uint32_t p, uint32_t stride, uint32_t pad, uint32_t kernel, uint32_t in) {
  const uint32_t start = p * stride, limit = in + pad - start;
  const uint32_t first = pad > start ? pad - start : 0;
  const taps inside = {first, kernel < limit ? kernel : limit, start + first - pad};
  return inside;
}

/* The windows of an image, one by one. */
typedef struct {
  const ft_window *pool;
  taps rows, columns;
  const int8_t *x;         /* of the first tap inside */
} window;

static window window_at(const ft_window *pool, const int8_t *x, uint32_t b, uint32_t oy,
                        uint32_t ox) {
  const ft_image *in = &pool->x;
  window w = {pool, taps_inside(oy, pool->stride_h, pool->pad_top, pool->kernel_h, in->height),
              taps_inside(ox, pool->stride_w, pool->pad_left, pool->kernel_w, in->width), x};
  w.x += (((size_t)b * in->height + w.rows.at) * in->width + w.columns.at) * in->channels;
  return w;
}

static int32_t sum_of(const window *w, uint32_t c, int32_t zero) {
  int32_t sum = 0;
  const int8_t *row = w->x + c;
  for (uint32_t ky = w->rows.first; ky < w->rows.end; ky++) {
    const int8_t *at = row;
    for (uint32_t kx = w->columns.first; kx < w->columns.end; kx++, at += w->pool->x.channels)
      sum += *at - zero;
    row += (size_t)w->pool->x.width * w->pool->x.channels;
  }
  return sum;
}

void ft_avg_pool8(const ft_window *pool, const int8_t *x, ft_grid x_grid, int8_t *y,
                  ft_grid y_grid) {
  const float r = x_grid.scale / (y_grid.scale * (float)(pool->kernel_h * pool->kernel_w));
  for (uint32_t b = 0; b < pool->y.batch; b++)
    for (uint32_t oy = 0; oy < pool->y.height; oy++)
      for (uint32_t ox = 0; ox < pool->y.width; ox++) {
        const window w = window_at(pool, x, b, oy, ox);
        for (uint32_t c = 0; c < pool->y.channels; c++)
          *y++ = ft_quantised((float)sum_of(&w, c, x_grid.zero) * r, y_grid.zero);
      }
}

static int8_t largest_of(const window *w, uint32_t c, uint32_t *code) {
  const int8_t *row = w->x + c;
  int8_t m = *row;
  *code = w->rows.first * w->pool->kernel_w + w->columns.first;
  for (uint32_t ky = w->rows.first; ky < w->rows.end; ky++) {
    const int8_t *at = row;
    for (uint32_t kx = w->columns.first; kx < w->columns.end; kx++, at += w->pool->x.channels)
      if (*at > m) m = *at, *code = ky * w->pool->kernel_w + kx;
    row += (size_t)w->pool->x.width * w->pool->x.channels;
  }
  return m;
}

void ft_max_pool8(const ft_window *pool, const int8_t *x, int8_t *y, uint32_t *codes) {
  const ft_image *out = &pool->y;
  const uint32_t bits = ft_code_bits(pool->kernel_h * pool->kernel_w);
  const uint32_t positions = out->height * out->width;
  const uint32_t words = ft_words_of(positions * out->channels, bits);
  memset(codes, 0, (size_t)out->batch * words * sizeof *codes);
  for (uint32_t b = 0; b < out->batch; b++, codes += words)
    for (uint32_t p = 0, element = 0; p < positions; p++) {
      const window w = window_at(pool, x, b, p / out->width, p % out->width);
      for (uint32_t c = 0, code; c < out->channels; c++, element++) {
        *y++ = largest_of(&w, c, &code);
        codes[element * bits / 32] |= code << element * bits % 32;
      }
    }
}

/* ---- masks --------------------------------------------------------------------------------- */

void ft_mask8(const int8_t *y, ft_grid grid, uint32_t *mask, uint32_t rows, uint32_t row,
              float top) {
  const int32_t end = ft_first_from(top, grid);
  for (uint32_t r = 0; r < rows; r++)
    for (uint32_t left = row, some; left; left -= some, y += some) {
      uint32_t bits = 0;
      some = left < 32 ? left : 32;
      for (uint32_t j = 0; j < some; j++)
        bits |= (uint32_t)(y[j] > grid.zero && y[j] < end) << j;
      *mask++ = bits;
    }
}

#endif
