/* ft_conv.c: convolutions forward, and with a max-pooling behind them.
 *
 * No patch is ever copied: a kernel row of it is one run of x already, so that a convolution is a
 * product of matrices whose rows start where the positions say. Pooled, the convolution of a few
 * windows goes into a tile on the stack, and from there into the largest and its code.
 */
#include "ft_codes.h"
#include "ft_taps.h"

#ifndef FT_SMALL

/* The columns of one group that are being computed; the pointers stand at the first of them. */
typedef struct {
  const float *x, *w, *b;
  float *y;
  uint32_t depth, out;     /* floats of x at a tap; floats of a row of w */
} operands;

/* ---- positions x columns ------------------------------------------------------------------- */

FT_INLINE void forward_block(uint32_t positions, uint32_t vectors, int partial,
                             const ft_area *area, const operands *p, ft_area_cursor *at,
                             uint32_t lanes) {
  const float *x[6];
  size_t from[6], to[6];
  vw sum[6][4];
  ft_take(area, at, positions, from, to);
  FT_UNROLL for (uint32_t r = 0; r < positions; r++) x[r] = p->x + from[r];
  FT_UNROLL for (uint32_t v = 0; v < vectors; v++) {
    const vw start = p->b ? ft_get(p->b + FT_WIDTH * v, partial, lanes) : FT_W(set)(0.0f);
    FT_UNROLL for (uint32_t r = 0; r < positions; r++) sum[r][v] = start;
  }
  const float *w_row = p->w + area->w_at;
  const size_t out = p->out;
  ptrdiff_t row = 0;
  for (uint32_t ky = 0; ky < area->tap_rows; ky++) {
    const float *w = w_row;
    ptrdiff_t tap = row;
    for (uint32_t kx = 0; kx < area->taps; kx++, tap += area->from_tap)
      for (ptrdiff_t i = tap, end = tap + p->depth; i < end; i++, w += out) {
        vw weight[4];
        FT_UNROLL for (uint32_t v = 0; v < vectors; v++)
          weight[v] = ft_get(w + FT_WIDTH * v, partial, lanes);
        FT_UNROLL for (uint32_t r = 0; r < positions; r++) {
          const float value = x[r][i];
          FT_UNROLL for (uint32_t v = 0; v < vectors; v++) sum[r][v] += value * weight[v];
        }
      }
    row += area->from_tap_row;
    w_row += area->w_tap_row;
  }
  FT_UNROLL for (uint32_t r = 0; r < positions; r++)
    FT_UNROLL for (uint32_t v = 0; v < vectors; v++)
      ft_put(p->y + to[r] + FT_WIDTH * v, sum[r][v], partial, lanes);
}

#define BLOCK(size, vectors, partial)                                                              \
  case size: forward_block(size, vectors, partial, area, &p, &at, lanes); break;
#define UP_TO_3(vectors, partial) BLOCK(1, vectors, partial) BLOCK(2, vectors, partial)            \
  BLOCK(3, vectors, partial)
#define UP_TO_6(vectors, partial) UP_TO_3(vectors, partial) BLOCK(4, vectors, partial)             \
  BLOCK(5, vectors, partial) BLOCK(6, vectors, partial)
#define BAND(name, blocks)                                                                         \
  FT_BAND void name(const ft_area *area, operands p, uint32_t lanes) {                             \
    ft_area_cursor at = ft_first(area);                                                            \
    for (uint32_t left = ft_positions(area), size; left; left -= size)                             \
      switch (size = ft_share(left)) { blocks }                                                    \
  }
BAND(forward_4, UP_TO_3(4, 0))
BAND(forward_2, UP_TO_6(2, 0))
BAND(forward_1, UP_TO_6(1, 0))
BAND(forward_last, UP_TO_6(1, 1))
#undef BLOCK
#undef UP_TO_3
#undef UP_TO_6
#undef BAND

static operands from_column(operands p, uint32_t o) {
  return (operands){p.x, p.w + o, p.b ? p.b + o : NULL, p.y + o, p.depth, p.out};
}

/* Three positions or less fill the registers with columns. */
static void forward_area(const ft_area *area, const operands *p, uint32_t columns) {
  uint32_t o = 0;
  if (columns < FT_WIDTH) {
    forward_last(area, *p, columns);
    return;
  }
  if (ft_positions(area) <= 3)
    for (; o + 4 * FT_WIDTH <= columns; o += 4 * FT_WIDTH)
      forward_4(area, from_column(*p, o), FT_WIDTH);
  for (; o + 2 * FT_WIDTH <= columns; o += 2 * FT_WIDTH)
    forward_2(area, from_column(*p, o), FT_WIDTH);
  for (; o < columns; o += FT_WIDTH)
    forward_1(area, from_column(*p, ft_block_start(o, FT_WIDTH, columns)), FT_WIDTH);
}

/* ---- rectangles of the output -------------------------------------------------------------- */

typedef struct { uint32_t image, images, row, rows, column, columns; } rectangle;

/* `columns` channels of a rectangle of the output; y stands where its first position goes. */
static void forward_rectangle(const ft_conv *conv, const rectangle *part, const operands *p,
                              const ft_strides *y, uint32_t columns) {
  const ft_window *window = &conv->window;
  const ft_axis vertical = ft_vertical(window), horizontal = ft_horizontal(window);
  const ft_strides x = ft_strides_of(&window->x);
  const size_t w_tap = (size_t)p->depth * p->out;
  const ft_strides w = {w_tap, w_tap * window->kernel_w, 0};
  const uint32_t row_end = part->row + part->rows, column_end = part->column + part->columns;
  ft_span rows, across;
  for (uint32_t oy = part->row; oy < row_end; oy += rows.count) {
    rows = ft_outputs(&vertical, oy, row_end);
    for (uint32_t ox = part->column; ox < column_end; ox += across.count) {
      across = ft_outputs(&horizontal, ox, column_end);
      ft_area area = ft_area_of(&rows, &across, part->images, &x, y, &w);
      operands here = *p;
      area.from_at += part->image * x.image;
      area.to_at -= part->row * y->row + part->column * y->column;
      if (ft_is_depthwise(conv)) {
        ft_depthwise_area(&area, here.x, here.w, here.b, here.y, columns);
        continue;
      }
      if (conv->groups == 1) here.depth *= area.taps, area.taps = 1;
      forward_area(&area, &here, columns);
    }
  }
}

/* The first column of a group, or of all where each channel is a group. */
static operands from_group(const ft_conv *conv, const float *x, const float *w, const float *b,
                           uint32_t group, uint32_t columns) {
  const uint32_t depth = conv->window.x.channels / conv->groups, o = group * columns;
  return (operands){x + group * depth, w + o, b ? b + o : NULL, NULL, depth,
                    conv->window.y.channels};
}

void ft_conv_f32(const ft_conv *conv, const float *x, const float *w, const float *b, float *y) {
  const ft_image *image = &conv->window.y;
  const ft_strides strides = ft_strides_of(image);
  const rectangle whole = {0, image->batch, 0, image->height, 0, image->width};
  const uint32_t groups = ft_is_depthwise(conv) ? 1 : conv->groups;
  const uint32_t columns = image->channels / groups;
  for (uint32_t group = 0; group < groups; group++) {
    operands p = from_group(conv, x, w, b, group, columns);
    p.y = y + group * columns;
    forward_rectangle(conv, &whole, &p, &strides, columns);
  }
}

/* ---- pooled -------------------------------------------------------------------------------- */

/* A tile holds two vectors of columns of as many positions as one window can have; smaller windows
 * share it. */
enum { TILE_COLUMNS = 2 * FT_WIDTH, TILE_POSITIONS = 256 };

typedef struct {           /* one sample's */
  float *y;
  uint32_t *codes, bits;
} pooled;

/* The largest of the h by w taps of the window at `tile`, with its code, as `element` of the
 * sample. */
FT_INLINE void put_largest(uint32_t h, uint32_t w, const float *tile, size_t tile_row, int partial,
                           uint32_t lanes, const pooled *to, uint32_t element) {
  vw largest = ft_get(tile, partial, lanes), code = FT_W(set)(0.0f);
  FT_UNROLL for (uint32_t y = 0; y < h; y++)
    FT_UNROLL for (uint32_t x = 0; x < w; x++) {
      const vw z = ft_get(tile + y * tile_row + x * TILE_COLUMNS, partial, lanes);
      const vwi take = (z > largest) | (z != z);
      largest = FT_W(select)(take, z, largest);
      code = FT_W(select)(take, FT_W(set)((float)(y * w + x)), code);
    }
  ft_put(to->y + element, largest, partial, lanes);
  ft_put_codes(to->codes, element, to->bits, code, partial, lanes);
}

/* All columns of the window at `tile`. */
FT_INLINE void pool_window(uint32_t h, uint32_t w, const float *tile, size_t tile_row,
                           uint32_t columns, const pooled *to, uint32_t element) {
  if (columns < FT_WIDTH) {
    put_largest(h, w, tile, tile_row, 1, columns, to, element);
    return;
  }
  for (uint32_t o = 0; o < columns; o += FT_WIDTH) {
    const uint32_t start = ft_block_start(o, FT_WIDTH, columns);
    put_largest(h, w, tile + start, tile_row, 0, FT_WIDTH, to, element + start);
  }
}

/* `windows` windows side by side; `pace` elements from one to the next. */
#define POOL(name, h, w)                                                                           \
  FT_BAND void name(const ft_conv *conv, const float *tile, size_t tile_row, uint32_t columns,     \
                    const pooled *to, uint32_t element, uint32_t windows, uint32_t pace) {         \
    (void)conv;                                                                                    \
    for (; windows; windows--, tile += (w) * TILE_COLUMNS, element += pace)                        \
      pool_window(h, w, tile, tile_row, columns, to, element);                                     \
  }
POOL(pool_2x2, 2, 2)
POOL(pool_any, conv->pool_h, conv->pool_w)
#undef POOL

/* `part` counts windows. Columns of one band, from `o` on. */
static void pool_rectangle(const ft_conv *conv, const rectangle *part, const operands *p,
                           uint32_t o, uint32_t columns, float *y, uint32_t *codes) {
  float tile[TILE_POSITIONS * TILE_COLUMNS];
  const uint32_t h = conv->pool_h, w = conv->pool_w, bits = ft_code_bits(h * w);
  const ft_image *image = &conv->window.y;
  const uint32_t across = image->width / w;
  const uint32_t sample = image->height / h * across * image->channels;
  const rectangle positions = {part->image, part->images, part->row * h, part->rows * h,
                               part->column * w, part->columns * w};
  const size_t row = (size_t)positions.columns * TILE_COLUMNS;
  const ft_strides strides = {TILE_COLUMNS, row, row * positions.rows};
  operands here = *p;
  here.y = tile;
  forward_rectangle(conv, &positions, &here, &strides, columns);
  for (uint32_t b = 0; b < part->images; b++) {
    const size_t image_at = part->image + b;
    const pooled to = {y + image_at * sample, codes + image_at * ft_words_of(sample, bits), bits};
    for (uint32_t r = 0; r < part->rows; r++)
      (h == 2 && w == 2 ? pool_2x2 : pool_any)(
          conv, tile + b * strides.image + r * h * row, row, columns, &to,
          ((part->row + r) * across + part->column) * image->channels + o, part->columns,
          image->channels);
  }
}

/* One band of columns, tile by tile. */
static void pool_band(const ft_conv *conv, const operands *p, uint32_t o, uint32_t columns,
                      float *y, uint32_t *codes) {
  const ft_image *image = &conv->window.y;
  const uint32_t windows = TILE_POSITIONS / (conv->pool_h * conv->pool_w);
  const uint32_t height = image->height / conv->pool_h, width = image->width / conv->pool_w;
  const uint32_t w = ft_at_most(windows, width), h = ft_at_most(windows / w, height);
  const uint32_t n = ft_at_most(windows / (w * h), image->batch);
  for (uint32_t b = 0; b < image->batch; b += n)
    for (uint32_t r = 0; r < height; r += h)
      for (uint32_t c = 0; c < width; c += w) {
        const rectangle part = {b, ft_at_most(n, image->batch - b), r, ft_at_most(h, height - r),
                                c, ft_at_most(w, width - c)};
        pool_rectangle(conv, &part, p, o, columns, y, codes);
      }
}

void ft_conv_pool_f32(const ft_conv *conv, const float *x, const float *w, const float *b, float *y,
                      uint32_t *codes) {
  const ft_image *image = &conv->window.y;
  const uint32_t groups = ft_is_depthwise(conv) ? 1 : conv->groups;
  const uint32_t columns = image->channels / groups;
  const uint32_t sample = image->height / conv->pool_h * (image->width / conv->pool_w) *
                        image->channels;
  const size_t words = ft_words_of(sample, ft_code_bits(conv->pool_h * conv->pool_w));
  memset(codes, 0, image->batch * words * sizeof *codes);
  for (uint32_t group = 0; group < groups; group++) {
    const operands p = from_group(conv, x, w, b, group, columns);
    for (uint32_t o = 0; o < columns; o += TILE_COLUMNS) {
      const uint32_t width = ft_at_most(TILE_COLUMNS, columns);
      const uint32_t start = ft_block_start(o, width, columns);
      operands here = from_column(p, start);
      if (ft_is_depthwise(conv)) here.x += start;
      pool_band(conv, &here, group * columns + start, width, y, codes);
    }
  }
}

#endif
