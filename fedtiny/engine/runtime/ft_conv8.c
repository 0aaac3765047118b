/* ft_conv8.c: int8 convolutions, in exact integers, so that any order of the terms will do.
 *
 * A sample's numbers, less their zero, are widened to 16 bits in an image with its padding: then the
 * taps of a row of the window are one run of terms, which asks nothing about borders. The weights
 * are widened too, in groups of columns, two terms side by side.
 */
#include "ft_pairs.h"

#ifndef FT_SMALL

/* The room: the weights of all groups, what their columns start and end with, the sample. */
typedef struct {
  const ft_conv *conv;
  ft_window window;        /* over the padded sample: nothing is outside */
  int16_t *w, *x;
  int32_t *bias;           /* of all groups' places */
  float *unit;
  uint32_t *taps;          /* where the terms of a position stand */
  int by_channel;          /* a column has the channel of its own number alone */
  uint32_t groups;         /* of columns */
  uint32_t columns, depth; /* of one of conv->groups */
  uint32_t rows, runs, pairs; /* rows of the window; runs in a row; pairs in a run */
} plan;

static uint32_t ceil_div(uint32_t a, uint32_t b) { return (a + b - 1) / b; }

static size_t lines(size_t bytes) { return (bytes + 63) / 64 * 64; }

/* Samples of one pixel are the pixels of one sample. */
static ft_window in_a_row(ft_window w) {
  if (w.x.height * w.x.width * w.y.height * w.y.width == 1 && w.kernel_h * w.kernel_w == 1)
    w.x.width = w.y.width = w.x.batch, w.x.batch = w.y.batch = w.stride_w = 1;
  return w;
}

/* Without its room. */
static plan plan_of(const ft_conv *conv) {
  plan p = {0};
  ft_window *w = &p.window;
  p.conv = conv;
  *w = in_a_row(conv->window);
  w->x.height = (w->y.height - 1) * w->stride_h + w->kernel_h;
  w->x.width = (w->y.width - 1) * w->stride_w + w->kernel_w;
  p.by_channel = conv->groups == w->x.channels && conv->groups == w->y.channels;
  p.columns = p.by_channel ? w->y.channels : w->y.channels / conv->groups;
  p.depth = w->x.channels / conv->groups;
  p.groups = (p.by_channel ? 1 : conv->groups) * ceil_div(p.columns, FT_GROUP);
  p.rows = w->kernel_h;
  p.runs = conv->groups == 1 ? 1 : w->kernel_w;
  p.pairs = ceil_div(conv->groups == 1 ? w->kernel_w * p.depth : p.depth, 2);
  if (p.by_channel) p.rows = p.runs = 1, p.pairs = ceil_div(w->kernel_h * w->kernel_w, 2);
  return p;
}

static size_t group_terms(const plan *p) {
  return (size_t)p->rows * p->runs * p->pairs * 2 * FT_GROUP;
}

static size_t sample_terms(const plan *p) {
  const ft_image *x = &p->window.x;
  return (size_t)x->height * x->width * x->channels + 2 * FT_GROUP;
}

static uint32_t taps_of(const plan *p) { return p->by_channel ? 2 * p->pairs : p->rows * p->runs; }

size_t ft_conv8_room(const ft_conv *conv) {
  const plan p = plan_of(conv);
  return lines(p.groups * group_terms(&p) * 2) + lines(sample_terms(&p) * 2) +
         2 * lines((size_t)p.groups * FT_GROUP * 4) + lines((size_t)taps_of(&p) * 4);
}

static void *taken(uint8_t **room, size_t bytes) {
  void *start = *room;
  *room += lines(bytes);
  return start;
}

static void take_room(plan *p, void *room) {
  uint8_t *at = room;
  p->w = taken(&at, p->groups * group_terms(p) * 2);
  p->x = taken(&at, sample_terms(p) * 2);
  p->bias = taken(&at, (size_t)p->groups * FT_GROUP * 4);
  p->unit = taken(&at, (size_t)p->groups * FT_GROUP * 4);
  p->taps = taken(&at, (size_t)taps_of(p) * 4);
}

/* ---- weights ------------------------------------------------------------------------------- */

/* A group's columns of a row of weights. What stands beside less than a group of them is never
 * used, but the weights end somewhere. */
FT_INLINE ft_pairs widened(const int8_t *row, int is_half) {
  ft_numbers q;
  memcpy(&q, row, sizeof q);
  return ft_widened(is_half ? ft_spread_half(q) : q);
}

static ft_pairs widened_last(const int8_t *row, const int8_t *end, int is_half) {
  int8_t q[FT_GROUP] = {0};
  memcpy(q, row, end - row < FT_GROUP ? (size_t)(end - row) : FT_GROUP);
  return widened(q, is_half);
}

FT_INLINE void put_pairs(ft_pairs first, ft_pairs second, int16_t *to) {
  const ft_group_pairs two = ft_interleaved(first, second);
  memcpy(to, &two.half[0], sizeof two.half[0]);
  memcpy(to + FT_GROUP, &two.half[1], sizeof two.half[1]);
}

/* `terms` rows of a group, `stride` apart, as pairs; where they end. */
static int16_t *put_run(const int8_t *row, uint32_t terms, size_t stride, const int8_t *end,
                        int is_half, int16_t *to) {
  const ft_pairs none = {0};
  uint32_t k = 0;
  for (; k + 1 < terms && stride + FT_GROUP <= (size_t)(end - row); k += 2, row += 2 * stride) {
    put_pairs(widened(row, is_half), widened(row + stride, is_half), to);
    to += 2 * FT_GROUP;
  }
  for (; k < terms; k += 2, row += 2 * stride, to += 2 * FT_GROUP)
    put_pairs(widened_last(row, end, is_half),
              k + 1 < terms ? widened_last(row + stride, end, is_half) : none, to);
  return to;
}

/* The first column of a group, how many it has, and which channel of x they start at. */
typedef struct { uint32_t first, count, channel; } columns;

static columns columns_of(const plan *p, uint32_t group) {
  const uint32_t each = ceil_div(p->columns, FT_GROUP), at = group % each * FT_GROUP;
  const uint32_t left = p->columns - at, count = left < FT_GROUP ? left : FT_GROUP;
  const columns c = {group / each * p->columns + at, count,
                     p->by_channel ? at : group / each * p->depth};
  return c;
}

/* Whose columns fit in the first half. */
static int is_half(const plan *p, const columns *c) {
  return !p->by_channel && c->count <= FT_SUMS;
}

static void put_weights(const plan *p, const int8_t *w) {
  const ft_window *win = &p->window;
  const size_t stride = win->y.channels;
  const int8_t *end = w + (size_t)win->kernel_h * win->kernel_w * p->depth * stride;
  int16_t *to = p->w;
  for (uint32_t group = 0; group < p->groups; group++) {
    const columns c = columns_of(p, group);
    const uint32_t taps = win->kernel_h * win->kernel_w;
    const uint32_t terms = p->by_channel ? taps : taps / (p->rows * p->runs) * p->depth;
    for (uint32_t run = 0; run < p->rows * p->runs; run++)
      to = put_run(w + run * terms * stride + c.first, terms, stride, end, is_half(p, &c), to);
  }
}

/* ft_bias8, a vector at a time. */
FT_INLINE void put_bias(const float *b, const float *unit, int32_t *bias) {
  const vw quotient = FT_W(load)(b) / FT_W(load)(unit), most = FT_W(set)(0x1p30f);
  const vw v = FT_W(min)(FT_W(max)(quotient, -most), most);
  const vwi sign = (vwi)v & INT32_MIN, integer = (vwi)FT_W(set)(0x1p23f);
  const vw large = (vw)(sign | integer), size = (vw)((vwi)v & INT32_MAX);
  const vw whole = FT_W(select)(size < (vw)integer, (v + large) - large, v);
  const vwi q = __builtin_convertvector(whole, vwi);
  memcpy(bias, &q, sizeof q);
}

static void put_ends(const plan *p, ft_grid x, const float *step, const float *b, ft_grid y) {
  for (uint32_t group = 0; group < p->groups; group++) {
    const columns c = columns_of(p, group);
    float unit[FT_GROUP] = {0}, start[FT_GROUP] = {0};
    int32_t bias[FT_GROUP];
    memcpy(unit, step + c.first, c.count * sizeof *unit);
    if (b) memcpy(start, b + c.first, c.count * sizeof *start);
    for (uint32_t k = 0; k < FT_GROUP; k++) unit[k] = x.scale * unit[k];
    for (uint32_t k = 0; k < FT_GROUP; k += FT_WIDTH) put_bias(start + k, unit + k, bias + k);
    for (uint32_t k = 0; k < FT_GROUP; k++) {
      const uint32_t at = group * FT_GROUP + (is_half(p, &c) ? k : ft_place_of(k));
      p->bias[at] = b ? bias[k] : 0;
      p->unit[at] = unit[k] / y.scale;
    }
  }
}

/* Where the runs start; by channel, the taps, and behind the last of an odd number itself, whose
 * weight is 0. */
static void put_taps(const plan *p) {
  const ft_window *w = &p->window;
  const uint32_t across = p->by_channel ? w->kernel_w : p->runs;
  const uint32_t taps = p->by_channel ? w->kernel_h * w->kernel_w : p->rows * p->runs;
  for (uint32_t k = 0; k < taps_of(p); k++) {
    const uint32_t tap = k < taps ? k : taps - 1;
    p->taps[k] = (tap / across * w->x.width + tap % across) * w->x.channels;
  }
}

/* ---- a sample ------------------------------------------------------------------------------ */

static void widen_row(const int8_t *from, int32_t zero, int16_t *to, size_t count) {
  for (size_t i = 0; i < count; i++) to[i] = (int16_t)(from[i] - zero);
}

/* The columns of a row that are inside, and zeros beside them. */
static void put_sample(const plan *p, const int8_t *x, int32_t zero) {
  const ft_window own = in_a_row(p->conv->window);
  const ft_image *from = &own.x, *to = &p->window.x;
  const uint32_t behind = to->width - own.pad_left;
  const uint32_t inside = from->width < behind ? from->width : behind;
  const size_t left = (size_t)own.pad_left * to->channels, count = (size_t)inside * to->channels;
  const size_t row = (size_t)to->width * to->channels;
  int16_t *at = p->x;
  for (uint32_t y = 0; y < to->height; y++, at += row) {
    const uint32_t source = y - own.pad_top;
    if (source >= from->height) {
      memset(at, 0, row * sizeof *at);
      continue;
    }
    memset(at, 0, left * sizeof *at);
    widen_row(x + (size_t)source * from->width * to->channels, zero, at + left, count);
    memset(at + left + count, 0, (row - left - count) * sizeof *at);
  }
  memset(at, 0, 2 * FT_GROUP * sizeof *at);
}

/* ---- sums ---------------------------------------------------------------------------------- */

enum { BLOCK = 6, CHANNEL_BLOCK = 3 }; /* positions whose sums fit in registers */

/* What a group's positions share. */
typedef struct {
  const int16_t *w;
  const int32_t *bias;
  const float *unit;
  int32_t zero;            /* of y */
  uint32_t count;          /* columns */
} shared;

FT_INLINE void start(uint32_t size, const shared *s, ft_sums sums[][2]) {
  FT_UNROLL for (uint32_t k = 0; k < size; k++)
    FT_UNROLL for (int h = 0; h < 2; h++) sums[k][h] = ft_sums_at(s->bias + FT_SUMS * h);
}

FT_INLINE void finish(uint32_t size, int halves, const shared *s, ft_sums sums[][2], int8_t *y,
                      size_t pace) {
  FT_UNROLL for (uint32_t k = 0; k < size; k++) {
    const ft_numbers q = ft_narrowed(sums[k], s->unit, s->zero);
    ft_put_numbers(y + k * pace, halves == 2 ? q : ft_gathered_half(q), s->count);
  }
}

FT_INLINE ft_group_pairs weights_at(const int16_t *w) {
  return (ft_group_pairs){{ft_pairs_at(w), ft_pairs_at(w + FT_GROUP)}};
}

/* `size` positions, each at x[k], of one group or of its first half. */
FT_INLINE void sum_block(uint32_t size, int halves, const plan *p, const shared *s, const int16_t *const *x,
                         int8_t *y, size_t pace) {
  const int16_t *w = s->w, *at[BLOCK];
  ft_sums sums[BLOCK][2];
  start(size, s, sums);
  for (uint32_t run = 0; run < p->rows * p->runs; run++) {
    FT_UNROLL for (uint32_t k = 0; k < size; k++) at[k] = x[k] + p->taps[run];
    for (uint32_t i = 0; i < 2 * p->pairs; i += 2, w += 2 * FT_GROUP) {
      const ft_group_pairs weights = weights_at(w);
      FT_UNROLL for (uint32_t k = 0; k < size; k++) {
        const ft_pairs terms = ft_pair_at(at[k] + i);
        FT_UNROLL for (int h = 0; h < halves; h++)
          sums[k][h] += ft_products(terms, weights.half[h]);
      }
    }
  }
  finish(size, halves, s, sums, y, pace);
}

/* The same where each column has a channel of its own, at which x[k] stands. */
FT_INLINE void sum_channels(uint32_t size, int halves, const plan *p, const shared *s,
                            const int16_t *const *x, int8_t *y, size_t pace) {
  const uint32_t *tap = p->taps;
  const int16_t *w = s->w;
  ft_sums sums[CHANNEL_BLOCK][2];
  start(size, s, sums);
  for (uint32_t i = 0; i < p->pairs; i++, tap += 2, w += 2 * FT_GROUP) {
    const ft_group_pairs weights = weights_at(w);
    FT_UNROLL for (uint32_t k = 0; k < size; k++) {
      const ft_group_pairs terms =
          ft_interleaved(ft_pairs_at(x[k] + tap[0]), ft_pairs_at(x[k] + tap[1]));
      FT_UNROLL for (int h = 0; h < halves; h++)
        sums[k][h] += ft_products(terms.half[h], weights.half[h]);
    }
  }
  finish(size, halves, s, sums, y, pace);
}

typedef void block_fn(const plan *p, const shared *s, const int16_t *const *x, int8_t *y,
                      size_t pace);

#define BLOCK_OF(name, kernel, size, halves)                                                       \
  FT_BAND void name##_##size(const plan *p, const shared *s, const int16_t *const *x, int8_t *y,   \
                             size_t pace) {                                                        \
    kernel(size, halves, p, s, x, y, pace);                                                        \
  }
BLOCK_OF(whole, sum_block, 6, 2)
BLOCK_OF(whole, sum_block, 3, 2)
BLOCK_OF(whole, sum_block, 1, 2)
BLOCK_OF(half, sum_block, 6, 1)
BLOCK_OF(half, sum_block, 3, 1)
BLOCK_OF(half, sum_block, 1, 1)
BLOCK_OF(channels, sum_channels, 3, 2)
BLOCK_OF(channels, sum_channels, 1, 2)
#undef BLOCK_OF

/* The one for the next block of so many positions, and its size. */
static block_fn *block_of(const plan *p, const shared *s, uint32_t left, uint32_t *size) {
  const int is_whole = s->count > FT_SUMS;
  *size = left >= BLOCK && !p->by_channel ? BLOCK : left >= 3 ? 3 : 1;
  if (p->by_channel) return *size == 3 ? channels_3 : channels_1;
  if (*size == BLOCK) return is_whole ? whole_6 : half_6;
  if (*size == 3) return is_whole ? whole_3 : half_3;
  return is_whole ? whole_1 : half_1;
}

/* All positions of a sample, of one group. */
static void sum_group(const plan *p, const shared *s, const int16_t *x, int8_t *y) {
  const ft_window *w = &p->window;
  const size_t column = (size_t)w->stride_w * w->x.channels, pace = w->y.channels;
  const size_t row = (size_t)w->stride_h * w->x.width * w->x.channels;
  const size_t turn = row - w->y.width * column; /* modulo 2^64 */
  const uint32_t positions = w->y.height * w->y.width;
  const int16_t *at[BLOCK];
  size_t from = 0;
  uint32_t ox = 0, block;
  for (uint32_t o = 0; o < positions; o += block, y += block * pace) {
    block_fn *sum = block_of(p, s, positions - o, &block);
    for (uint32_t k = 0; k < block; k++) {
      at[k] = x + from, from += column;
      if (++ox == w->y.width) ox = 0, from += turn;
    }
    sum(p, s, at, y, pace);
  }
}

void ft_conv8(const ft_conv *conv, const int8_t *x, ft_grid x_grid, const int8_t *w,
              const float *step, const float *b, int8_t *y, ft_grid y_grid, void *room) {
  plan p = plan_of(conv);
  const ft_window own = in_a_row(conv->window);
  const size_t x_sample = (size_t)own.x.height * own.x.width * own.x.channels;
  const size_t y_sample = (size_t)own.y.height * own.y.width * own.y.channels;
  take_room(&p, room);
  put_weights(&p, w);
  put_ends(&p, x_grid, step, b, y_grid);
  put_taps(&p);
  for (uint32_t n = 0; n < own.x.batch; n++, x += x_sample, y += y_sample) {
    put_sample(&p, x, x_grid.zero);
    for (uint32_t group = 0; group < p.groups; group++) {
      const columns c = columns_of(&p, group);
      const size_t ends = (size_t)group * FT_GROUP;
      const shared s = {p.w + group * group_terms(&p), p.bias + ends, p.unit + ends, y_grid.zero,
                        c.count};
      sum_group(&p, &s, p.x + c.channel, y + c.first);
    }
  }
}

#endif
