/* ft_heap.c: the largest of many gradients, in no more places than are wanted. */
#include "ft_heap.h"

/* What stands first in a heap: the smallest gradient, of equal ones the one furthest up; or
 * whatever is furthest up. */
enum { WORST, LAST };

static int is_first(int order, const ft_place *a, const ft_place *b) {
  const uint32_t of_a = order == WORST ? ft_magnitude(a->g) : 0;
  const uint32_t of_b = order == WORST ? ft_magnitude(b->g) : 0;
  return of_a < of_b || (of_a == of_b && a->at > b->at);
}

/* Puts a place where the `count` places of a heap have a gap: at `hole`, or below. */
static void sift(int order, ft_place *heap, uint32_t hole, uint32_t count, ft_place place) {
  for (uint64_t child = 2 * (uint64_t)hole + 1; child < count; child = 2 * child + 1) {
    if (child + 1 < count && is_first(order, &heap[child + 1], &heap[child])) child++;
    if (!is_first(order, &heap[child], &place)) break;
    heap[hole] = heap[child];
    hole = (uint32_t)child;
  }
  heap[hole] = place;
}

static void make_heap(int order, ft_place *places, uint32_t count) {
  for (uint32_t k = count / 2; k-- > 0;) sift(order, places, k, count, places[k]);
}

/* Until it is full the heap is a list. */
void ft_heap_offer(ft_heap *heap, uint32_t at, float g) {
  const ft_place place = {heap->first + at, g};
  if (heap->found < heap->most) {
    heap->places[heap->found++] = place;
    if (heap->found == heap->most) make_heap(WORST, heap->places, heap->most);
  } else if (is_first(WORST, &heap->places[0], &place)) {
    sift(WORST, heap->places, 0, heap->most, place);
  }
}

void ft_heap_sort(ft_heap *heap) {
  ft_place *places = heap->places;
  make_heap(LAST, places, heap->found);
  for (uint32_t end = heap->found; end > 1; end--) {
    const ft_place last = places[end - 1];
    places[end - 1] = places[0];
    sift(LAST, places, 0, end - 1, last);
  }
}
