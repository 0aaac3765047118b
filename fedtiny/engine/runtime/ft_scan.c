/* ft_scan.c: the gradients of dead weights, offered to a heap where they arise.
 *
 * Tiles of sums go over all columns before they go on to other elements, so that one walk over the
 * index accompanies each of their rows. Hardly a gradient passes the bar of a full heap: only then
 * does the walk of its row move.
 */
#include "ft_conv_terms.h"
#include "ft_grow.h"

#ifndef FT_SMALL

/* Some neighbouring rows of the weights, and where in the index each of them is. */
typedef struct {
  uint32_t first, count;
  ft_walk walk[FT_TILE_ELEMENTS];
} rows;

static rows rows_of(const ft_gradient *g, const ft_tile *tile, ft_walk *walk) {
  const uint32_t run = g->conv->window.kernel_w * g->depth;
  rows r;
  r.first = tile->row * run + tile->first;
  r.count = tile->rows * (tile->end - tile->first);
  for (uint32_t k = 0; k < r.count; k++) {
    ft_is_dead(walk, (r.first + k) * g->conv->window.y.channels);
    r.walk[k] = *walk;
  }
  return r;
}

static int any_passes(const float *g, uint32_t bar) {
  uint32_t passing = 0;
  for (uint32_t c = 0; c < FT_TILE_COLUMNS; c++) passing |= ft_magnitude(g[c]) >= bar;
  return passing != 0;
}

/* g[0] is the gradient of weight `at`. */
static void offer_row(ft_heap *heap, ft_walk *walk, const float *g, uint32_t count, uint32_t at) {
  for (uint32_t c = 0; c < count; c++)
    if (ft_magnitude(g[c]) >= ft_heap_bar(heap) && ft_is_dead(walk, at + c))
      ft_heap_offer(heap, at + c, g[c]);
}

/* All columns of the tile's rows. */
static void scan_rows(const ft_gradient *g, const ft_tile *tile, rows *r, ft_heap *heap) {
  float sums[FT_TILE_ELEMENTS * FT_TILE_COLUMNS];
  const uint32_t columns = g->conv->window.y.channels;
  ft_fresh fresh;
  for (uint32_t o = 0; o < columns; o += fresh.count) {
    ft_gradient band = *g;
    fresh = ft_take_band(&band, 0, o, columns, 0);
    ft_sum_tile(&band, tile, sums);
    for (uint32_t k = 0; k < r->count; k++) {
      const float *sum = sums + k * FT_TILE_COLUMNS;
      if (any_passes(sum, ft_heap_bar(heap)))
        offer_row(heap, &r->walk[k], sum + fresh.first, fresh.count,
                  (r->first + k) * columns + o);
    }
  }
}

/* Samples of one pixel are the pixels of one sample. */
static ft_conv in_a_row(const ft_conv *conv) {
  ft_conv row = *conv;
  ft_image *x = &row.window.x, *y = &row.window.y;
  if (x->height * x->width == 1 && y->height * y->width == 1 && row.window.kernel_h == 1 &&
      row.window.kernel_w == 1)
    x->width = y->width = x->batch, x->batch = y->batch = row.window.stride_w = 1;
  return row;
}

void ft_scan_f32(const ft_conv *conv, const float *x, const float *dy, const ft_live *w,
                 ft_heap *heap) {
  const ft_conv row = in_a_row(conv);
  const ft_gradient g = {&row, x, dy, NULL, row.window.y, row.window.x.channels, 0, 0, 0, 0};
  ft_walk walk = ft_first_dead(w);
  for (ft_tile tile = ft_tile_at(&g, 0, 0); tile.rows; tile = ft_tile_behind(&g, &tile)) {
    rows r = rows_of(&g, &tile, &walk);
    scan_rows(&g, &tile, &r, heap);
  }
}

#endif
