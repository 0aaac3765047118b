/* ft_planes.c: how an op is cut into tiles, and the way of a tile into planes and back.
 *
 * Eight channels of eight samples are transposed in registers.
 */
#include "ft_planes.h"

#include "ft_taps.h"

#ifndef FT_SMALL

/* ---- how an op is cut ---------------------------------------------------------------------- */

/* Large planes that lay a multiple of a power of two apart would share few sets of a cache. */
static uint32_t plane_of(uint32_t positions) {
  return positions < 64 ? 8 * positions : 16 * ((positions + 1) / 2 | 1);
}

static void measure(ft_cut *cut) {
  const ft_window *w = cut->window;
  cut->x_rows = (cut->rows - 1) * cut->stride_h + w->kernel_h;
  cut->x_columns = (cut->columns - 1) * cut->stride_w + w->kernel_w;
  cut->x_plane = plane_of(cut->groups * cut->x_rows * cut->x_columns);
  cut->y_plane = plane_of(cut->groups * cut->rows * cut->columns);
}

static int fits(const ft_cut *cut) {
  const uint64_t x = (uint64_t)cut->channels * cut->x_plane;
  return x + (uint64_t)cut->window->y.channels * cut->y_plane <= FT_TILE_FLOATS;
}

/* Lets an extent of a cut that fits be as large as fits, or a little less, so that the tiles are
 * about equal. Is there one tile only? */
static int extend(ft_cut *cut, uint32_t *extent, uint32_t all) {
  while (*extent < all && fits(cut)) ++*extent, measure(cut);
  if (!fits(cut)) --*extent;
  const uint32_t tiles = (all + *extent - 1) / *extent;
  *extent = (all + tiles - 1) / tiles;
  measure(cut);
  return tiles == 1;
}

static uint32_t groups_of(const ft_window *w) { return (w->y.batch + 7) / 8; }

ft_cut ft_cut_of(const ft_window *w) {
  const int is_thin_h = w->kernel_h == 1, is_thin_w = w->kernel_w == 1;
  ft_cut cut = {.window = w, .groups = 1, .rows = 1, .columns = 1, .channels = w->x.channels};
  cut.step_h = is_thin_h ? w->stride_h : 1, cut.stride_h = w->stride_h / cut.step_h;
  cut.step_w = is_thin_w ? w->stride_w : 1, cut.stride_w = w->stride_w / cut.step_w;
  measure(&cut);
  if (!fits(&cut)) {
    const uint32_t left = FT_TILE_ROOM - w->y.channels * cut.y_plane;
    cut.channels = left / cut.x_plane;
  } else if (extend(&cut, &cut.columns, w->y.width) && extend(&cut, &cut.rows, w->y.height)) {
    extend(&cut, &cut.groups, groups_of(w));
  }
  return cut;
}

static uint32_t tiles_of(uint32_t all, uint32_t extent) { return (all + extent - 1) / extent; }

uint32_t ft_patches(const ft_cut *cut) {
  const ft_image *y = &cut->window->y;
  return tiles_of(groups_of(cut->window), cut->groups) * tiles_of(y->height, cut->rows) *
         tiles_of(y->width, cut->columns);
}

ft_patch ft_patch_at(const ft_cut *cut, uint32_t k) {
  const ft_image *y = &cut->window->y;
  const uint32_t across = tiles_of(y->width, cut->columns), down = tiles_of(y->height, cut->rows);
  const uint32_t column = k % across * cut->columns, row = k / across % down * cut->rows;
  const uint32_t group = k / across / down * cut->groups;
  return (ft_patch){8 * group,
                    row,
                    column,
                    ft_at_most(cut->groups, groups_of(cut->window) - group),
                    ft_at_most(cut->rows, y->height - row),
                    ft_at_most(cut->columns, y->width - column)};
}

void ft_put_places(const ft_cut *cut, const ft_patch *p, uint32_t *places) {
  for (uint32_t g = 0; g < p->groups; g++)
    for (uint32_t r = 0; r < p->rows; r++)
      for (uint32_t c = 0; c < p->columns; c++)
        *places++ =
            8 * ((g * cut->x_rows + r * cut->stride_h) * cut->x_columns + c * cut->stride_w);
}

/* ---- eight channels of eight samples ------------------------------------------------------- */

#if FT_WIDTH == 8
FT_INLINE void transpose(ft_lanes x[8]) {
  v8 a[8], b[8];
  FT_UNROLL for (int i = 0; i < 4; i++) {
    const v8 even = x[2 * i].part[0], odd = x[2 * i + 1].part[0];
    a[2 * i] = __builtin_shufflevector(even, odd, 0, 8, 1, 9, 4, 12, 5, 13);
    a[2 * i + 1] = __builtin_shufflevector(even, odd, 2, 10, 3, 11, 6, 14, 7, 15);
  }
  FT_UNROLL for (int i = 0; i < 4; i++) {
    const v8 low = a[i / 2 * 4 + i % 2], high = a[i / 2 * 4 + i % 2 + 2];
    b[i / 2 * 4 + i % 2 * 2] = __builtin_shufflevector(low, high, 0, 1, 8, 9, 4, 5, 12, 13);
    b[i / 2 * 4 + i % 2 * 2 + 1] = __builtin_shufflevector(low, high, 2, 3, 10, 11, 6, 7, 14, 15);
  }
  FT_UNROLL for (int i = 0; i < 4; i++) {
    x[i].part[0] = __builtin_shufflevector(b[i], b[i + 4], 0, 1, 2, 3, 8, 9, 10, 11);
    x[i + 4].part[0] = __builtin_shufflevector(b[i], b[i + 4], 4, 5, 6, 7, 12, 13, 14, 15);
  }
}
#else
FT_INLINE void transpose4(vw *a, vw *b, vw *c, vw *d) {
  const vw ab = __builtin_shufflevector(*a, *b, 0, 4, 1, 5);
  const vw ab_high = __builtin_shufflevector(*a, *b, 2, 6, 3, 7);
  const vw cd = __builtin_shufflevector(*c, *d, 0, 4, 1, 5);
  const vw cd_high = __builtin_shufflevector(*c, *d, 2, 6, 3, 7);
  *a = __builtin_shufflevector(ab, cd, 0, 1, 4, 5);
  *b = __builtin_shufflevector(ab, cd, 2, 3, 6, 7);
  *c = __builtin_shufflevector(ab_high, cd_high, 0, 1, 4, 5);
  *d = __builtin_shufflevector(ab_high, cd_high, 2, 3, 6, 7);
}

FT_INLINE void transpose(ft_lanes x[8]) {
  FT_UNROLL for (int r = 0; r < 8; r += 4)
    FT_UNROLL for (int p = 0; p < 2; p++)
      transpose4(&x[r].part[p], &x[r + 1].part[p], &x[r + 2].part[p], &x[r + 3].part[p]);
  FT_UNROLL for (int r = 0; r < 4; r++) {
    const vw other = x[r].part[1];
    x[r].part[1] = x[r + 4].part[0];
    x[r + 4].part[0] = other;
  }
}
#endif

/* Positions of one row, of `channels` of `samples` (up to eight): in the image the first one of the
 * first sample, and floats from sample to sample and from position to position; in the planes the
 * first one, and floats from plane to plane. */
typedef struct {
  float *image;
  size_t sample;
  uint32_t step, samples, channels, count;
  float *planes;
  uint32_t plane;
} strip;

/* Eight samples are more streams than a processor follows by itself. */
FT_INLINE void fetch(const float *from) {
  enum { AHEAD = 1024 };
  __builtin_prefetch((const void *)((uintptr_t)from + AHEAD));
}

FT_INLINE void gather(int whole, const strip *s, uint32_t channels, float *image, float *planes) {
  ft_lanes x[8];
  FT_UNROLL for (uint32_t b = 0; b < 8; b++) {
    const float *from = image + b * s->sample;
    if (whole) fetch(from);
    if (whole || (b < s->samples && channels == 8))
      x[b] = ft_lanes_at(from);
    else
      x[b] = b < s->samples ? ft_lanes_first(from, channels) : ft_no_lanes();
  }
  transpose(x);
  FT_UNROLL for (uint32_t c = 0; c < 8; c++)
    if (whole || c < channels) ft_put_lanes(planes + (size_t)c * s->plane, x[c]);
}

FT_INLINE void scatter(int whole, const strip *s, uint32_t channels, float *image, float *planes) {
  ft_lanes x[8];
  FT_UNROLL for (uint32_t c = 0; c < 8; c++)
    x[c] = whole || c < channels ? ft_lanes_at(planes + (size_t)c * s->plane) : ft_no_lanes();
  transpose(x);
  FT_UNROLL for (uint32_t b = 0; b < 8; b++) {
    float *to = image + b * s->sample;
    if (whole) fetch(to);
    if (whole || (b < s->samples && channels == 8))
      ft_put_lanes(to, x[b]);
    else if (b < s->samples)
      ft_put_lanes_first(to, x[b], channels);
  }
}

typedef void move_fn(strip s);

/* All channels of a position, before the next: they share lines of a cache. */
#define MOVE(name, body, whole)                                                                    \
  FT_BAND void name(strip s) {                                                                     \
    for (; s.count; s.count--, s.image += s.step, s.planes += 8)                                   \
      for (uint32_t c = 0; c < s.channels; c += 8)                                                 \
        body(whole, &s, ft_at_most(8, s.channels - c), s.image + c,                                \
             s.planes + (size_t)c * s.plane);                                                      \
  }
MOVE(gather_whole, gather, 1)
MOVE(gather_some, gather, 0)
MOVE(scatter_whole, scatter, 1)
MOVE(scatter_some, scatter, 0)
#undef MOVE

typedef struct { move_fn *whole, *some; } way;

static const way gathering = {gather_whole, gather_some};
static const way scattering = {scatter_whole, scatter_some};

/* ---- a row of a tile ----------------------------------------------------------------------- */

static void move(const way *way, strip s) {
  (s.channels % 8 == 0 && s.samples == 8 ? way->whole : way->some)(s);
}

/* The strip of one group: `count` positions from (row, column) on, with all channels. */
static strip strip_of(const ft_image *image, float *at, uint32_t sample, uint32_t row,
                      uint32_t column, uint32_t count, float *planes, uint32_t plane) {
  const size_t sample_floats = (size_t)image->height * image->width * image->channels;
  const size_t position = (size_t)row * image->width + column;
  at += sample * sample_floats + position * image->channels;
  const uint32_t samples = ft_at_most(8, image->batch - sample), step = image->channels;
  return (strip){at, sample_floats, step, samples, image->channels, count, planes, plane};
}

/* ---- tiles of the output ------------------------------------------------------------------- */

static void move_y(const way *way, const ft_cut *cut, const ft_patch *p, float *y, float *planes) {
  const ft_image *image = &cut->window->y;
  for (uint32_t g = 0; g < p->groups; g++)
    for (uint32_t r = 0; r < p->rows; r++, planes += 8 * p->columns)
      move(way, strip_of(image, y, p->sample + 8 * g, p->row + r, p->column, p->columns, planes,
                         cut->y_plane));
}

void ft_gather_y(const ft_cut *cut, const ft_patch *patch, const float *y, float *planes) {
  move_y(&gathering, cut, patch, (float *)(uintptr_t)y, planes);
}

void ft_scatter_y(const ft_cut *cut, const ft_patch *patch, const float *planes, float *y) {
  move_y(&scattering, cut, patch, y, (float *)(uintptr_t)planes);
}

/* ---- tiles of the input -------------------------------------------------------------------- */

/* Of the places [0, count) of a tile, which start `start` places before the image: those inside. */
typedef struct { uint32_t begin, end; } inside;

static inside inside_of(uint32_t at, uint32_t pad, uint32_t size, uint32_t count) {
  const uint32_t begin = ft_at_most(count, ft_beyond(at, pad));
  const uint32_t end = ft_at_most(count, ft_beyond(at, size + pad));
  return (inside){begin, end > begin ? end : begin};
}

static void clear(float *planes, uint32_t plane, uint32_t channels) {
  memset(planes, 0, (size_t)plane * channels * sizeof *planes);
}

static uint32_t channels_from(const ft_cut *cut, uint32_t channel) {
  return ft_at_most(cut->channels, cut->window->x.channels - channel);
}

/* What is inside the image of a tile, from its row `first` on. */
typedef struct {
  inside rows, columns;
  int is_all;
} part;

static part part_of(const ft_cut *cut, const ft_patch *p, uint32_t first) {
  const ft_window *w = cut->window;
  const uint32_t height = (p->rows - 1) * cut->stride_h + w->kernel_h;
  const uint32_t width = (p->columns - 1) * cut->stride_w + w->kernel_w;
  inside rows = inside_of(p->row * cut->stride_h, w->pad_top, w->x.height, height);
  const inside columns = inside_of(p->column * cut->stride_w, w->pad_left, w->x.width, width);
  const uint32_t count = (rows.end - rows.begin) * (columns.end - columns.begin);
  if (rows.begin < first) rows.begin = first;
  return (part){rows, columns, !first && count == height * width};
}

static void move_x(const way *way, const ft_cut *cut, const ft_patch *p, const part *part,
                   uint32_t channel, float *x, float *planes) {
  const ft_window *w = cut->window;
  const uint32_t column = part->columns.begin, columns = part->columns.end - column;
  const uint32_t top = p->row * cut->stride_h - w->pad_top;
  const uint32_t left = p->column * cut->stride_w - w->pad_left;
  for (uint32_t g = 0; g < p->groups; g++)
    for (uint32_t r = part->rows.begin; r < part->rows.end; r++) {
      float *to = planes + 8 * ((g * cut->x_rows + r) * cut->x_columns + column);
      strip s = strip_of(&w->x, x + channel, p->sample + 8 * g, (top + r) * cut->step_h,
                         (left + column) * cut->step_w, columns, to, cut->x_plane);
      s.step *= cut->step_w;
      s.channels = channels_from(cut, channel);
      move(way, s);
    }
}

void ft_gather_x(const ft_cut *cut, const ft_patch *patch, uint32_t channel, uint32_t first,
                 const float *x, float *planes) {
  const part part = part_of(cut, patch, first);
  if (!part.is_all) clear(planes, cut->x_plane, channels_from(cut, channel));
  move_x(&gathering, cut, patch, &part, channel, (float *)(uintptr_t)x, planes);
}

void ft_scatter_x(const ft_cut *cut, const ft_patch *patch, uint32_t channel, const float *planes,
                  float *x) {
  const part part = part_of(cut, patch, 0);
  move_x(&scattering, cut, patch, &part, channel, x, (float *)(uintptr_t)planes);
}

#endif
