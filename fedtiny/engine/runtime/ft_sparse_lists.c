/* ft_sparse_lists.c: live weights from the pool's index into lists of what they meet.
 *
 * Where a map is small, this takes as long as the sums: the loops keep their walk in registers.
 */
#include "ft_sparse.h"

#ifndef FT_SMALL

ft_walk ft_walk_of(const ft_live *live) {
  ft_walk walk = {live, ft_first_live(live), 0, 0};
  if (live->count) walk.at = ft_next_live(&walk.cursor);
  return walk;
}

FT_INLINE void step(ft_walk *walk) {
  if (++walk->taken < walk->live->count) walk->at = ft_next_live(&walk->cursor);
}

/* ---- rows of weights ----------------------------------------------------------------------- */

/* A tap and an input channel: the first weight, and where the tap reads. */
typedef struct { uint32_t first, x_at; } row;

static row row_of(const ft_cut *cut, int64_t channel, uint32_t at) {
  const ft_window *w = cut->window;
  const uint32_t index = at / w->y.channels, tap = index / w->x.channels;
  const uint32_t plane = index % w->x.channels - (uint32_t)channel;
  const uint32_t place = tap / w->kernel_w * cut->x_columns + tap % w->kernel_w;
  return (row){index * w->y.channels, plane * cut->x_plane + 8 * place};
}

/* Weights whose input channels are among the planes of a tile: those before weight `end`. */
typedef struct {
  int64_t channel;
  uint32_t end;
} stretch;

static stretch stretch_of(const ft_cut *cut, uint32_t at) {
  const uint32_t in = cut->window->x.channels, out = cut->window->y.channels;
  const uint32_t index = at / out, i = index % in, channel = i / cut->channels * cut->channels;
  if (cut->channels == in) return (stretch){0, UINT32_MAX};
  const uint32_t behind = in - channel < cut->channels ? in : channel + cut->channels;
  return (stretch){channel, (index - i + behind) * out};
}

/* Runs the body for up to `most` weights of a stretch, with the row of each reached. */
#define EACH_WEIGHT(most, ...)                                                                     \
  for (uint32_t left = (most); left && ft_is_left(&k) && k.at < s.end; left--, step(&k)) {         \
    if (k.at - r.first >= out) r = row_of(cut, s.channel, k.at);                                   \
    const uint32_t o = k.at - r.first;                                                             \
    __VA_ARGS__;                                                                                   \
  }

/* ---- by row -------------------------------------------------------------------------------- */

ft_decoded ft_decode_rows(const ft_sparse *op, ft_walk *walk) {
  const ft_cut *cut = &op->cut;
  const uint32_t out = cut->window->y.channels, plane = cut->y_plane;
  const stretch s = stretch_of(cut, walk->at);
  ft_entry *entry = op->room, *const end = entry + FT_ENTRIES;
  ft_walk k = *walk;
  while (end - entry >= 2 && ft_is_left(&k) && k.at < s.end) {
    const row r = row_of(cut, s.channel, k.at);
    ft_entry *head = entry++;
    for (; entry < end && ft_is_left(&k) && k.at - r.first < out; step(&k))
      *entry++ = (ft_entry){(k.at - r.first) * plane, {.weight = k.live->values[k.taken]}};
    *head = (ft_entry){r.x_at, {.terms = (uint32_t)(entry - head) - 1}};
  }
  *walk = k;
  return (ft_decoded){(uint32_t)(entry - (ft_entry *)op->room), s.channel};
}

/* ---- by column ----------------------------------------------------------------------------- */

/* How many of the next weights go to each output. */
static void count_columns(const ft_cut *cut, ft_walk k, uint32_t most, uint32_t *counts) {
  const uint32_t out = cut->window->y.channels;
  const stretch s = stretch_of(cut, k.at);
  row r = row_of(cut, s.channel, k.at);
  memset(counts, 0, out * sizeof *counts);
  EACH_WEIGHT(most, counts[o]++)
}

/* Puts the heads; each count becomes the place of the list's first term. */
static uint32_t put_heads(const ft_cut *cut, ft_entry *entries, uint32_t *counts) {
  uint32_t size = 0;
  for (uint32_t o = 0; o < cut->window->y.channels; o++) {
    const uint32_t terms = counts[o];
    counts[o] = size + 1;
    if (!terms) continue;
    entries[size] = (ft_entry){o * cut->y_plane, {.terms = terms}};
    size += 1 + terms;
  }
  return size;
}

/* The counts stand behind the entries. */
ft_decoded ft_decode_columns(const ft_sparse *op, ft_walk *walk) {
  const ft_cut *cut = &op->cut;
  const uint32_t out = cut->window->y.channels, most = FT_ENTRIES - (out + 1) / 2 - out;
  const stretch s = stretch_of(cut, walk->at);
  uint32_t *counts = (uint32_t *)op->room + (FT_LIST_WORDS - out);
  ft_entry *entries = op->room;
  ft_walk k = *walk;
  row r = row_of(cut, s.channel, k.at);
  count_columns(cut, k, most, counts);
  const uint32_t size = put_heads(cut, entries, counts);
  EACH_WEIGHT(most, {
    const float weight = k.live->values[k.taken];
    entries[counts[o]++] = (ft_entry){r.x_at, {.weight = weight}};
  })
  *walk = k;
  return (ft_decoded){size, s.channel};
}

/* ---- one by one ---------------------------------------------------------------------------- */

ft_decoded ft_decode_meetings(const ft_sparse *op, ft_walk *walk) {
  const ft_cut *cut = &op->cut;
  const uint32_t out = cut->window->y.channels, plane = cut->y_plane;
  const stretch s = stretch_of(cut, walk->at);
  ft_meeting *meeting = op->room;
  ft_walk k = *walk;
  row r = row_of(cut, s.channel, k.at);
  EACH_WEIGHT(FT_MEETINGS, *meeting++ = ((ft_meeting){r.x_at, o * plane}))
  *walk = k;
  return (ft_decoded){(uint32_t)(meeting - (ft_meeting *)op->room), s.channel};
}

#endif
