/* ft_conv_update.c: gradients of a convolution's weights, used where they arise.
 *
 * A tile of sums, some elements of the kernel by a band of columns, stands on the stack while the
 * outputs go by, a few rows at a time that stay in the cache; meanwhile one block of the tile after
 * the other is in registers. Behind the last output the tile becomes an update or a norm.
 */
#include "ft_conv_terms.h"
#include "ft_rule.h"

#ifndef FT_SMALL

/* Outputs that are near each other stay in the cache. */
enum { NEAR_OUTPUTS = 96 };

/* ---- tiles --------------------------------------------------------------------------------- */

/* Mostly the divisor is 1. */
FT_INLINE uint32_t divided(uint32_t a, uint32_t by) { return by == 1 ? a : a / by; }

/* The outputs [*begin, *end) that meet a tap. */
static void meeting(const ft_axis *axis, uint32_t tap, uint32_t *begin, uint32_t *end) {
  const uint32_t until = axis->in + axis->pad;
  *end = tap < until ? ft_at_most(axis->out, divided(until - tap - 1, axis->stride) + 1) : 0;
  *begin = ft_at_most(*end, divided(ft_beyond(tap, axis->pad) + axis->stride - 1, axis->stride));
}

/* The block that starts at an element of a tap. Blocks stay within the tap, unless it is small. */
static ft_block block_at(const ft_gradient *g, uint32_t tap, uint32_t first, uint32_t end) {
  const ft_axis axis = ft_horizontal(&g->conv->window);
  const uint32_t behind = (tap + 1) * g->depth;
  const int crossing = g->by_channel || (g->conv->groups == 1 && g->depth < 6);
  const uint32_t left = crossing ? end - first : ft_at_most(end, behind) - first;
  const uint32_t size = g->by_channel || g->lanes < FT_WIDTH ? ft_at_most(3, left) : ft_share(left);
  const uint32_t x_at = tap * g->conv->window.x.channels + first + g->depth - behind;
  ft_block b = {first, size, x_at, 0, 0, 0, 0};
  meeting(&axis, tap, &b.inner, &b.end);
  b.begin = b.inner, b.inner_end = b.end;
  if (first + size > behind)
    meeting(&axis, (first + size - 1) / g->depth, &b.begin, &b.inner_end);
  if (b.inner >= b.inner_end) b.inner = b.inner_end = b.end;
  return b;
}

/* The blocks of a tile, at most FT_TILE_ELEMENTS; how many they are. */
static uint32_t blocks_of(const ft_gradient *g, const ft_tile *part, ft_block *blocks) {
  uint32_t count = 0, tap = part->first / g->depth;
  for (uint32_t e = part->first; e < part->end; e += blocks[count++].size) {
    while (e >= (tap + 1) * g->depth) tap++;
    blocks[count] = block_at(g, tap, e, part->end);
  }
  return count;
}

/* Adds some rows of dy to all blocks. */
static void add_to_tile(const ft_gradient *g, const ft_tile *part, const ft_block *blocks,
                        uint32_t count, ft_terms t, float *tile) {
  const ft_axis axis = ft_vertical(&g->conv->window);
  const uint32_t end = t.row + t.rows;
  const size_t tile_row = (size_t)(part->end - part->first) * FT_TILE_COLUMNS;
  for (t.tap = part->row; t.tap < part->row + part->rows; t.tap++, tile += tile_row) {
    ft_terms some = t;
    if (!g->codes) {
      uint32_t from, until;
      meeting(&axis, t.tap, &from, &until);
      some.row = t.row > from ? t.row : from;
      some.rows = ft_beyond(some.row, ft_at_most(end, until));
    }
    if (some.rows)
      for (uint32_t i = 0; i < count; i++)
        ft_add_of(g, &blocks[i])(g, &blocks[i], &some,
                                 tile + (blocks[i].first - part->first) * FT_TILE_COLUMNS);
  }
}

void ft_sum_tile(const ft_gradient *g, const ft_tile *part, float *tile) {
  const uint32_t near = NEAR_OUTPUTS / g->y.width, rows = near ? ft_at_most(near, g->y.height) : 1;
  const uint32_t images = near > rows ? near / rows : 1;
  ft_block blocks[FT_TILE_ELEMENTS];
  const uint32_t count = blocks_of(g, part, blocks);
  memset(tile, 0, sizeof(float) * part->rows * (part->end - part->first) * FT_TILE_COLUMNS);
  for (uint32_t n = 0; n < g->y.batch; n += images)
    for (uint32_t r = 0; r < g->y.height; r += rows) {
      const ft_terms t = {n, ft_at_most(images, g->y.batch - n), r,
                          ft_at_most(rows, g->y.height - r), 0};
      add_to_tile(g, part, blocks, count, t, tile);
    }
}

ft_tile ft_tile_at(const ft_gradient *g, uint32_t row, uint32_t first) {
  const uint32_t run = g->conv->window.kernel_w * g->depth;
  const uint32_t parts = (run + FT_TILE_ELEMENTS - 1) / FT_TILE_ELEMENTS;
  const uint32_t width = (run + parts - 1) / parts;
  const uint32_t rows = parts > 1 ? 1 : FT_TILE_ELEMENTS / width;
  return (ft_tile){row, ft_at_most(rows, g->conv->window.kernel_h - row), first,
                   ft_at_most(run, first + width)};
}

ft_tile ft_tile_behind(const ft_gradient *g, const ft_tile *tile) {
  const uint32_t run = g->conv->window.kernel_w * g->depth;
  return tile->end < run ? ft_tile_at(g, tile->row, tile->end)
                         : ft_tile_at(g, tile->row + tile->rows, 0);
}

ft_fresh ft_take_band(ft_gradient *g, uint32_t group, uint32_t at, uint32_t columns, int in_lanes) {
  const uint32_t left = columns - at, first_column = group * columns;
  const uint32_t whole = in_lanes ? FT_WIDTH - (first_column + at) % FT_WIDTH : FT_WIDTH;
  const uint32_t count =
      !in_lanes && left >= FT_TILE_COLUMNS ? FT_TILE_COLUMNS : ft_at_most(whole, left);
  const uint32_t width = count > FT_WIDTH ? count : ft_at_most(FT_WIDTH, columns);
  const uint32_t start = ft_block_start(at, width, columns);
  g->dy += first_column + start;
  g->first_column = first_column + start;
  g->vectors = count > FT_WIDTH ? 2 : 1;
  g->lanes = ft_at_most(FT_WIDTH, columns);
  g->x += g->by_channel ? start : group * g->depth;
  return (ft_fresh){at - start, count, first_column + at};
}

/* ---- what becomes of the sums -------------------------------------------------------------- */

/* Either the weights and their rule, or where the gradient itself goes, or the lanes of a norm. */
typedef struct {
  float *w;
  const ft_rule *rule;
  float *squares;
} purpose;

FT_INLINE void apply_row(int general, const ft_rule rule, const float *sum, uint32_t count,
                         float *w, size_t at) {
  uint32_t c = 0;
  for (; c + FT_WIDTH <= count; c += FT_WIDTH) {
    vw g = FT_W(load)(sum + c);
    ft_apply(rule, 1, 0, general, w, at + c, &g, FT_WIDTH);
  }
  if (c < count) {
    vw g = FT_W_FIRST(load)(sum + c, count - c);
    ft_apply(rule, 1, 1, general, w, at + c, &g, count - c);
  }
}

/* `rows` rows of the tile; the first one's weights start at w[at]. */
#define APPLY(name, general)                                                                       \
  FT_BAND void name(const purpose *to, const float *sum, uint32_t rows, uint32_t count, size_t at, \
                    uint32_t out) {                                                                \
    for (; rows; rows--, sum += FT_TILE_COLUMNS, at += out)                                        \
      apply_row(general, *to->rule, sum, count, to->w, at);                                        \
  }
APPLY(apply_plain, 0)
APPLY(apply_general, 1)
#undef APPLY

static void put_rows(const purpose *to, const float *sum, uint32_t rows, uint32_t count, size_t at,
                     uint32_t out) {
  for (; rows; rows--, sum += FT_TILE_COLUMNS, at += out)
    if (count == FT_TILE_COLUMNS)
      memcpy(to->w + at, sum, FT_TILE_COLUMNS * sizeof *sum);
    else
      memcpy(to->w + at, sum, count * sizeof *sum);
}

static void add_squares(const purpose *to, const float *sum, uint32_t rows, uint32_t count,
                        uint32_t lane) {
  for (; rows; rows--, sum += FT_TILE_COLUMNS)
    for (uint32_t c = 0; c < count; c++) to->squares[lane + c] += sum[c] * sum[c];
}

static void use_rows(const purpose *to, const float *tile, uint32_t rows, const ft_fresh *columns,
                     size_t row, uint32_t out) {
  const float *sum = tile + columns->first;
  if (!to->w)
    add_squares(to, sum, rows, columns->count, columns->o % 8);
  else if (!to->rule)
    put_rows(to, sum, rows, columns->count, row * out + columns->o, out);
  else if (ft_rule_is_plain(to->rule))
    apply_plain(to, sum, rows, columns->count, row * out + columns->o, out);
  else
    apply_general(to, sum, rows, columns->count, row * out + columns->o, out);
}

static void use_tile(const ft_gradient *g, const ft_tile *part, const float *tile,
                     const ft_fresh *columns, const purpose *to) {
  const uint32_t run = g->conv->window.kernel_w * g->depth, rows = part->end - part->first;
  for (uint32_t k = part->row; k < part->row + part->rows; k++, tile += rows * FT_TILE_COLUMNS)
    use_rows(to, tile, rows, columns, (size_t)k * run + part->first, g->conv->window.y.channels);
}

/* All elements of some columns. */
static void use_columns(const ft_gradient *g, const ft_fresh *columns, const purpose *to) {
  float tile[FT_TILE_ELEMENTS * FT_TILE_COLUMNS];
  for (ft_tile part = ft_tile_at(g, 0, 0); part.rows; part = ft_tile_behind(g, &part)) {
    ft_sum_tile(g, &part, tile);
    use_tile(g, &part, tile, columns, to);
  }
}

static void use_gradient(const ft_conv *conv, const float *x, const float *dy,
                         const uint32_t *codes, const purpose *to) {
  const ft_image *y = &conv->window.y;
  ft_gradient g = {conv, x, dy, codes, *y, conv->window.x.channels / conv->groups, 0, 0, 0,
                   ft_is_depthwise(conv)};
  const uint32_t groups = g.by_channel ? 1 : conv->groups, columns = y->channels / groups;
  if (codes) g.y.height /= conv->pool_h, g.y.width /= conv->pool_w;
  for (uint32_t group = 0; group < groups; group++)
    for (uint32_t at = 0; at < columns;) {
      ft_gradient band = g;
      const ft_fresh part = ft_take_band(&band, group, at, columns, !to->w);
      use_columns(&band, &part, to);
      at += part.count;
    }
}

static float norm(const ft_conv *conv, const float *x, const float *dy, const uint32_t *codes) {
  float squares[8] = {0};
  const purpose to = {NULL, NULL, squares};
  use_gradient(conv, x, dy, codes, &to);
  return ft_tree(ft_lanes_at(squares));
}

static void update(const ft_conv *conv, const float *x, const float *dy, const uint32_t *codes,
                   float *w, const ft_rule *rule) {
  const purpose to = {w, rule, NULL};
  use_gradient(conv, x, dy, codes, &to);
}

void ft_conv_update_f32(const ft_conv *conv, const float *x, const float *dy, float *w,
                        const ft_rule *rule) {
  update(conv, x, dy, NULL, w, rule);
}

void ft_conv_gradient_f32(const ft_conv *conv, const float *x, const float *dy, float *g) {
  update(conv, x, dy, NULL, g, NULL);
}

float ft_conv_norm_f32(const ft_conv *conv, const float *x, const float *dy) {
  return norm(conv, x, dy, NULL);
}

void ft_conv_pool_update_f32(const ft_conv *conv, const float *x, const float *dy,
                             const uint32_t *codes, float *w, const ft_rule *rule) {
  update(conv, x, dy, codes, w, rule);
}

float ft_conv_pool_norm_f32(const ft_conv *conv, const float *x, const float *dy,
                            const uint32_t *codes) {
  return norm(conv, x, dy, codes);
}

#endif
