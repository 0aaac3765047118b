/* ft_grow.h: the dead weights with the largest gradients; private to the runtime. */
#ifndef FT_GROW_H
#define FT_GROW_H

#include "ft_heap.h"
#include "ft_ops.h"

/* What a growth collects, of all pruned parameters: as of ft_grow. */
struct ft_growth {
  const uint32_t *most;
  ft_place *places;
  uint32_t *found;
};

/* The dead weights of a parameter: where they are asked for, they ascend. */
typedef struct {
  ft_cursor next;
  uint32_t live, left;     /* the live weight that the walk stands at, and how many follow */
} ft_walk;

ft_walk ft_first_dead(const ft_live *w);

static inline int ft_is_dead(ft_walk *walk, uint32_t at) {
  while (walk->live < at) walk->live = walk->left ? walk->left--, ft_next_live(&walk->next) : ~0u;
  return walk->live != at;
}

/* Offers all dead weights of a window of one group. */
void ft_scan_f32(const ft_conv *conv, const float *x, const float *dy, const ft_live *w,
                 ft_heap *heap);

/* What a growth does instead of a sparse update. */
void ft_grow_op(const ft_frame *f, const ft_op *op);

#endif
