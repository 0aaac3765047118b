/* ft_grow.c: a batch that moves nothing: where would dead weights go? */
#include "ft_grow.h"

ft_walk ft_first_dead(const ft_live *w) {
  ft_walk walk = {ft_first_live(w), ~0u, w->count};
  if (walk.left) walk.left--, walk.live = ft_next_live(&walk.next);
  return walk;
}

void ft_grow_op(const ft_frame *f, const ft_op *op) {
  const ft_param *param = &f->program->params[op->attr[0]];
  const ft_conv conv = ft_sparse_conv_of(op, ft_operand(f, op, 0), ft_operand(f, op, 2));
  const uint32_t k = param->pruned - 1;
  const ft_live live = ft_live_of(f->program, f->memory, param);
  ft_heap heap = {f->growth->places, f->growth->most[k], 0, param->vector_at};
  if (!heap.most) return;
  for (uint32_t i = 0; i < k; i++) heap.places += f->growth->most[i];
  ft_scan_f32(&conv, ft_at(f, op, 0), ft_at(f, op, 1), &live, &heap);
  ft_heap_sort(&heap);
  f->growth->found[k] = heap.found;
}

ft_status ft_grow(const ft_program *program, const ft_memory *memory, const void *x, const void *y,
                  const uint32_t *most, ft_place *places, uint32_t *found) {
  const ft_header *h = program->header;
  const struct ft_growth growth = {most, places, found};
  uint64_t wanted = 0;
  for (uint32_t k = 0; k < h->n_pruned; k++) wanted += most[k];
  if (wanted > h->bucket) return FT_E_MEMORY;
  const ft_status status = ft_check_labels(program, y, h->batch);
  if (status) return status;
  ft_frame f = ft_frame_of(program, memory, x, y);
  f.growth = &growth;
  f.by_batch = 1;
  memset(found, 0, h->n_pruned * sizeof *found);
  ft_run_ops(&f, program->ops, program->ops + h->n_ops);
  return FT_OK;
}
