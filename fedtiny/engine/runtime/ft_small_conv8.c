/* ft_small_conv8.c: int8 convolutions for a microcontroller (FT_SMALL).
 *
 * Four columns are summed at a time, in registers. Two products are added at once: of two inputs
 * that stand one apart, and of two rows of weights. What that takes is widened on the stack, and
 * serves some positions.
 */
#include "ft_requantise.h"
#include "ft_small_pairs.h"

#ifdef FT_SMALL

enum {
  COLUMNS = 4,
  POSITIONS = 16,          /* that share widened weights */
  TERMS = 64               /* rows of weights that are widened at a time */
};

/* ---- the taps of a position that are inside the image -------------------------------------- */

typedef struct { uint32_t first, end; } span;

/* Along one axis. */
static span inside(uint32_t at, uint32_t stride, uint32_t pad, uint32_t kernel, uint32_t size) {
  const uint32_t start = at * stride, limit = size + pad - start;
  const span taps = {pad > start ? pad - start : 0, kernel < limit ? kernel : limit};
  return taps;
}

static uint32_t length(span s) { return s.end - s.first; }

/* The positions along an axis whose taps are all inside; end <= first if none is. */
static span interior(uint32_t outputs, uint32_t stride, uint32_t pad, uint32_t kernel,
                     uint32_t size) {
  span at = {(pad + stride - 1) / stride, 0};
  if (size + pad >= kernel) at.end = (size + pad - kernel) / stride + 1;
  if (at.end > outputs) at.end = outputs;
  return at;
}

/* ---- a layer ------------------------------------------------------------------------------- */

typedef struct {
  ft_window window;
  uint32_t depth;          /* channels of x that a column sums over */
  int by_channel;          /* each column has a channel of its own */
  int is_whole;            /* each has all: what the taps of a row read stands side by side */
  const int8_t *x, *w;     /* of this block's first column */
  int8_t *y;
  int32_t x_zero, y_zero;
  int32_t bias[COLUMNS];
  ft_factor factor[COLUMNS];
} layer;

/* x at a position's first taps inside, and the weights there. */
typedef struct {
  const int8_t *x, *w;
  uint32_t rows, columns;  /* of taps */
} place;

static size_t x_row(const layer *l) {
  return (size_t)l->window.x.width * l->window.x.channels;
}

static size_t w_tap(const layer *l) { return (size_t)l->depth * l->window.y.channels; }
static size_t w_row(const layer *l) { return l->window.kernel_w * w_tap(l); }

static place place_of(const layer *l, const int8_t *image, uint32_t oy, span rows, uint32_t ox,
                      span columns) {
  const ft_window *w = &l->window;
  const uint32_t y = oy * w->stride_h + rows.first - w->pad_top;
  const uint32_t x = ox * w->stride_w + columns.first - w->pad_left;
  const place p = {image + y * x_row(l) + (size_t)x * w->x.channels,
                   l->w + (rows.first * w->kernel_w + columns.first) * w_tap(l), length(rows),
                   length(columns)};
  return p;
}

/* ---- the sums of many inputs --------------------------------------------------------------- */

/* Of each row of taps: runs that a position reads side by side, and their terms. */
static uint32_t runs_of(const layer *l, const place *at) { return l->is_whole ? 1 : at->columns; }

static uint32_t terms_of(const layer *l, const place *at) {
  return l->is_whole ? at->columns * l->depth : l->depth;
}

/* `terms` rows of weights, four by four: evens, then odds. The last one to three stay. */
static void widen(const layer *l, const int8_t *w, uint32_t terms, ft_two *to) {
  const size_t stride = l->window.y.channels;
  for (; terms >= 4; terms -= 4, w += 4 * stride)
    FT_UNROLL for (uint32_t odd = 0; odd < 2; odd++, to += COLUMNS) {
      const uint32_t row = ft_word_at(w + odd * stride), next = ft_word_at(w + (odd + 2) * stride);
      const uint32_t firsts = ft_firsts(row, next), lasts = ft_lasts(row, next);
      to[0] = ft_evens(firsts), to[1] = ft_odds(firsts);
      to[2] = ft_evens(lasts), to[3] = ft_odds(lasts);
    }
}

/* Adds `terms` products to the sums; w are the widened weights, and behind their last: those. */
FT_INLINE const ft_two *add_terms(const layer *l, const int8_t *x, const ft_two *w,
                                  const int8_t *weights, uint32_t terms, int32_t s[COLUMNS]) {
  const ft_two shift = ft_both(-l->x_zero);
  for (const ft_two *end = w + terms / 4 * 2 * COLUMNS; w < end; x += 4) {
    const uint32_t word = ft_word_at(x);
    const ft_two some[2] = {ft_evens_plus(shift, word), ft_odds_plus(shift, word)};
    FT_UNROLL for (uint32_t k = 0; k < 2 * COLUMNS; k += 2) {
      ft_two left, right;
      w = ft_take_two(w, &left, &right);
      s[k % COLUMNS] = ft_add_both(s[k % COLUMNS], some[k / COLUMNS], left);
      s[k % COLUMNS + 1] = ft_add_both(s[k % COLUMNS + 1], some[k / COLUMNS], right);
    }
  }
  if (terms % 4) weights += (size_t)(terms & ~3u) * l->window.y.channels;
  for (terms %= 4; terms; terms--, x++, weights += l->window.y.channels)
    FT_UNROLL for (uint32_t k = 0; k < COLUMNS; k++) s[k] += (*x - l->x_zero) * weights[k];
  return w;
}

FT_INLINE void put_numbers(const layer *l, const int32_t s[COLUMNS], int8_t *y) {
  const int32_t zero = l->y_zero; /* the layer is read before anything is written */
  ft_factor m[COLUMNS];
  FT_UNROLL for (uint32_t k = 0; k < COLUMNS; k++) m[k] = l->factor[k];
  FT_UNROLL for (uint32_t k = 0; k < COLUMNS; k++) y[k] = ft_requantised(s[k], m[k], zero);
}

/* Positions `pace` apart, whose weights are all widened: one run; */
FT_BAND void put_run(const layer *l, const int8_t *x, const int8_t *w, uint32_t terms, size_t pace,
                     uint32_t positions, const ft_two *widened, int8_t *y) {
  const uint32_t stride = l->window.y.channels;
  for (; positions; positions--, x += pace, y += stride) {
    int32_t s[COLUMNS];
    FT_UNROLL for (uint32_t k = 0; k < COLUMNS; k++) s[k] = l->bias[k];
    add_terms(l, x, widened, w, terms, s);
    put_numbers(l, s, y);
  }
}

/* or some. */
FT_BAND void put_runs(const layer *l, const place *at, size_t pace, uint32_t positions,
                      const ft_two *widened, int8_t *y) {
  const uint32_t runs = runs_of(l, at), terms = terms_of(l, at), channels = l->window.x.channels;
  const size_t x_next = x_row(l) - runs * channels, w_next = w_row(l) - runs * w_tap(l);
  const size_t tap = w_tap(l);
  for (uint32_t p = 0; p < positions; p++, y += l->window.y.channels) {
    const int8_t *x = at->x + p * pace, *w = at->w;
    const ft_two *next = widened;
    int32_t s[COLUMNS];
    FT_UNROLL for (uint32_t k = 0; k < COLUMNS; k++) s[k] = l->bias[k];
    for (uint32_t row = at->rows; row; row--, x += x_next, w += w_next)
      for (uint32_t run = runs; run; run--, x += channels, w += tap)
        next = add_terms(l, x, next, w, terms, s);
    put_numbers(l, s, y);
  }
}

/* Adds a part of a run to the sums of positions `pace` apart. */
FT_BAND void add_part(const layer *l, const int8_t *x, size_t pace, uint32_t positions,
                      const ft_two *widened, const int8_t *w, uint32_t terms,
                      int32_t sums[][COLUMNS]) {
  for (; positions; positions--, x += pace, sums++) {
    int32_t s[COLUMNS];
    FT_UNROLL for (uint32_t k = 0; k < COLUMNS; k++) s[k] = (*sums)[k];
    add_terms(l, x, widened, w, terms, s);
    FT_UNROLL for (uint32_t k = 0; k < COLUMNS; k++) (*sums)[k] = s[k];
  }
}

/* Positions whose weights are more than can be widened together. */
static void put_in_parts(const layer *l, const place *at, size_t pace, uint32_t positions,
                         ft_two *widened, int8_t *y) {
  const uint32_t runs = runs_of(l, at), stride = l->window.y.channels;
  int32_t sums[POSITIONS][COLUMNS];
  for (uint32_t p = 0; p < positions; p++) memcpy(sums[p], l->bias, sizeof sums[p]);
  for (uint32_t k = 0; k < at->rows * runs; k++) {
    const int8_t *x = at->x + k / runs * x_row(l) + k % runs * l->window.x.channels;
    const int8_t *w = at->w + k / runs * w_row(l) + k % runs * w_tap(l);
    for (uint32_t left = terms_of(l, at), some; left; left -= some, x += some, w += some * stride) {
      some = left < TERMS ? left : TERMS;
      widen(l, w, some, widened);
      add_part(l, x, pace, positions, widened, w, some, sums);
    }
  }
  for (uint32_t p = 0; p < positions; p++, y += stride) put_numbers(l, sums[p], y);
}

static void put_dense(const layer *l, const place *at, size_t pace, uint32_t positions,
                      ft_two *widened, int8_t *y) {
  const uint32_t runs = runs_of(l, at), terms = terms_of(l, at), quads = terms / 4;
  if (at->rows * runs * quads * 4 <= TERMS) {
    for (uint32_t k = 0; k < at->rows * runs; k++)
      widen(l, at->w + k / runs * w_row(l) + k % runs * w_tap(l), terms,
            widened + k * quads * 2 * COLUMNS);
    if (at->rows * runs == 1)
      put_run(l, at->x, at->w, terms, pace, positions, widened, y);
    else
      put_runs(l, at, pace, positions, widened, y);
    return;
  }
  place next = *at;
  for (uint32_t some; positions; positions -= some, y += some * l->window.y.channels) {
    some = positions < POSITIONS ? positions : POSITIONS;
    put_in_parts(l, &next, pace, some, widened, y);
    next.x += some * pace;
  }
}

/* ---- the sums of one channel each ---------------------------------------------------------- */

/* The weights of all taps. */
static void widen_taps(const layer *l, ft_two *to) {
  const uint32_t taps = l->window.kernel_h * l->window.kernel_w;
  const int8_t *w = l->w;
  for (uint32_t tap = 0; tap < taps; tap++, w += l->window.y.channels, to += 2)
    to[0] = ft_evens(ft_word_at(w)), to[1] = ft_odds(ft_word_at(w));
}

FT_INLINE const ft_two *add_tap(ft_two shift, const int8_t *x, const ft_two *w,
                                int32_t s[COLUMNS]) {
  const uint32_t word = ft_word_at(x);
  const ft_two evens = ft_evens_plus(shift, word), odds = ft_odds_plus(shift, word);
  ft_two even, odd;
  w = ft_take_two(w, &even, &odd);
  s[0] = ft_add_first(s[0], evens, even);
  s[1] = ft_add_first(s[1], odds, odd);
  s[2] = ft_add_second(s[2], evens, even);
  s[3] = ft_add_second(s[3], odds, odd);
  return w;
}

/* Three taps of a row, or one. */
FT_INLINE void add_taps(uint32_t taps, ft_two shift, size_t channels, const int8_t **x,
                        const ft_two **w, int32_t s[COLUMNS]) {
  FT_UNROLL for (uint32_t k = 0; k < taps; k++) {
    *w = add_tap(shift, *x, *w, s);
    *x += channels;
    FT_AFTER(s[3], *x);
  }
}

/* Positions `pace` apart, whose first tap inside has the first weights. */
FT_INLINE void put_windows(int is_three_wide, const layer *l, const place *at, size_t pace,
                           uint32_t positions, const ft_two *first, int8_t *y) {
  const size_t channels = l->window.x.channels, rest = x_row(l) - at->columns * channels;
  const uint32_t outside = 2 * (l->window.kernel_w - at->columns);
  const ft_two shift = ft_both(-l->x_zero);
  for (uint32_t p = 0; p < positions; p++, y += channels) {
    const int8_t *x = at->x + p * pace;
    const ft_two *w = first;
    int32_t s[COLUMNS];
    FT_UNROLL for (uint32_t k = 0; k < COLUMNS; k++) s[k] = l->bias[k];
    for (uint32_t row = at->rows; row; row--, x += rest, w += outside) {
      uint32_t left = is_three_wide ? 0 : at->columns;
      if (is_three_wide) add_taps(3, shift, channels, &x, &w, s);
      for (; left >= 3; left -= 3) add_taps(3, shift, channels, &x, &w, s);
      for (; left; left--) add_taps(1, shift, channels, &x, &w, s);
    }
    put_numbers(l, s, y);
  }
}

FT_BAND void put_narrow(const layer *l, const place *at, size_t pace, uint32_t positions,
                        const ft_two *first, int8_t *y) {
  put_windows(1, l, at, pace, positions, first, y);
}

FT_BAND void put_wide(const layer *l, const place *at, size_t pace, uint32_t positions,
                      const ft_two *first, int8_t *y) {
  put_windows(0, l, at, pace, positions, first, y);
}

static void put_channels(const layer *l, const place *at, size_t pace, uint32_t positions,
                         const ft_two *first, int8_t *y) {
  if (at->columns == 3)
    put_narrow(l, at, pace, positions, first, y);
  else
    put_wide(l, at, pace, positions, first, y);
}

/* ---- four columns -------------------------------------------------------------------------- */

/* A row of positions; those whose taps are all inside together. */
static void put_row(const layer *l, const int8_t *image, uint32_t oy, ft_two *widened, int8_t *y) {
  const ft_window *w = &l->window;
  const span rows = inside(oy, w->stride_h, w->pad_top, w->kernel_h, w->x.height);
  const span whole = interior(w->y.width, w->stride_w, w->pad_left, w->kernel_w, w->x.width);
  const size_t pace = (size_t)w->stride_w * w->x.channels;
  for (uint32_t ox = 0, count; ox < w->y.width; ox += count, y += count * w->y.channels) {
    const span columns = inside(ox, w->stride_w, w->pad_left, w->kernel_w, w->x.width);
    const place at = place_of(l, image, oy, rows, ox, columns);
    count = ox >= whole.first && ox < whole.end ? whole.end - ox : 1;
    if (l->by_channel)
      put_channels(l, &at, pace, count, widened + 2 * (rows.first * w->kernel_w + columns.first),
                   y);
    else
      put_dense(l, &at, pace, count, widened, y);
  }
}

static void put_columns(const layer *l) {
  const ft_window *w = &l->window;
  const size_t y_row = (size_t)w->y.width * w->y.channels;
  const int8_t *image = l->x;
  int8_t *y = l->y;
  ft_two widened[2 * TERMS];
  if (l->by_channel) widen_taps(l, widened);
  for (uint32_t n = 0; n < w->y.batch; n++, image += w->x.height * x_row(l))
    for (uint32_t oy = 0; oy < w->y.height; oy++, y += y_row) put_row(l, image, oy, widened, y);
}

/* ---- one column ---------------------------------------------------------------------------- */

static int32_t sum_at(const layer *l, const place *at) {
  const uint32_t channels = l->window.x.channels, stride = l->window.y.channels;
  const int8_t *x = at->x, *w = at->w;
  int32_t sum = 0;
  for (uint32_t row = 0; row < at->rows; row++, x += x_row(l), w += w_row(l))
    for (uint32_t tap = 0; tap < at->columns; tap++)
      for (uint32_t i = 0; i < l->depth; i++)
        sum += (x[tap * channels + i] - l->x_zero) * w[tap * w_tap(l) + i * stride];
  return sum;
}

FT_BAND void put_column(const layer *l, int32_t bias, float m) {
  const ft_window *w = &l->window;
  int8_t *y = l->y;
  for (uint32_t n = 0; n < w->y.batch; n++)
    for (uint32_t oy = 0; oy < w->y.height; oy++)
      for (uint32_t ox = 0; ox < w->y.width; ox++, y += w->y.channels) {
        const span rows = inside(oy, w->stride_h, w->pad_top, w->kernel_h, w->x.height);
        const span columns = inside(ox, w->stride_w, w->pad_left, w->kernel_w, w->x.width);
        const int8_t *image = l->x + n * w->x.height * x_row(l);
        const place at = place_of(l, image, oy, rows, ox, columns);
        *y = ft_quantised((float)(bias + sum_at(l, &at)) * m, l->y_zero);
      }
}

/* ---- an op --------------------------------------------------------------------------------- */

/* A window of one tap sees no edges: the whole batch as one row. */
static ft_window in_a_row(ft_window w) {
  if (w.kernel_h * w.kernel_w * w.stride_h * w.stride_w != 1 || w.pad_top || w.pad_left ||
      w.y.height * w.y.width != w.x.height * w.x.width)
    return w;
  w.x.width = w.y.width = w.x.batch * w.x.height * w.x.width;
  w.x.batch = w.x.height = w.y.batch = w.y.height = 1;
  return w;
}

/* The next columns; how many they are. `alike` have the same inputs. */
static uint32_t put_some(layer *l, uint32_t alike, const float *step, const float *b,
                         float x_scale, float y_scale) {
  const uint32_t count = alike < COLUMNS ? 1 : COLUMNS;
  const uint32_t taps = l->window.kernel_h * l->window.kernel_w;
  int is_finite = 1;
  float m[COLUMNS];
  for (uint32_t k = 0; k < count; k++) {
    const float unit = x_scale * step[k];
    l->bias[k] = b ? ft_bias8(b[k], unit) : 0;
    m[k] = unit / y_scale;
    l->factor[k] = ft_factor_of(m[k]);
    is_finite &= m[k] < __builtin_inff();
  }
  if (count == COLUMNS && is_finite && (!l->by_channel || taps <= TERMS)) {
    put_columns(l);
    return COLUMNS;
  }
  for (uint32_t k = 0; k < count; k++, l->w++, l->y++, l->x += l->by_channel)
    put_column(l, l->bias[k], m[k]);
  return count;
}

void ft_conv8(const ft_conv *conv, const int8_t *x, ft_grid x_grid, const int8_t *w,
              const float *step, const float *b, int8_t *y, ft_grid y_grid, void *room) {
  const uint32_t inputs = conv->window.x.channels, outputs = conv->window.y.channels;
  const uint32_t depth = inputs / conv->groups, columns = outputs / conv->groups;
  layer l = {.window = in_a_row(conv->window), .depth = depth, .is_whole = conv->groups == 1,
             .by_channel = conv->groups == inputs && columns == 1,
             .x_zero = x_grid.zero, .y_zero = y_grid.zero};
  const uint32_t alike = l.by_channel ? outputs : columns; /* columns of the same inputs */
  (void)room;
  for (uint32_t o = 0; o < outputs;) {
    const uint32_t left = alike - o % alike;
    if (alike >= COLUMNS && left < COLUMNS) o -= COLUMNS - left; /* some of them again */
    l.x = x + o / columns * depth, l.w = w + o, l.y = y + o;
    o += put_some(&l, alike, step + o, b ? b + o : NULL, x_grid.scale, y_grid.scale);
  }
}

#endif
