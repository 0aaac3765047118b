/* ft_pool.c: pools, whose lanes are channels. */
#include "ft_channels.h"
#include "ft_codes.h"

#ifndef FT_SMALL

/* ---- which places meet --------------------------------------------------------------------- */

/* `count` neighbouring places along one axis, from `first` on. */
typedef struct { uint32_t first, count; } ft_places;

static ft_places places(uint32_t first, uint32_t end) {
  return (ft_places){first, end > first ? end - first : 0};
}

/* Of the input, which the window at output o reads. */
static ft_places inputs_of(uint32_t o, uint32_t stride, uint32_t pad, uint32_t kernel,
                           uint32_t inputs) {
  const uint32_t start = o * stride, end = start + kernel - pad;
  return places(start > pad ? start - pad : 0, end < inputs ? end : inputs);
}

/* Of the output, whose windows read input q. */
static ft_places outputs_of(uint32_t q, uint32_t stride, uint32_t pad, uint32_t kernel,
                            uint32_t outputs) {
  const uint32_t last = q + pad, end = last / stride + 1;
  return places(last < kernel ? 0 : (last - kernel) / stride + 1, end < outputs ? end : outputs);
}

/* A rectangle of positions of an image. */
typedef struct {
  size_t at, row;               /* its first float; floats from row to row */
  uint32_t rows, columns, step; /* floats from column to column */
} ft_rectangle;

static ft_rectangle rectangle_of(const ft_image *image, uint32_t sample, ft_places y,
                                 ft_places x) {
  const size_t row = (size_t)image->width * image->channels;
  const size_t first = ((size_t)sample * image->height + y.first) * row;
  return (ft_rectangle){first + x.first * image->channels, row, y.count, x.count,
                        image->channels};
}

static ft_places input_rows(const ft_window *w, uint32_t y) {
  return inputs_of(y, w->stride_h, w->pad_top, w->kernel_h, w->x.height);
}

static ft_places input_columns(const ft_window *w, uint32_t x) {
  return inputs_of(x, w->stride_w, w->pad_left, w->kernel_w, w->x.width);
}

static ft_places output_rows(const ft_window *w, uint32_t y) {
  return outputs_of(y, w->stride_h, w->pad_top, w->kernel_h, w->y.height);
}

static ft_places output_columns(const ft_window *w, uint32_t x) {
  return outputs_of(x, w->stride_w, w->pad_left, w->kernel_w, w->y.width);
}

/* The first tap inside the image of the window at (y, x), which reads these inputs. */
static uint32_t first_tap(const ft_window *w, uint32_t y, uint32_t x, ft_places rows,
                          ft_places columns) {
  const uint32_t ky = rows.first + w->pad_top - y * w->stride_h;
  return ky * w->kernel_w + (columns.first + w->pad_left - x * w->stride_w);
}

#define EACH(index, count) for (uint32_t index = 0; index < (count); index++)

/* ---- averages ------------------------------------------------------------------------------ */

FT_INLINE void average(uint32_t vectors, int partial, uint32_t c, const ft_rectangle *from,
                       const float *x, float *y, uint32_t channels, float area) {
  vw sum[4];
  FT_UNROLL for (uint32_t v = 0; v < vectors; v++) sum[v] = FT_W(set)(0.0f);
  for (uint32_t row = 0; row < from->rows; row++) {
    const float *at = x + from->at + row * from->row + c;
    for (uint32_t column = 0; column < from->columns; column++, at += from->step)
      FT_UNROLL for (uint32_t v = 0; v < vectors; v++)
        sum[v] += ft_get(at + FT_WIDTH * v, partial, channels - c);
  }
  FT_UNROLL for (uint32_t v = 0; v < vectors; v++)
    ft_put(y + c + FT_WIDTH * v, sum[v] / area, partial, channels - c);
}

/* y[channels] = (sum over the rectangle of x) / area. */
FT_BAND void average_rectangle(const ft_rectangle *from, const float *x, float *y,
                               uint32_t channels, float area) {
#define AVERAGE(vectors, partial, c) average(vectors, partial, c, from, x, y, channels, area)
  FT_EACH_VECTOR(channels, AVERAGE)
#undef AVERAGE
}

void ft_avg_pool_f32(const ft_window *pool, const float *x0, float *y0) {
  const float area = (float)(pool->kernel_h * pool->kernel_w);
  EACH(b, pool->y.batch)
    EACH(y, pool->y.height) {
      const ft_places rows = input_rows(pool, y);
      EACH(x, pool->y.width) {
        const ft_rectangle from = rectangle_of(&pool->x, b, rows, input_columns(pool, x));
        average_rectangle(&from, x0, y0, pool->y.channels, area);
        y0 += pool->y.channels;
      }
    }
}

static int is_same(ft_places a, ft_places b) { return a.first == b.first && a.count == b.count; }

/* One row of dx. Neighbours that the same windows read have the same gradient. */
static void average_row_dx(const ft_window *pool, uint32_t b, ft_places rows, const float *dy,
                           float *dx) {
  const float area = (float)(pool->kernel_h * pool->kernel_w);
  const uint32_t channels = pool->x.channels;
  ft_places before = output_columns(pool, 0);
  EACH(x, pool->x.width) {
    const ft_places columns = output_columns(pool, x);
    if (x && is_same(columns, before)) {
      memcpy(dx, dx - channels, channels * sizeof *dx);
    } else {
      const ft_rectangle from = rectangle_of(&pool->y, b, rows, columns);
      average_rectangle(&from, dy, dx, channels, area);
    }
    before = columns, dx += channels;
  }
}

void ft_avg_pool_dx_f32(const ft_window *pool, const float *dy, float *dx) {
  const size_t row = (size_t)pool->x.width * pool->x.channels;
  EACH(b, pool->x.batch) {
    ft_places before = output_rows(pool, 0);
    EACH(y, pool->x.height) {
      const ft_places rows = output_rows(pool, y);
      if (y && is_same(rows, before))
        memcpy(dx, dx - row, row * sizeof *dx);
      else
        average_row_dx(pool, b, rows, dy, dx);
      before = rows, dx += row;
    }
  }
}

/* ---- maxima -------------------------------------------------------------------------------- */

typedef struct { uint32_t *words, element, bits; } ft_code_row; /* of a sample, and where in it */

/* The largest of a rectangle whose first tap is `tap`, of one vector of channels. */
FT_INLINE void largest(int partial, uint32_t c, const ft_rectangle *from, const float *x, float *y,
                       uint32_t channels, uint32_t tap, uint32_t kernel_w,
                       const ft_code_row *codes) {
  const uint32_t lanes = channels - c;
  vw m = ft_get(x + from->at + c, partial, lanes), code = FT_W(set)((float)tap);
  for (uint32_t row = 0; row < from->rows; row++, tap += kernel_w) {
    const float *at = x + from->at + row * from->row + c;
    float number = (float)tap;
    for (uint32_t column = 0; column < from->columns; column++, at += from->step, number += 1.0f) {
      const vw z = ft_get(at, partial, lanes);
      const vwi taken = (z > m) | (z != z);
      m = FT_W(select)(taken, z, m);
      code = FT_W(select)(taken, FT_W(set)(number), code);
    }
  }
  ft_put(y + c, m, partial, lanes);
  ft_put_codes(codes->words, codes->element + c, codes->bits, code, partial, lanes);
}

FT_BAND void largest_of(const ft_rectangle *from, const float *x, float *y, uint32_t channels,
                        uint32_t tap, uint32_t kernel_w, const ft_code_row *codes) {
  uint32_t c = 0;
  for (; c + FT_WIDTH <= channels; c += FT_WIDTH)
    largest(0, c, from, x, y, channels, tap, kernel_w, codes);
  if (c < channels) largest(1, c, from, x, y, channels, tap, kernel_w, codes);
}

static uint32_t row_floats(const ft_image *image) {
  return image->height * image->width * image->channels;
}

void ft_max_pool_f32(const ft_window *pool, const float *x0, float *y0, uint32_t *codes) {
  const uint32_t channels = pool->y.channels, bits = ft_code_bits(pool->kernel_h * pool->kernel_w);
  const uint32_t words = ft_words_of(row_floats(&pool->y), bits);
  memset(codes, 0, (size_t)pool->y.batch * words * sizeof *codes);
  EACH(b, pool->y.batch) {
    ft_code_row row = {codes + (size_t)b * words, 0, bits};
    EACH(y, pool->y.height) {
      const ft_places rows = input_rows(pool, y);
      EACH(x, pool->y.width) {
        const ft_places columns = input_columns(pool, x);
        const ft_rectangle from = rectangle_of(&pool->x, b, rows, columns);
        const uint32_t tap = first_tap(pool, y, x, rows, columns);
        largest_of(&from, x0, y0, channels, tap, pool->kernel_w, &row);
        y0 += channels, row.element += channels;
      }
    }
  }
}

/* Adds dy to the taps of a rectangle that the codes name. An element gets +0 of the others, which
 * changes no bit of a sum from +0. */
FT_INLINE void hand_out(int partial, uint32_t c, const ft_rectangle *to, const float *dy, float *dx,
                        uint32_t channels, uint32_t tap, uint32_t kernel_w,
                        const ft_code_row *codes) {
  const uint32_t lanes = channels - c;
  const vw gradient = ft_get(dy + c, partial, lanes), none = FT_W(set)(0.0f);
  const vwi code = ft_get_codes(codes->words, codes->element + c, codes->bits, partial, lanes);
  for (uint32_t row = 0; row < to->rows; row++, tap += kernel_w) {
    float *at = dx + to->at + row * to->row + c;
    for (uint32_t column = 0; column < to->columns; column++, at += to->step) {
      const vw share = FT_W(select)(code == (int32_t)(tap + column), gradient, none);
      ft_put(at, ft_get(at, partial, lanes) + share, partial, lanes);
    }
  }
}

FT_BAND void hand_out_to(const ft_rectangle *to, const float *dy, float *dx, uint32_t channels,
                         uint32_t tap, uint32_t kernel_w, const ft_code_row *codes) {
  uint32_t c = 0;
  for (; c + FT_WIDTH <= channels; c += FT_WIDTH)
    hand_out(0, c, to, dy, dx, channels, tap, kernel_w, codes);
  if (c < channels) hand_out(1, c, to, dy, dx, channels, tap, kernel_w, codes);
}

void ft_max_pool_dx_f32(const ft_window *pool, const float *dy, const uint32_t *codes, float *dx) {
  const uint32_t channels = pool->y.channels, bits = ft_code_bits(pool->kernel_h * pool->kernel_w);
  const uint32_t words = ft_words_of(row_floats(&pool->y), bits);
  memset(dx, 0, (size_t)pool->x.batch * row_floats(&pool->x) * sizeof *dx);
  EACH(b, pool->y.batch) {
    ft_code_row row = {(uint32_t *)(uintptr_t)codes + (size_t)b * words, 0, bits};
    EACH(y, pool->y.height) {
      const ft_places rows = input_rows(pool, y);
      EACH(x, pool->y.width) {
        const ft_places columns = input_columns(pool, x);
        const ft_rectangle to = rectangle_of(&pool->x, b, rows, columns);
        const uint32_t tap = first_tap(pool, y, x, rows, columns);
        hand_out_to(&to, dy, dx, channels, tap, pool->kernel_w, &row);
        dy += channels, row.element += channels;
      }
    }
  }
}

#endif
