/* ft_conv_terms.h: a convolution's gradient, tile by tile; private to those who use it where it
 * arises. */
#ifndef FT_CONV_TERMS_H
#define FT_CONV_TERMS_H

#include "ft_taps.h"

#ifndef FT_SMALL

enum { FT_TILE_COLUMNS = 2 * FT_WIDTH };

/* Some columns of a gradient. The pointers stand at the group's first channel and at the first of
 * the columns. Pooled, dy and codes are those of the windows, of which y is the image. */
typedef struct {
  const ft_conv *conv;
  const float *x, *dy;
  const uint32_t *codes;   /* NULL if not pooled; of all columns */
  ft_image y;
  uint32_t depth, first_column, vectors, lanes;
  int by_channel;          /* depthwise: a column is a channel of x */
} ft_gradient;

/* `size` consecutive elements of a kernel row: at most six, or three if the columns are channels or
 * less than a vector. The first reads x_at floats behind the start of the row. Outputs in
 * [begin, end) meet some of their taps, those in [inner, inner_end) all. */
typedef struct { uint32_t first, size, x_at, begin, inner, inner_end, end; } ft_block;

/* Some rows of dy, as met by one row of the kernel. */
typedef struct { uint32_t image, images, row, rows, tap; } ft_terms;

/* Adds the terms to a block's sums, which stand in rows of FT_TILE_COLUMNS. */
typedef void ft_add_fn(const ft_gradient *g, const ft_block *b, const ft_terms *t, float *sums);

/* The function for blocks of this form. */
ft_add_fn *ft_add_of(const ft_gradient *g, const ft_block *b);

/* ---- tiles: ft_conv_update.c --------------------------------------------------------------- */

enum { FT_TILE_ELEMENTS = 48 };

/* Elements [first, end) of each of some kernel rows: several whole rows, or a part of one. */
typedef struct { uint32_t row, rows, first, end; } ft_tile;

/* Columns [first, first + count) of a tile, the first of which is column o of the weights. The
 * others were computed before. */
typedef struct { uint32_t first, count, o; } ft_fresh;

/* The tile that starts there, and the one behind it; without rows behind the last. */
ft_tile ft_tile_at(const ft_gradient *g, uint32_t row, uint32_t first);
ft_tile ft_tile_behind(const ft_gradient *g, const ft_tile *tile);

/* Lets g be the columns from `at` on of a group that has `columns`: as many as a tile is wide, or
 * for a sum in lanes a vector that stays within eight. The rest of a group is computed together
 * with columns before it. */
ft_fresh ft_take_band(ft_gradient *g, uint32_t group, uint32_t at, uint32_t columns, int in_lanes);

/* The sums of one tile over all terms. */
void ft_sum_tile(const ft_gradient *g, const ft_tile *tile, float *sums);

#endif
#endif
