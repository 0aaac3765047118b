/* ft_sparse.c: convolutions by the weights that live, forward and back to the input.
 *
 * Forward the sums of one output channel, back those of one row of the weights, stay in registers
 * over all terms of a list.
 */
#include "ft_sparse.h"

#ifndef FT_SMALL

/* ---- an op under way ----------------------------------------------------------------------- */

ft_sparse ft_sparse_of(const ft_conv *conv, void *scratch) {
  ft_sparse s = {0};
  s.cut = ft_cut_of(&conv->window);
  s.x = scratch;
  s.y = s.x + (size_t)s.cut.channels * s.cut.x_plane;
  s.places = (uint32_t *)(void *)(s.x + FT_TILE_ROOM);
  s.room = s.places + FT_TILE_PLACES;
  return s;
}

void ft_open_patch(ft_sparse *s, uint32_t k) {
  s->patch = ft_patch_at(&s->cut, k);
  s->channel = FT_NO_CHANNEL;
  ft_put_places(&s->cut, &s->patch, s->places);
}

void ft_need_x(ft_sparse *s, int64_t channel, uint32_t first, const float *x) {
  if (s->channel == channel) return;
  ft_gather_x(&s->cut, &s->patch, (uint32_t)channel, first, x, s->x);
  s->channel = channel;
}

/* ---- sums of lists ------------------------------------------------------------------------- */

enum { BLOCK = FT_WIDTH == 8 ? 8 : 4 };

/* `size` positions of all lists: forward their places are those of the terms, back those of the
 * sums; the others follow each other. Positions descend, as tiles do on the way back. */
FT_INLINE void sum_block(int back, uint32_t size, const ft_entry *e, const ft_entry *end,
                         float *sums, const float *terms, const uint32_t *places) {
  uint32_t place[8];
  FT_UNROLL for (uint32_t k = 0; k < size; k++) place[k] = places[k];
  while (e < end) {
    float *to = sums + e->at;
    const ft_entry *next = e + 1 + e->is.terms;
    ft_lanes sum[8];
    FT_UNROLL for (uint32_t k = 0; k < size; k++)
      sum[k] = ft_lanes_at(to + (back ? place[k] : 8 * k));
    while (++e < next) {
      const float *from = terms + e->at, weight = e->is.weight;
      FT_UNROLL for (uint32_t k = 0; k < size; k++) {
        const ft_lanes term = ft_lanes_at(from + (back ? 8 * k : place[k]));
        FT_UNROLL for (int p = 0; p < FT_PARTS; p++) sum[k].part[p] += term.part[p] * weight;
      }
    }
    FT_UNROLL for (uint32_t k = 0; k < size; k++)
      ft_put_lanes(to + (back ? place[k] : 8 * k), sum[k]);
  }
}

#define SUMS(name, back)                                                                           \
  FT_BAND void name(const ft_sparse *s) {                                                          \
    const ft_entry *e = s->room, *end = e + s->decoded.size;                                       \
    uint32_t p = ft_patch_positions(&s->patch);                                                    \
    BLOCKS(back, BLOCK)                                                                            \
    BLOCKS(back, 4)                                                                                \
    BLOCKS(back, 2)                                                                                \
    BLOCKS(back, 1)                                                                                \
  }
#define BLOCKS(back, block)                                                                        \
  while (p >= block) {                                                                             \
    p -= block;                                                                                    \
    sum_block(back, block, e, end, back ? s->x : s->y + 8 * p, back ? s->y + 8 * p : s->x,         \
              s->places + p);                                                                      \
  }
SUMS(sum_forward, 0)
SUMS(sum_back, 1)
#undef BLOCKS
#undef SUMS

typedef void add_fn(ft_sparse *s, float *image);

/* Decodes the weights and lets each part of them add to its sums; those of the last call again, if
 * they were all. */
static void add_lists(ft_sparse *s, const ft_live *live, ft_decode_fn *decode, add_fn *add,
                      float *image) {
  ft_walk walk = ft_walk_of(live);
  uint32_t parts = 0;
  if (s->is_whole) {
    add(s, image);
    return;
  }
  for (; ft_is_left(&walk); parts++) {
    s->decoded = decode(s, &walk);
    add(s, image);
  }
  s->is_whole = parts == 1;
}

/* ---- forward ------------------------------------------------------------------------------- */

static void start_y(const ft_sparse *s, const float *b) {
  float *plane = s->y;
  for (uint32_t o = 0; o < s->cut.window->y.channels; o++, plane += s->cut.y_plane)
    for (uint32_t i = 0; i < s->cut.y_plane; i += FT_WIDTH)
      FT_W(store)(plane + i, FT_W(set)(b ? b[o] : 0.0f));
}

static void add_to_y(ft_sparse *s, float *x) {
  ft_need_x(s, s->decoded.channel, 0, x);
  sum_forward(s);
}

void ft_sparse_conv_f32(const ft_conv *conv, const float *x, const ft_live *live, const float *b,
                        float *y, void *scratch) {
  ft_sparse s = ft_sparse_of(conv, scratch);
  const uint32_t patches = ft_patches(&s.cut);
  for (uint32_t i = 0; i < patches; i++) {
    ft_open_patch(&s, i);
    start_y(&s, b);
    add_lists(&s, live, ft_decode_columns, add_to_y, (float *)(uintptr_t)x);
    ft_scatter_y(&s.cut, &s.patch, s.y, y);
  }
}

/* ---- back to the input --------------------------------------------------------------------- */

static void put_dx(const ft_sparse *s, float *dx) {
  if (s->channel != FT_NO_CHANNEL)
    ft_scatter_x(&s->cut, &s->patch, (uint32_t)s->channel, s->x, dx);
}

/* The first row of a tile that an earlier one may have added to: it is below, if tiles have whole
 * rows of all channels. */
static uint32_t first_reached(const ft_sparse *s) {
  const ft_window *w = s->cut.window;
  const int is_whole = s->cut.columns == w->y.width && s->cut.channels == w->x.channels;
  return is_whole ? s->patch.rows * s->cut.stride_h : 0;
}

static void add_to_dx(ft_sparse *s, float *dx) {
  if (s->channel != s->decoded.channel) put_dx(s, dx);
  ft_need_x(s, s->decoded.channel, first_reached(s), dx);
  sum_back(s);
}

/* The tiles descend, since of two tiles that add to one place the lower one, or the one to the
 * right, has the taps that come first. */
void ft_sparse_conv_dx_f32(const ft_conv *conv, const float *dy, const ft_live *live, float *dx,
                           void *scratch) {
  const ft_image *image = &conv->window.x;
  ft_sparse s = ft_sparse_of(conv, scratch);
  memset(dx, 0, (size_t)image->batch * image->height * image->width * image->channels * sizeof *dx);
  for (uint32_t i = ft_patches(&s.cut); i-- > 0;) {
    ft_open_patch(&s, i);
    ft_gather_y(&s.cut, &s.patch, dy, s.y);
    add_lists(&s, live, ft_decode_rows, add_to_dx, dx);
    put_dx(&s, dx);
  }
}

#endif
