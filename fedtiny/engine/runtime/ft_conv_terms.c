/* ft_conv_terms.c: the sums of a convolution's gradient, a block of them in registers.
 *
 * The terms are added in the order of the outputs. Where a window is partly outside the image, the
 * elements whose taps are outside are left out one by one.
 */
#include "ft_codes.h"
#include "ft_conv_terms.h"

#ifndef FT_SMALL

/* A block's sums, and what is constant in its inlined code. */
typedef struct { uint32_t size, vectors; int partial, by_channel, bordered, pooled; } form;
typedef struct { vw part[6][2]; } sums;

/* Adds what one output gives to the elements [low, high) of the block, which read x[at] ... */
FT_INLINE void add_term(form f, sums *sum, const ft_gradient *g, size_t at, const vw *dy,
                        uint32_t low, uint32_t high) {
  FT_UNROLL for (uint32_t e = 0; e < f.size; e++) {
    if (e < low || e >= high) continue;
    FT_UNROLL for (uint32_t v = 0; v < f.vectors; v++) {
      const size_t channels = g->conv->window.x.channels;
      const vw value = f.by_channel
                           ? ft_get(g->x + (at + e * channels + FT_WIDTH * v), f.partial, g->lanes)
                           : FT_W(set)(g->x[at + e]);
      sum->part[e][v] += value * dy[v];
    }
  }
}

/* The same of an output whose window is partly outside: of the elements whose taps are inside. */
FT_INLINE void add_border_term(form f, sums *sum, const ft_gradient *g, const ft_block *b,
                               uint32_t ox, size_t at, const vw *dy) {
  const ft_window *window = &g->conv->window;
  const uint32_t start = ox * window->stride_w;
  const uint32_t tap = ft_beyond(start, window->pad_left);
  const uint32_t end = ft_at_most(window->kernel_w, window->x.width + window->pad_left - start);
  add_term(f, sum, g, at, dy, ft_beyond(b->first, tap * g->depth),
           ft_beyond(b->first, end * g->depth));
}

/* Where the block reads at output (oy, 0); meaningful only with an output that is inside. */
FT_INLINE size_t row_start(const ft_gradient *g, const ft_block *b, uint32_t image, uint32_t oy,
                           uint32_t tap) {
  const ft_window *window = &g->conv->window;
  const size_t row = (size_t)image * window->x.height + oy * window->stride_h + tap -
                     window->pad_top;
  return (row * window->x.width - window->pad_left) * window->x.channels + b->x_at;
}

FT_INLINE void get_gradients(form f, const ft_gradient *g, size_t at, vw *dy) {
  FT_UNROLL for (uint32_t v = 0; v < f.vectors; v++)
    dy[v] = ft_get(g->dy + at + FT_WIDTH * v, f.partial, g->lanes);
}

/* Outputs whose windows are partly outside come before and behind the others. */
FT_INLINE void add_bordered_row(form f, sums *sum, const ft_gradient *g, const ft_block *b,
                                size_t x, size_t dy) {
  const size_t pace = (size_t)g->conv->window.stride_w * g->conv->window.x.channels;
  const size_t channels = g->y.channels;
  vw gradients[2];
  uint32_t ox = b->begin;
#define OUTPUTS(until, statement)                                                                  \
  for (; ox < until; ox++) {                                                                       \
    get_gradients(f, g, dy + ox * channels, gradients);                                            \
    statement;                                                                                     \
  }
  OUTPUTS(b->inner, add_border_term(f, sum, g, b, ox, x + ox * pace, gradients))
  OUTPUTS(b->inner_end, add_term(f, sum, g, x + ox * pace, gradients, 0, f.size))
  OUTPUTS(b->end, add_border_term(f, sum, g, b, ox, x + ox * pace, gradients))
#undef OUTPUTS
}

FT_INLINE void add_inner_row(form f, sums *sum, const ft_gradient *g, size_t x, size_t dy,
                             size_t pace, uint32_t count) {
  vw gradients[2];
  for (; count; count--, x += pace, dy += g->y.channels) {
    get_gradients(f, g, dy, gradients);
    add_term(f, sum, g, x, gradients, 0, f.size);
  }
}

FT_INLINE void add_rows(form f, sums *sum, const ft_gradient *g, const ft_block *b,
                        const ft_terms *t) {
  const ft_window *window = &g->conv->window;
  const size_t pace = (size_t)window->stride_w * window->x.channels;
  const size_t x_row = (size_t)window->stride_h * window->x.width * window->x.channels;
  const size_t dy_row = (size_t)g->y.width * g->y.channels;
  for (uint32_t image = t->image; image < t->image + t->images; image++) {
    size_t x = row_start(g, b, image, t->row, t->tap);
    size_t dy = ((size_t)image * g->y.height + t->row) * dy_row;
    for (uint32_t rows = t->rows; rows; rows--, x += x_row, dy += dy_row)
      if (f.bordered)
        add_bordered_row(f, sum, g, b, x, dy);
      else
        add_inner_row(f, sum, g, x + b->begin * pace, dy + b->begin * g->y.channels, pace,
                      b->end - b->begin);
  }
}

/* Of one window, only what the tap named by the code gave counts: lane by lane, dy or +0. */
FT_INLINE void add_window(form f, sums *sum, const ft_gradient *g, const ft_block *b,
                          uint32_t image, uint32_t py, uint32_t px, uint32_t kernel_row,
                          const vw *dy, const vwi *codes) {
  const ft_window *window = &g->conv->window;
  const size_t pace = (size_t)window->stride_w * window->x.channels;
  for (uint32_t ty = 0; ty < g->conv->pool_h; ty++) {
    const uint32_t oy = py * g->conv->pool_h + ty;
    if (oy * window->stride_h + kernel_row - window->pad_top >= window->x.height) continue;
    const size_t x = row_start(g, b, image, oy, kernel_row);
    for (uint32_t tx = 0; tx < g->conv->pool_w; tx++) {
      const uint32_t ox = px * g->conv->pool_w + tx;
      const int32_t tap = (int32_t)(ty * g->conv->pool_w + tx);
      vw taken[2];
      FT_UNROLL for (uint32_t v = 0; v < f.vectors; v++)
        taken[v] = FT_W(select)(codes[v] == tap, dy[v], FT_W(set)(0.0f));
      if (ox >= b->inner && ox < b->inner_end)
        add_term(f, sum, g, x + ox * pace, taken, 0, f.size);
      else if (ox >= b->begin && ox < b->end)
        add_border_term(f, sum, g, b, ox, x + ox * pace, taken);
    }
  }
}

/* The same of a window of 2 x 2 taps, all inside for all elements: each lane takes its own x. */
FT_INLINE void add_window_2x2(form f, sums *sum, const ft_gradient *g, size_t at, size_t row,
                              size_t pace, const vw *dy, const vwi *codes) {
  FT_UNROLL for (uint32_t e = 0; e < f.size; e++) {
    const float *x = g->x + (at + e);
    const float taps[4] = {x[0], x[pace], x[row], x[row + pace]};
    FT_UNROLL for (uint32_t v = 0; v < f.vectors; v++)
      sum->part[e][v] += ft_choose(taps, codes[v]) * dy[v];
  }
}

/* Are all taps of these windows inside, in as far as that is a question of rows? */
FT_INLINE int rows_are_inside(const ft_gradient *g, uint32_t py, uint32_t kernel_row) {
  const ft_window *window = &g->conv->window;
  const uint32_t first = py * g->conv->pool_h * window->stride_h + kernel_row;
  const uint32_t last = first + (g->conv->pool_h - 1) * window->stride_h;
  return first >= window->pad_top && last - window->pad_top < window->x.height;
}

FT_INLINE void add_window_row(form f, sums *sum, const ft_gradient *g, const ft_block *b,
                              uint32_t image, uint32_t py, uint32_t kernel_row) {
  const ft_conv *conv = g->conv;
  const ft_window *window = &conv->window;
  const uint32_t bits = ft_code_bits(conv->pool_h * conv->pool_w);
  const uint32_t sample = g->y.height * g->y.width * g->y.channels;
  const uint32_t *words = g->codes + (size_t)image * ft_words_of(sample, bits);
  const size_t pace = (size_t)window->stride_w * window->x.channels;
  const size_t row = (size_t)window->stride_h * window->x.width * window->x.channels;
  const size_t x = row_start(g, b, image, py * conv->pool_h, kernel_row);
  const int inside = !f.by_channel && conv->pool_h == 2 && conv->pool_w == 2 &&
                     rows_are_inside(g, py, kernel_row);
  uint32_t at = py * g->y.width * g->y.channels;
  for (uint32_t px = 0; px < g->y.width; px++, at += g->y.channels) {
    vw dy[2];
    vwi codes[2];
    get_gradients(f, g, (size_t)image * sample + at, dy);
    FT_UNROLL for (uint32_t v = 0; v < f.vectors; v++)
      codes[v] = ft_get_codes(words, at + g->first_column + FT_WIDTH * v, bits, f.partial,
                              g->lanes);
    if (inside && 2 * px >= b->inner && 2 * px + 2 <= b->inner_end)
      add_window_2x2(f, sum, g, x + 2 * px * pace, row, pace, dy, codes);
    else
      add_window(f, sum, g, b, image, py, px, kernel_row, dy, codes);
  }
}

FT_INLINE void add_windows(form f, sums *sum, const ft_gradient *g, const ft_block *b,
                           const ft_terms *t) {
  for (uint32_t image = t->image; image < t->image + t->images; image++)
    for (uint32_t py = t->row; py < t->row + t->rows; py++)
      add_window_row(f, sum, g, b, image, py, t->tap);
}

/* ---- one function for each form of block --------------------------------------------------- */

FT_INLINE void add_block(form f, const ft_gradient *g, const ft_block *b, const ft_terms *t,
                         float *tile) {
  sums sum;
  FT_UNROLL for (uint32_t e = 0; e < f.size; e++)
    FT_UNROLL for (uint32_t v = 0; v < f.vectors; v++)
      sum.part[e][v] = FT_W(load)(tile + e * FT_TILE_COLUMNS + FT_WIDTH * v);
  if (f.pooled)
    add_windows(f, &sum, g, b, t);
  else
    add_rows(f, &sum, g, b, t);
  FT_UNROLL for (uint32_t e = 0; e < f.size; e++)
    FT_UNROLL for (uint32_t v = 0; v < f.vectors; v++)
      FT_W(store)(tile + e * FT_TILE_COLUMNS + FT_WIDTH * v, sum.part[e][v]);
}

#define ADD(name, size, ...)                                                                       \
  FT_BAND void name##size(const ft_gradient *g, const ft_block *b, const ft_terms *t,              \
                          float *tile) {                                                           \
    const form f = {size, __VA_ARGS__};                                                            \
    add_block(f, g, b, t, tile);                                                                   \
  }
#define UP_TO_3(name, ...) ADD(name, 1, __VA_ARGS__) ADD(name, 2, __VA_ARGS__)                     \
  ADD(name, 3, __VA_ARGS__)
#define UP_TO_6(name, ...) UP_TO_3(name, __VA_ARGS__) ADD(name, 4, __VA_ARGS__)                    \
  ADD(name, 5, __VA_ARGS__) ADD(name, 6, __VA_ARGS__)
#define THREE_WIDTHS(up_to, name, ...)                                                             \
  up_to(name##_two_, 2, 0, __VA_ARGS__) up_to(name##_one_, 1, 0, __VA_ARGS__)                      \
  UP_TO_3(name##_few_, 1, 1, __VA_ARGS__)
THREE_WIDTHS(UP_TO_6, inner, 0, 0, 0)
THREE_WIDTHS(UP_TO_6, bordered, 0, 1, 0)
THREE_WIDTHS(UP_TO_6, pooled, 0, 1, 1)
THREE_WIDTHS(UP_TO_3, channels, 1, 1, 0)
THREE_WIDTHS(UP_TO_3, pooled_channels, 1, 1, 1)
#undef THREE_WIDTHS
#undef ADD
#undef UP_TO_3
#undef UP_TO_6

ft_add_fn *ft_add_of(const ft_gradient *g, const ft_block *b) {
#define THREE(name) {name##1, name##2, name##3}
#define SIX(name) {name##1, name##2, name##3, name##4, name##5, name##6}
  static ft_add_fn *const all[5][3][6] = {
      {SIX(inner_two_), SIX(inner_one_), THREE(inner_few_)},
      {SIX(bordered_two_), SIX(bordered_one_), THREE(bordered_few_)},
      {SIX(pooled_two_), SIX(pooled_one_), THREE(pooled_few_)},
      {THREE(channels_two_), THREE(channels_one_), THREE(channels_few_)},
      {THREE(pooled_channels_two_), THREE(pooled_channels_one_), THREE(pooled_channels_few_)},
  };
#undef THREE
#undef SIX
  const int bordered = b->begin < b->inner || b->inner_end < b->end;
  const int kind = g->by_channel ? 3 + !!g->codes : g->codes ? 2 : bordered;
  return all[kind][g->vectors == 2 ? 0 : g->lanes == FT_WIDTH ? 1 : 2][b->size - 1];
}

#endif
