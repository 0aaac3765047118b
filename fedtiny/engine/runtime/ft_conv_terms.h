/* ft_conv_terms.h: the terms of a convolution's gradient; private to ft_conv_update.c. */
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

#endif
#endif
