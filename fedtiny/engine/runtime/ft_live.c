/* ft_live.c: the pool of live values: its places, and the masks that are loaded into it. */
#include "ft_live.h"

#include <string.h>

/* ---- places -------------------------------------------------------------------------------- */

typedef struct {
  float *values;
  uint32_t *starts;        /* [n_pruned + 1] */
  uint32_t *gap_starts;    /* [n_pruned + 1] */
  uint16_t *gaps;
  uint32_t *bits;          /* where the gap starts would stand */
} pool;

static pool pool_of(const ft_program *program, const ft_memory *memory) {
  const ft_header *h = program->header;
  pool p;
  p.values = memory->params + h->live_at;
  p.starts = (uint32_t *)(void *)(p.values + h->live_capacity);
  p.bits = p.gap_starts = p.starts + h->n_pruned + 1;
  p.gaps = (uint16_t *)(void *)(p.gap_starts + h->n_pruned + 1);
  return p;
}

/* The words of the bitmap of the pruned parameters before `end`. */
static uint64_t bitmap_words(const ft_program *program, const ft_param *end) {
  uint64_t words = 0;
  for (const ft_param *p = program->params; p < end; p++)
    if (p->pruned) words += ((uint64_t)p->count + 31) / 32;
  return words;
}

uint64_t ft_pool_floats(const ft_program *program) {
  const ft_header *h = program->header;
  const ft_param *end = program->params + h->n_params;
  const uint64_t starts = (uint64_t)h->n_pruned + 1;
  uint64_t entries = h->live_capacity;
  if (!h->n_pruned) return 0;
  if (h->live_form == FT_BITMAP) return h->live_capacity + starts + bitmap_words(program, end);
  for (const ft_param *p = program->params; p < end; p++)
    if (p->pruned) entries += p->count / 0xFFFF;
  return h->live_capacity + 2 * starts + (entries + 1) / 2;
}

static ft_live dense_of(const ft_program *program, const ft_memory *memory, const ft_param *p) {
  const ft_tensor *t = &program->tensors[p->tensor];
  float *values = (t->region == FT_PARAMS ? memory->params : memory->frozen) + t->offset / 4;
  const ft_live dense = {values, p->count, NULL, NULL};
  return dense;
}

ft_live ft_live_of(const ft_program *program, const ft_memory *memory, const ft_param *p) {
  if (!p->pruned) return dense_of(program, memory, p);
  const pool all = pool_of(program, memory);
  const uint32_t k = p->pruned - 1;
  ft_live live = {all.values + all.starts[k], all.starts[k + 1] - all.starts[k], NULL, NULL};
  if (program->header->live_form == FT_GAPS)
    live.gaps = all.gaps + all.gap_starts[k];
  else
    live.bits = all.bits + bitmap_words(program, p);
  return live;
}

ft_live ft_live_at(const ft_program *program, const ft_memory *memory, uint32_t ordinal) {
  const ft_param *p = program->params;
  while (p->pruned != ordinal + 1) p++;
  return ft_live_of(program, memory, p);
}

uint32_t ft_live_state_at(const ft_program *program, const ft_memory *memory, const ft_param *p) {
  const ft_header *h = program->header;
  return h->trained_floats - h->live_capacity + pool_of(program, memory).starts[p->pruned - 1];
}

/* ---- masks --------------------------------------------------------------------------------- */

/* The first set bit of [at, end), or end. */
static uint32_t next_set(const uint8_t *bits, uint32_t at, uint32_t end) {
  for (; at < end; at = at / 8 * 8 + 8) {
    const uint32_t rest = (uint32_t)bits[at / 8] >> at % 8;
    if (!rest) continue;
    at += (uint32_t)__builtin_ctz(rest);
    return at < end ? at : end;
  }
  return end;
}

static uint32_t count_set(const uint8_t *bits, uint32_t at, uint32_t end) {
  uint32_t count = 0;
  for (at = next_set(bits, at, end); at < end; at = next_set(bits, at + 1, end)) count++;
  return count;
}

static uint64_t count_live(const ft_program *program, const uint8_t *bits) {
  uint64_t live = 0;
  for (const ft_param *p = program->params; p < program->params + program->header->n_params; p++)
    if (p->pruned) live += count_set(bits, p->vector_at, p->vector_at + p->count);
  return live;
}

/* The entries of one parameter; how many they are. */
static uint32_t put_gaps(const uint8_t *bits, const ft_param *p, uint16_t *gaps) {
  const uint32_t end = p->vector_at + p->count;
  uint32_t cursor = p->vector_at, entries = 0;
  for (uint32_t at = next_set(bits, cursor, end); at < end; at = next_set(bits, cursor, end)) {
    for (; at - cursor >= 0xFFFF; cursor += 0xFFFF) gaps[entries++] = 0xFFFF;
    gaps[entries++] = (uint16_t)(at - cursor);
    cursor = at + 1;
  }
  return entries;
}

static void put_bits(const uint8_t *bits, const ft_param *p, uint32_t *words) {
  const uint32_t end = p->vector_at + p->count;
  for (uint32_t at = next_set(bits, p->vector_at, end); at < end; at = next_set(bits, at + 1, end))
    words[(at - p->vector_at) / 32] |= 1u << (at - p->vector_at) % 32;
}

static void put_index(const ft_program *program, const pool *all, const uint8_t *bits) {
  const ft_header *h = program->header;
  uint32_t k = 0;
  for (const ft_param *p = program->params; p < program->params + h->n_params; p++) {
    if (!p->pruned) continue;
    const uint32_t count = count_set(bits, p->vector_at, p->vector_at + p->count);
    all->starts[k + 1] = all->starts[k] + count;
    if (h->live_form == FT_GAPS)
      all->gap_starts[k + 1] =
          all->gap_starts[k] + put_gaps(bits, p, all->gaps + all->gap_starts[k]);
    else
      put_bits(bits, p, all->bits + bitmap_words(program, p));
    k++;
  }
}

/* Of every slot the part that belongs to the pool. */
static void clear_state(const ft_program *program, const ft_memory *memory) {
  const ft_header *h = program->header;
  if (!h->trained_floats) return;
  for (uint32_t end = h->trained_floats; end <= h->state_floats; end += h->trained_floats)
    memset(memory->state + (end - h->live_capacity), 0, h->live_capacity * sizeof(float));
}

ft_status ft_load_mask(const ft_program *program, const ft_memory *memory, const uint8_t *bits) {
  const ft_header *h = program->header;
  if (!h->n_pruned) return FT_OK;
  if (count_live(program, bits) > h->live_capacity) return FT_E_MASK;
  const pool all = pool_of(program, memory);
  memset(all.values, 0, (size_t)ft_pool_floats(program) * sizeof(float));
  put_index(program, &all, bits);
  clear_state(program, memory);
  return FT_OK;
}
