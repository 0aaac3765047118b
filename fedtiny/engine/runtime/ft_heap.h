/* ft_heap.h: the largest of many gradients; private to the runtime. */
#ifndef FT_HEAP_H
#define FT_HEAP_H

#include "ft_runtime.h"

#include <string.h>

/* The best places of one parameter so far; once they are `most`, the worst stands first. */
typedef struct {
  ft_place *places;
  uint32_t most, found;
  uint32_t first;          /* coordinate of the parameter */
} ft_heap;

/* |g| as a number that grows with it; all NaNs are one number, the largest. */
static inline uint32_t ft_magnitude(float g) {
  const uint32_t not_a_number = 0x7F800001u;
  uint32_t bits;
  memcpy(&bits, &g, sizeof bits);
  bits &= 0x7FFFFFFFu;
  return bits < not_a_number ? bits : not_a_number;
}

/* No gradient below it is kept. */
static inline uint32_t ft_heap_bar(const ft_heap *heap) {
  return heap->found < heap->most ? 0 : ft_magnitude(heap->places[0].g);
}

/* Offers the gradient of weight `at`, which is dead. */
void ft_heap_offer(ft_heap *heap, uint32_t at, float g);

/* The places in ascending order; it is a heap no more. */
void ft_heap_sort(ft_heap *heap);

#endif
