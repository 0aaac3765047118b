/* ft_planes.h: tiles of images in planes, which the sparse kernels work on; private to them.
 *
 * A plane holds one channel of a tile, position by position, each with eight samples: the lanes of
 * every sum. An input's plane has what the taps of the tile's outputs read, +0 where that is
 * outside the image; so a weight meets all positions of its channel's plane at the same distances.
 * Of an axis along which a window has one tap, it has only the places that this tap reads.
 */
#ifndef FT_PLANES_H
#define FT_PLANES_H

#include "ft_blocks.h"

#ifndef FT_SMALL

enum { FT_TILE_ROOM = FT_TILE_FLOATS + 32, FT_TILE_PLACES = FT_TILE_FLOATS / 16 };

/* How an op is cut into tiles: their extents in groups of eight samples, in rows and columns of the
 * output and in channels of the input; and the floats of their planes. Tiles have all channels of
 * the output. One that has not all columns has one row, one that has not all rows one group. The
 * window's strides are step * stride: steps of the image from one place of a plane to the next, and
 * places from one output to the next. */
typedef struct {
  const ft_window *window;
  uint32_t groups, rows, columns, channels;
  uint32_t step_h, step_w, stride_h, stride_w;
  uint32_t x_rows, x_columns, x_plane, y_plane;
} ft_cut;

ft_cut ft_cut_of(const ft_window *window);

/* One tile: its first output, and its extents. */
typedef struct { uint32_t sample, row, column, groups, rows, columns; } ft_patch;

uint32_t ft_patches(const ft_cut *cut);
/* Of number k: samples first, then rows, then columns ascend. */
ft_patch ft_patch_at(const ft_cut *cut, uint32_t k);
FT_INLINE uint32_t ft_patch_positions(const ft_patch *p) {
  return p->groups * p->rows * p->columns;
}

/* Where in a plane of the input the first tap of each output position reads. */
void ft_put_places(const ft_cut *cut, const ft_patch *patch, uint32_t *places);

/* Between images and planes: of x the channels from `channel` on, as many as the tile has; what is
 * gathered, from the tile's row `first` on, with +0 in the rows before. */
void ft_gather_x(const ft_cut *cut, const ft_patch *patch, uint32_t channel, uint32_t first,
                 const float *x, float *planes);
void ft_scatter_x(const ft_cut *cut, const ft_patch *patch, uint32_t channel, const float *planes,
                  float *x);
void ft_gather_y(const ft_cut *cut, const ft_patch *patch, const float *y, float *planes);
void ft_scatter_y(const ft_cut *cut, const ft_patch *patch, const float *planes, float *y);

#endif
#endif
