/* ft_taps.h: which positions of an image meet which taps of a window; private to convolutions.
 *
 * Positions that meet the same taps go through one loop that asks nothing about borders. Along one
 * axis they come in spans; a span of rows by one of columns, over all images, is an area. Forward
 * the positions are outputs and meet inputs; back they are inputs and meet outputs.
 */
#ifndef FT_TAPS_H
#define FT_TAPS_H

#include "ft_blocks.h"

#ifndef FT_SMALL

FT_INLINE uint32_t ft_at_most(uint32_t limit, uint32_t count) {
  return count < limit ? count : limit;
}

FT_INLINE uint32_t ft_beyond(uint32_t limit, uint32_t count) {
  return count > limit ? count - limit : 0;
}

typedef struct { uint32_t in, out, kernel, stride, pad; } ft_axis;

FT_INLINE ft_axis ft_vertical(const ft_window *window) {
  return (ft_axis){window->x.height, window->y.height, window->kernel_h, window->stride_h,
                   window->pad_top};
}

FT_INLINE ft_axis ft_horizontal(const ft_window *window) {
  return (ft_axis){window->x.width, window->y.width, window->kernel_w, window->stride_w,
                   window->pad_left};
}

/* `count` positions, each `step` behind the one before, that meet the taps `tap`, `tap + tap_step`,
 * ... (`taps` of them). The first one meets place `meets` by the first tap; the next position meets
 * one `pace` further, the next tap one `tap_pace` further. */
typedef struct {
  uint32_t first, step, count, tap, tap_step, taps, meets, pace;
  int32_t tap_pace;
} ft_span;

/* The outputs from `first` on, but before `end`. */
static inline ft_span ft_outputs(const ft_axis *axis, uint32_t first, uint32_t end) {
  ft_span span = {first, 1, 0, 0, 1, 0, 0, axis->stride, 1};
  for (uint32_t o = first; o < end; o++, span.count++) {
    const uint32_t start = o * axis->stride, behind = axis->in + axis->pad - start;
    const uint32_t tap = ft_beyond(start, axis->pad);
    const uint32_t taps = ft_at_most(axis->kernel, behind) - tap;
    if (o == first)
      span.tap = tap, span.taps = taps, span.meets = start + tap - axis->pad;
    else if (tap != span.tap || taps != span.taps)
      break;
  }
  return span;
}

/* The inputs from `first` on: one in `stride` meets the same taps. */
static inline ft_span ft_inputs(const ft_axis *axis, uint32_t first) {
  ft_span span = {first, axis->stride, 0, 0, axis->stride, 0, 0, 1, -1};
  const uint32_t reach = (axis->out - 1) * axis->stride;
  for (uint32_t i = first; i < axis->in; i += axis->stride, span.count++) {
    const uint32_t last = i + axis->pad;
    const uint32_t tap = last > reach ? last - reach : last % axis->stride;
    const uint32_t end = ft_at_most(axis->kernel, last + 1);
    const uint32_t taps = tap < end ? (end - 1 - tap) / axis->stride + 1 : 0;
    if (i == first)
      span.tap = tap, span.taps = taps, span.meets = (last - tap) / axis->stride;
    else if (tap != span.tap || taps != span.taps)
      break;
  }
  return span;
}

/* Where the span behind this one starts; axis->in if it is the last. */
static inline uint32_t ft_inputs_behind(const ft_axis *axis, const ft_span *span) {
  const uint32_t next = span->first + span->count * span->step;
  if (next < axis->in) return next;
  return next % span->step + 1 < span->step ? next % span->step + 1 : axis->in;
}

/* Floats from one column, row and image of a tensor to the next. */
typedef struct { size_t column, row, image; } ft_strides;

FT_INLINE ft_strides ft_strides_of(const ft_image *image) {
  const size_t row = (size_t)image->width * image->channels;
  return (ft_strides){image->channels, row, image->height * row};
}

/* The positions of an area stand in the tensor `to`, what they meet in the tensor `from`. */
typedef struct {
  uint32_t images, rows, columns, tap_rows, taps;
  size_t from_at, to_at, w_at;             /* of the first position and its first tap */
  ft_strides from, to;                     /* from position to position */
  ptrdiff_t from_tap_row, from_tap;        /* from tap to tap */
  size_t w_tap_row, w_tap;
} ft_area;

FT_INLINE ft_strides ft_paces(const ft_strides *tensor, uint32_t row, uint32_t column) {
  return (ft_strides){tensor->column * column, tensor->row * row, tensor->image};
}

static inline ft_area ft_area_of(const ft_span *rows, const ft_span *columns, uint32_t images,
                                 const ft_strides *from, const ft_strides *to,
                                 const ft_strides *w) {
  return (ft_area){
      .images = images,
      .rows = rows->count,
      .columns = columns->count,
      .tap_rows = rows->taps,
      .taps = columns->taps,
      .from_at = rows->meets * from->row + columns->meets * from->column,
      .to_at = rows->first * to->row + columns->first * to->column,
      .w_at = rows->tap * w->row + columns->tap * w->column,
      .from = ft_paces(from, rows->pace, columns->pace),
      .to = ft_paces(to, rows->step, columns->step),
      .from_tap_row = (ptrdiff_t)from->row * rows->tap_pace,
      .from_tap = (ptrdiff_t)from->column * columns->tap_pace,
      .w_tap_row = w->row * rows->tap_step,
      .w_tap = w->column * columns->tap_step,
  };
}

FT_INLINE uint32_t ft_positions(const ft_area *area) {
  return area->images * area->rows * area->columns;
}

/* One position after the other. */
typedef struct { size_t from, to; uint32_t column, row; } ft_area_cursor;

FT_INLINE ft_area_cursor ft_first(const ft_area *area) {
  return (ft_area_cursor){area->from_at, area->to_at, 0, 0};
}

static inline void ft_advance(const ft_area *area, ft_area_cursor *at) {
  at->from += area->from.column;
  at->to += area->to.column;
  if (++at->column < area->columns) return;
  at->column = 0;
  at->from += area->from.row - area->columns * area->from.column;
  at->to += area->to.row - area->columns * area->to.column;
  if (++at->row < area->rows) return;
  at->row = 0;
  at->from += area->from.image - area->rows * area->from.row;
  at->to += area->to.image - area->rows * area->to.row;
}

/* The next `count` positions; mostly they stand in one row. */
FT_INLINE void ft_take(const ft_area *area, ft_area_cursor *at, uint32_t count, size_t *from,
                       size_t *to) {
  if (at->column + count < area->columns) {
    FT_UNROLL for (uint32_t k = 0; k < count; k++) {
      from[k] = at->from + k * area->from.column;
      to[k] = at->to + k * area->to.column;
    }
    at->column += count;
    at->from += count * area->from.column;
    at->to += count * area->to.column;
    return;
  }
  FT_UNROLL for (uint32_t k = 0; k < count; k++) {
    from[k] = at->from;
    to[k] = at->to;
    ft_advance(area, at);
  }
}

/* How many of `left` things the next block takes, at most six: as equal as it can be. */
FT_INLINE uint32_t ft_share(uint32_t left) {
  return left >= 12 ? 6 : left > 6 ? (left + 1) / 2 : left;
}

/* ---- groups == channels: ft_depthwise.c ---------------------------------------------------- */

FT_INLINE int ft_is_depthwise(const ft_conv *conv) {
  return conv->groups > 1 && conv->groups == conv->window.x.channels &&
         conv->groups == conv->window.y.channels;
}

/* to[p,c] = b[c] (or +0), += from[q,c] * w[tap,c] over the taps of `columns` channels. */
void ft_depthwise_area(const ft_area *area, const float *from, const float *w, const float *b,
                       float *to, uint32_t columns);

#endif
#endif
