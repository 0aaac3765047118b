/* ft_conv_dx.c: convolutions back to their input.
 *
 * Each element of dx gathers what it gave: eight lanes over the columns of one tap after the other,
 * several elements at a time, and one tree at the end.
 */
#include "ft_taps.h"

#ifndef FT_SMALL

/* One group; the pointers stand at its first channel or column. */
typedef struct {
  const float *dy, *w;
  float *dx;
  uint32_t depth, columns, out;   /* of dx and of dy in the group; floats of a row of w */
} operands;

/* ---- the lanes of some elements ------------------------------------------------------------ */

/* Channels [i, i + FT_WIDTH / positions) of one or two positions, which have the same taps. */
FT_INLINE vw back_block(uint32_t positions, const ft_area *area, const operands *p, uint32_t i,
                        const float *const *dy) {
  const uint32_t channels = FT_WIDTH / positions;
  ft_lanes sum[FT_WIDTH], gradient[2];
  FT_UNROLL for (uint32_t k = 0; k < FT_WIDTH; k++) sum[k] = ft_no_lanes();
  const float *w_row = p->w + area->w_at + (size_t)i * p->out;
  ptrdiff_t row = 0;
#define TERMS(get)                                                                                 \
  {                                                                                                \
    FT_UNROLL for (uint32_t r = 0; r < positions; r++) gradient[r] = get(dy[r] + tap + o);         \
    FT_UNROLL for (uint32_t k = 0; k < channels; k++) {                                            \
      const ft_lanes weight = get(w + (size_t)k * p->out + o);                                     \
      FT_UNROLL for (uint32_t r = 0; r < positions; r++)                                           \
        ft_add_products(&sum[r * channels + k], weight, gradient[r]);                              \
    }                                                                                              \
  }
#define GET_LAST(from) ft_lanes_first(from, p->columns - o)
  for (uint32_t ky = 0; ky < area->tap_rows; ky++) {
    const float *w = w_row;
    ptrdiff_t tap = row;
    for (uint32_t kx = 0; kx < area->taps; kx++) {
      uint32_t o = 0;
      for (; o + 8 <= p->columns; o += 8) TERMS(ft_lanes_at)
      if (o < p->columns) TERMS(GET_LAST)
      tap += area->from_tap;
      w += area->w_tap;
    }
    row += area->from_tap_row;
    w_row += area->w_tap_row;
  }
#undef TERMS
#undef GET_LAST
  return ft_trees(sum);
}

/* A single position. */
FT_BAND void back_one(const ft_area *area, operands p) {
  const float *const dy[1] = {p.dy + area->from_at};
  for (uint32_t i = 0; i < p.depth; i += FT_WIDTH) {
    const uint32_t start = ft_block_start(i, FT_WIDTH, p.depth);
    FT_W(store)(p.dx + area->to_at + start, back_block(1, area, &p, start, dy));
  }
}

/* Two positions at a time; the last one of an odd number is computed twice. */
FT_BAND void back_pairs(const ft_area *area, operands p) {
  const uint32_t half = FT_WIDTH / 2;
  for (uint32_t i = 0; i < p.depth; i += half) {
    const uint32_t start = ft_block_start(i, half, p.depth);
    ft_area_cursor at = ft_first(area);
    for (uint32_t left = ft_positions(area); left; left -= left > 1 ? 2 : 1) {
      const ft_area_cursor one = at;
      if (left > 1) ft_advance(area, &at);
      const float *const dy[2] = {p.dy + one.from, p.dy + at.from};
      ft_store_halves(p.dx + one.to + start, p.dx + at.to + start,
                      back_block(2, area, &p, start, dy));
      ft_advance(area, &at);
    }
  }
}

/* One element. */
static float back_dot(const ft_area *area, const operands *p, const float *dy, const float *w) {
  ft_lanes sum = ft_no_lanes();
  for (uint32_t ky = 0; ky < area->tap_rows; ky++)
    for (uint32_t kx = 0; kx < area->taps; kx++) {
      const float *gradient = dy + (ptrdiff_t)ky * area->from_tap_row +
                              (ptrdiff_t)kx * area->from_tap;
      const float *weight = w + ky * area->w_tap_row + kx * area->w_tap;
      uint32_t o = 0;
      for (; o + 8 <= p->columns; o += 8)
        ft_add_products(&sum, ft_lanes_at(weight + o), ft_lanes_at(gradient + o));
      if (o < p->columns)
        ft_add_products(&sum, ft_lanes_first(weight + o, p->columns - o),
                        ft_lanes_first(gradient + o, p->columns - o));
    }
  return ft_tree(sum);
}

/* Groups of very few channels. */
FT_BAND void back_few(const ft_area *area, operands p) {
  ft_area_cursor at = ft_first(area);
  for (uint32_t left = ft_positions(area); left; left--, ft_advance(area, &at))
    for (uint32_t i = 0; i < p.depth; i++)
      p.dx[at.to + i] =
          back_dot(area, &p, p.dy + at.from, p.w + area->w_at + (size_t)i * p.out);
}

static void back_area(const ft_area *area, operands p) {
  if (ft_positions(area) == 1 && p.depth >= FT_WIDTH)
    back_one(area, p);
  else if (p.depth >= FT_WIDTH / 2)
    back_pairs(area, p);
  else
    back_few(area, p);
}

/* ---- images -------------------------------------------------------------------------------- */

static void back_group(const ft_conv *conv, const operands *p, const ft_area *area) {
  if (ft_is_depthwise(conv))
    ft_depthwise_area(area, p->dy, p->w, NULL, p->dx, conv->groups);
  else
    back_area(area, *p);
}

static void back_groups(const ft_conv *conv, const float *dy, const float *w, float *dx,
                        const ft_area *area) {
  const ft_image *x = &conv->window.x, *y = &conv->window.y;
  const uint32_t depth = x->channels / conv->groups, columns = y->channels / conv->groups;
  for (uint32_t group = 0; group < (ft_is_depthwise(conv) ? 1 : conv->groups); group++) {
    const operands p = {dy + group * columns, w + group * columns, dx + group * depth, depth,
                        columns, y->channels};
    back_group(conv, &p, area);
  }
}

void ft_conv_dx_f32(const ft_conv *conv, const float *dy, const float *w, float *dx) {
  const ft_window *window = &conv->window;
  const ft_axis vertical = ft_vertical(window), horizontal = ft_horizontal(window);
  const ft_strides from = ft_strides_of(&window->y), to = ft_strides_of(&window->x);
  const size_t w_tap = (size_t)window->x.channels / conv->groups * window->y.channels;
  const ft_strides weights = {w_tap, w_tap * window->kernel_w, 0};
  ft_span rows, across;
  for (uint32_t iy = 0; iy < vertical.in; iy = ft_inputs_behind(&vertical, &rows)) {
    rows = ft_inputs(&vertical, iy);
    for (uint32_t ix = 0; ix < horizontal.in; ix = ft_inputs_behind(&horizontal, &across)) {
      across = ft_inputs(&horizontal, ix);
      const ft_area area = ft_area_of(&rows, &across, window->x.batch, &from, &to, &weights);
      back_groups(conv, dy, w, dx, &area);
    }
  }
}

#endif
