/* ft_live.h: the pool, and what stands in it of one parameter; private to the runtime. */
#ifndef FT_LIVE_H
#define FT_LIVE_H

#include "ft_runtime.h"

/* The values of a parameter: of a pruned one the live values, in ascending order of their weights,
 * and the index that says which weights those are; of a dense one all, without an index. */
typedef struct {
  float *values;
  uint32_t count;          /* of values */
  const uint16_t *gaps;    /* FT_GAPS, else NULL */
  const uint32_t *bits;    /* FT_BITMAP, else NULL */
} ft_live;

/* Walks over the live weights of a pruned parameter. */
typedef struct {
  const uint16_t *gaps;
  const uint32_t *bits;
  uint32_t at, word;
} ft_cursor;

static inline ft_cursor ft_first_live(const ft_live *w) {
  const ft_cursor cursor = {w->gaps, w->bits, 0, w->bits ? *w->bits : 0};
  return cursor;
}

/* The next live weight: its index among all. To be called `count` times at most. */
static inline uint32_t ft_next_live(ft_cursor *c) {
  if (c->gaps) {
    while (*c->gaps == 0xFFFF) c->gaps++, c->at += 0xFFFF;
    const uint32_t live = c->at + *c->gaps++;
    c->at = live + 1;
    return live;
  }
  while (!c->word) c->word = *++c->bits, c->at += 32;
  const uint32_t live = c->at + (uint32_t)__builtin_ctz(c->word);
  c->word &= c->word - 1;
  return live;
}

/* The floats of the pool: to the end of the parameter memory. */
uint64_t ft_pool_floats(const ft_program *program);

ft_live ft_live_of(const ft_program *program, const ft_memory *memory, const ft_param *p);
/* Of the pruned parameter with this ordinal. */
ft_live ft_live_at(const ft_program *program, const ft_memory *memory, uint32_t ordinal);

/* Where the parameter's values stand in a state slot; a pruned one's move with the mask. */
uint32_t ft_live_state_at(const ft_program *program, const ft_memory *memory, const ft_param *p);
static inline uint32_t ft_state_at(const ft_program *program, const ft_memory *memory,
                                   const ft_param *p) {
  return p->pruned ? ft_live_state_at(program, memory, p) : p->state_at;
}

#endif
