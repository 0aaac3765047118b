/* ft_sparse.h: a sparse op under way, and its weights as lists; private to the sparse kernels.
 *
 * An op goes tile by tile (ft_planes.h). Its live weights are decoded into the scratch, as many at a
 * time as find room there. Places are floats into the planes of a tile.
 */
#ifndef FT_SPARSE_H
#define FT_SPARSE_H

#include "ft_planes.h"

#ifndef FT_SMALL

enum {
  FT_SCRATCH_FLOATS = 1 << 19,
  FT_LIST_WORDS = FT_SCRATCH_FLOATS - FT_TILE_ROOM - FT_TILE_PLACES,
  FT_ENTRIES = FT_LIST_WORDS / 2,
  FT_MEETINGS = FT_LIST_WORDS / 10 / 8 * 8, /* with eight lanes each */
  FT_NO_CHANNEL = -1
};

/* An entry of a list is its head, which says what the terms behind it add to, and how many they are;
 * or a term: a weight, and what it meets. */
typedef struct {
  uint32_t at;
  union { uint32_t terms; float weight; } is;
} ft_entry;

/* What the gradient of a weight is summed over. */
typedef struct { uint32_t x, y; } ft_meeting;

/* What stands in the room for weights, and the first of the channels of x that it is about. */
typedef struct {
  uint32_t size;
  int64_t channel;
} ft_decoded;

typedef struct {
  ft_cut cut;
  ft_patch patch;
  float *x, *y;            /* the planes of the tile */
  int64_t channel;         /* the first one among those of x, or FT_NO_CHANNEL */
  uint32_t *places;        /* where in a plane of x the first tap of each output reads */
  void *room;              /* for the decoded weights */
  ft_decoded decoded;
  int is_whole;            /* and they are all of the op */
} ft_sparse;

ft_sparse ft_sparse_of(const ft_conv *conv, void *scratch);

/* Goes on to tile k, whose planes are still to be gathered. */
void ft_open_patch(ft_sparse *s, uint32_t k);
/* The planes of x from this channel on, unless they are there; +0 in the rows before `first`. */
void ft_need_x(ft_sparse *s, int64_t channel, uint32_t first, const float *x);

/* The live weights from number `taken` on, which is weight `at`. */
typedef struct {
  const ft_live *live;
  ft_cursor cursor;
  uint32_t taken, at;
} ft_walk;

ft_walk ft_walk_of(const ft_live *live);
FT_INLINE int ft_is_left(const ft_walk *walk) { return walk->taken < walk->live->count; }

/* Each decodes weights from the walk on. By column: a list for each plane of y, of terms that stand
 * in planes of x; by row: for each row of weights the one for its plane of x, of terms in planes of
 * y; or the meetings of each weight. */
typedef ft_decoded ft_decode_fn(const ft_sparse *s, ft_walk *walk);
ft_decode_fn ft_decode_columns, ft_decode_rows, ft_decode_meetings;

#endif
#endif
