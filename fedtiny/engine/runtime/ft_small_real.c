/* ft_small_real.c: float ops over int8 operands, for a microcontroller (FT_SMALL): they read the
 * numbers themselves.
 *
 * A linear layer is a convolution of one tap over images of one pixel.
 */
#include "ft_requantise.h"
#include "ft_small.h"

#ifdef FT_SMALL

/* ---- operands ------------------------------------------------------------------------------ */

/* An activation of either dtype; q is NULL of floats. */
typedef struct {
  const int8_t *q;
  const float *real;
  ft_grid grid;
} values;

static values values_of(const ft_frame *f, const ft_op *op, uint32_t k) {
  values v = {NULL, ft_at(f, op, k), {0.0f, 0}};
  if (ft_operand(f, op, k)->dtype == FT_I8)
    v.q = ft_bytes_at(f, op, k), v.grid = ft_grid_of(ft_scale_at(f, op, k));
  return v;
}

FT_INLINE float value_at(const values *v, size_t at) {
  return v->q ? ft_real(v->q[at], v->grid) : v->real[at];
}

/* Weights of either dtype, [..., channels]. */
typedef struct {
  const int8_t *q;
  const float *real, *step;
} weights;

static weights weights_of(const ft_frame *f, const ft_op *op, uint32_t k) {
  weights w = {NULL, ft_at(f, op, k), NULL};
  if (ft_operand(f, op, k)->dtype == FT_I8)
    w.q = ft_bytes_at(f, op, k), w.step = ft_scale_at(f, op, k);
  return w;
}

/* Of channel o. */
FT_INLINE float weight_at(const weights *w, size_t at, uint32_t o) {
  return w->q ? (float)w->q[at] * w->step[o] : w->real[at];
}

static int is_linear(const ft_op *op) {
  return op->code == FT_OP_LINEAR_DX || op->code == FT_OP_LINEAR_UPDATE ||
         op->code == FT_OP_LINEAR_NORM || op->code == FT_OP_LINEAR_GRADIENT;
}

static int is_pointwise(const ft_conv *c) {
  const ft_window *w = &c->window;
  return c->groups == 1 && w->kernel_h * w->kernel_w * w->stride_h * w->stride_w == 1 &&
         w->x.height == w->y.height && w->x.width == w->y.width;
}

/* Where nothing depends on edges, the whole batch is a single row. */
static ft_conv in_a_row(ft_conv c) {
  ft_image *x = &c.window.x, *y = &c.window.y;
  if (!is_pointwise(&c)) return c;
  x->width = y->width = x->batch * x->height * x->width;
  x->batch = x->height = y->batch = y->height = 1;
  return c;
}

/* x and dy by their operands, and the one that has the shape of the weights. */
static ft_conv conv_of(const ft_frame *f, const ft_op *op, uint32_t x, uint32_t dy, uint32_t w) {
  if (!is_linear(op))
    return in_a_row(ft_conv_of(op, ft_operand(f, op, x), ft_operand(f, op, w)));
  const ft_tensor *in = ft_operand(f, op, x), *out = ft_operand(f, op, dy);
  const ft_conv linear = {{{in->dims[0], 1, 1, ft_row_floats(in)},
                           {out->dims[0], 1, 1, ft_row_floats(out)}, 1, 1, 1, 1, 0, 0},
                          1, 1, 1};
  return linear;
}

static uint32_t depth_of(const ft_conv *c) { return c->window.x.channels / c->groups; }
static uint32_t columns_of(const ft_conv *c) { return c->window.y.channels / c->groups; }

/* ---- linear -------------------------------------------------------------------------------- */

static float linear_at(const values *x, size_t from, const weights *w, uint32_t in, uint32_t out,
                       uint32_t o, float sum) {
  for (uint32_t i = 0; i < in; i++)
    sum += value_at(x, from + i) * weight_at(w, (size_t)i * out + o, o);
  return sum;
}

static float linear_in_lanes(const values *x, size_t from, const weights *w, uint32_t in) {
  float lane[8] = {0};
  for (uint32_t i = 0; i < in; i++) lane[i % 8] += value_at(x, from + i) * weight_at(w, i, 0);
  return ft_tree(lane);
}

FT_BAND void linear(const ft_frame *f, const ft_op *op) {
  const values x = values_of(f, op, 0);
  const weights w = weights_of(f, op, 1);
  const uint32_t *dims = ft_operand(f, op, 1)->dims, in = dims[0], out = dims[1];
  const float *b = op->t[2] == FT_NONE ? NULL : ft_at(f, op, 2);
  float *y = ft_at(f, op, 3);
  for (uint32_t r = 0; r < ft_operand(f, op, 3)->dims[0]; r++)
    for (uint32_t o = 0; o < out; o++, y++)
      if (out > 1)
        *y = linear_at(&x, (size_t)r * in, &w, in, out, o, b ? b[o] : 0.0f);
      else
        *y = linear_in_lanes(&x, (size_t)r * in, &w, in) + (b ? b[0] : 0.0f);
}

/* ---- the gradient of an activation's kind -------------------------------------------------- */

static void relu_dx(const ft_frame *f, const ft_op *op) {
  const ft_grid grid = ft_grid_of(ft_scale_at(f, op, 1));
  const int8_t *y = ft_bytes_at(f, op, 1);
  const float *dy = ft_at(f, op, 0), slope = op->code == FT_OP_LEAKY_RELU_DX ? ft_scalar(op) : 0.0f;
  const int32_t end = ft_first_from(op->code == FT_OP_RELU6_DX ? 6.0f : 0.0f, grid);
  const uint32_t size = ft_floats(ft_operand(f, op, 2));
  float *dx = ft_at(f, op, 2);
  for (uint32_t i = 0; i < size; i++) {
    if (y[i] > grid.zero && y[i] < end) dx[i] = dy[i];
    else dx[i] = slope == 0.0f ? 0.0f : slope * dy[i];
  }
}

/* ---- dx ------------------------------------------------------------------------------------ */

/* The outputs that read place q of one axis: `count` of them, by every stride'th tap from `tap` on,
 * from `at` on downwards. */
typedef struct { uint32_t tap, at, count; } readers;

static readers readers_of(uint32_t q, uint32_t stride, uint32_t pad, uint32_t kernel,
                          uint32_t outputs) {
  const uint32_t start = q + pad, last = start / stride;
  const uint32_t at = last < outputs ? last : outputs - 1, tap = start - at * stride;
  const uint32_t more = tap < kernel ? (kernel - 1 - tap) / stride : 0;
  const readers r = {tap, at, tap < kernel ? (more < at ? more : at) + 1 : 0};
  return r;
}

/* A place of x, and who reads it. */
typedef struct { uint32_t image; readers rows, columns; } place;

/* dx of input i of the group of the columns from o on. */
static float dx_at(const ft_conv *c, const float *dy, const weights *w, const place *q, uint32_t i,
                   uint32_t o) {
  const ft_window *win = &c->window;
  const uint32_t out = win->y.channels, columns = columns_of(c);
  float lane[8] = {0};
  for (uint32_t row = 0; row < q->rows.count; row++)
    for (uint32_t column = 0; column < q->columns.count; column++) {
      const uint32_t tap = (q->rows.tap + row * win->stride_h) * win->kernel_w + q->columns.tap +
                           column * win->stride_w;
      const uint32_t at = (q->image * win->y.height + q->rows.at - row) * win->y.width +
                          q->columns.at - column;
      for (uint32_t k = 0; k < columns; k++)
        lane[k % 8] += weight_at(w, (size_t)(tap * depth_of(c) + i) * out + o + k, o + k) *
                       dy[(size_t)at * out + o + k];
    }
  return ft_tree(lane);
}

static readers rows_of(const ft_window *w, uint32_t y) {
  return readers_of(y, w->stride_h, w->pad_top, w->kernel_h, w->y.height);
}

static readers columns_at(const ft_window *w, uint32_t x) {
  return readers_of(x, w->stride_w, w->pad_left, w->kernel_w, w->y.width);
}

static void any_dx(const ft_conv *c, const float *dy, const weights *w, float *dx) {
  const ft_image *x = &c->window.x;
  const uint32_t depth = depth_of(c), columns = columns_of(c);
  place q;
  for (q.image = 0; q.image < x->batch; q.image++)
    for (uint32_t y = 0; y < x->height; y++) {
      q.rows = rows_of(&c->window, y);
      for (uint32_t z = 0; z < x->width; z++) {
        q.columns = columns_at(&c->window, z);
        for (uint32_t i = 0; i < x->channels; i++)
          *dx++ = dx_at(c, dy, w, &q, i % depth, i / depth * columns);
      }
    }
}

/* ---- dx of windows that see one channel each ----------------------------------------------- */

enum { CHANNELS = 4, TAPS = 49 };

static int is_by_channel(const ft_conv *c) {
  return depth_of(c) == 1 && columns_of(c) == 1 && c->groups % CHANNELS == 0 &&
         c->window.kernel_h * c->window.kernel_w <= TAPS;
}

/* Of some channels at a place: a sum in one lane, since the others are 0. */
FT_BAND void put_channels_dx(const ft_window *win, const float *dy, float (*real)[CHANNELS],
                             const place *q, float *dx) {
  const uint32_t channels = win->y.channels, next = win->stride_w;
  float s[CHANNELS] = {0};
  for (uint32_t row = 0; row < q->rows.count; row++) {
    const uint32_t tap = (q->rows.tap + row * win->stride_h) * win->kernel_w + q->columns.tap;
    const uint32_t y = q->image * win->y.height + q->rows.at - row;
    const float *w = real[tap], *d = dy + (y * win->y.width + q->columns.at) * channels;
    for (uint32_t left = q->columns.count; left; left--, w += next * CHANNELS, d -= channels)
      FT_UNROLL for (uint32_t k = 0; k < CHANNELS; k++) s[k] += w[k] * d[k];
  }
  FT_UNROLL for (uint32_t k = 0; k < CHANNELS; k++) dx[k] = s[k];
}

FT_BAND void channels_dx(const ft_conv *c, const float *dy, const weights *w, float *dx) {
  const ft_image *x = &c->window.x;
  const uint32_t taps = c->window.kernel_h * c->window.kernel_w;
  float real[TAPS][CHANNELS];
  place q;
  for (uint32_t i = 0; i < x->channels; i += CHANNELS) {
    float *to = dx + i;
    for (uint32_t tap = 0; tap < taps; tap++)
      ft_get_weights(w->q + tap * x->channels + i, w->step + i, CHANNELS, real[tap]);
    for (q.image = 0; q.image < x->batch; q.image++)
      for (uint32_t y = 0; y < x->height; y++) {
        q.rows = rows_of(&c->window, y);
        for (uint32_t z = 0; z < x->width; z++, to += x->channels) {
          q.columns = columns_at(&c->window, z);
          put_channels_dx(&c->window, dy + i, real, &q, to);
        }
      }
  }
}

/* ---- dx of windows of one tap -------------------------------------------------------------- */

enum { INPUTS = 4, POSITIONS = 4 };

/* Lane sums become their tree as they come: what waits for its other half stands in `part`. */
FT_INLINE int join(uint32_t lane, uint32_t count, float *sum, float part[3][INPUTS * POSITIONS]) {
  uint32_t level = 0;
  for (; lane >> level & 1; level++)
    FT_UNROLL for (uint32_t k = 0; k < count; k++) sum[k] = part[level][k] + sum[k];
  if (level == 3) return 1;
  FT_UNROLL for (uint32_t k = 0; k < count; k++) part[level][k] = sum[k];
  return 0;
}

/* Adds the products with one output. */
FT_INLINE void add_output(uint32_t positions, const float *dy, const int8_t *w, float step,
                          uint32_t out, float *sum) {
  float d[POSITIONS];
  FT_UNROLL for (uint32_t p = 0; p < positions; p++) d[p] = dy[p * out];
  FT_UNROLL for (uint32_t i = 0; i < INPUTS; i++) {
    const float weight = (float)w[i * out] * step;
    FT_UNROLL for (uint32_t p = 0; p < positions; p++) sum[p * INPUTS + i] += weight * d[p];
  }
}

/* dx of four inputs at some positions; w stands at the first input's row. */
FT_INLINE void dx_tile(uint32_t positions, const float *dy, const int8_t *w, const float *step,
                       uint32_t out, float *dx, uint32_t in) {
  float part[3][INPUTS * POSITIONS], sum[INPUTS * POSITIONS];
  for (uint32_t lane = 0; lane < 8; lane++) {
    FT_UNROLL for (uint32_t k = 0; k < INPUTS * positions; k++) sum[k] = 0.0f;
    for (uint32_t o = lane; o < out; o += 8)
      add_output(positions, dy + o, w + o, step[o], out, sum);
    if (join(lane, INPUTS * positions, sum, part))
      FT_UNROLL for (uint32_t p = 0; p < positions; p++)
        FT_UNROLL for (uint32_t i = 0; i < INPUTS; i++) dx[p * in + i] = sum[p * INPUTS + i];
  }
}

FT_BAND void dx_of_4(const float *dy, const int8_t *w, const float *step, uint32_t out, float *dx,
                     uint32_t in) {
  dx_tile(4, dy, w, step, out, dx, in);
}

FT_BAND void dx_of_1(const float *dy, const int8_t *w, const float *step, uint32_t out, float *dx,
                     uint32_t in) {
  dx_tile(1, dy, w, step, out, dx, in);
}

/* The last tiles reach back over those before them. */
static void pointwise_dx(const ft_conv *c, const float *dy, const weights *w, float *dx) {
  const uint32_t in = c->window.x.channels, out = c->window.y.channels;
  const uint32_t positions = c->window.x.batch * c->window.x.height * c->window.x.width;
  for (uint32_t p = 0, some; p < positions; p += some, dy += some * out, dx += some * in) {
    some = positions - p < POSITIONS ? 1 : POSITIONS;
    for (uint32_t k = 0; k < in; k += INPUTS) {
      const uint32_t i = k + INPUTS <= in ? k : in - INPUTS;
      const int8_t *row = w->q + (size_t)i * out;
      if (some == 1)
        dx_of_1(dy, row, w->step, out, dx + i, in);
      else
        dx_of_4(dy, row, w->step, out, dx + i, in);
    }
  }
}

static void conv_dx(const ft_frame *f, const ft_op *op) {
  const ft_conv c = conv_of(f, op, 2, 0, 1);
  const weights w = weights_of(f, op, 1);
  const float *dy = ft_at(f, op, 0);
  float *dx = ft_at(f, op, 2);
  const uint32_t in = c.window.x.channels;
  if (is_linear(op) && c.window.y.channels == 1)
    for (uint32_t r = 0; r < c.window.x.batch; r++)
      for (uint32_t i = 0; i < in; i++) dx[r * in + i] = dy[r] * weight_at(&w, i, 0);
  else if (is_pointwise(&c) && in >= INPUTS)
    pointwise_dx(&c, dy, &w, dx);
  else if (is_by_channel(&c))
    channels_dx(&c, dy, &w, dx);
  else
    any_dx(&c, dy, &w, dx);
}

/* ---- gradients of weights ------------------------------------------------------------------ */

/* The first float of each of `rows` rows of `columns` positions whose tap is inside. */
typedef struct {
  uint32_t rows, columns;
  size_t x, dy;            /* of the first one */
} area;

/* The positions along one axis whose tap is inside. */
typedef struct { uint32_t first, end; } span;

static span reached(uint32_t tap, uint32_t stride, uint32_t pad, uint32_t size, uint32_t outputs) {
  const uint32_t behind = size + pad > tap ? (size + pad - tap - 1) / stride + 1 : 0;
  const span s = {tap < pad ? (pad - tap + stride - 1) / stride : 0,
                  behind < outputs ? behind : outputs};
  return s;
}

/* A weight: tap (ky, kx), input i of the group of output o. */
typedef struct { uint32_t ky, kx, i, o; } weight;

static area area_of(const ft_conv *c, const weight *k) {
  const ft_window *w = &c->window;
  const span y = reached(k->ky, w->stride_h, w->pad_top, w->x.height, w->y.height);
  const span x = reached(k->kx, w->stride_w, w->pad_left, w->x.width, w->y.width);
  area a = {0, 0, k->o / columns_of(c) * depth_of(c) + k->i, k->o};
  if (y.first >= y.end || x.first >= x.end) return a;
  a.rows = y.end - y.first, a.columns = x.end - x.first;
  a.x += ((y.first * w->stride_h + k->ky - w->pad_top) * (size_t)w->x.width +
          x.first * w->stride_w + k->kx - w->pad_left) * w->x.channels;
  a.dy += (y.first * (size_t)w->y.width + x.first) * w->y.channels;
  return a;
}

static size_t numbers(const ft_image *image) {
  return (size_t)image->height * image->width * image->channels;
}

static float gradient_at(const ft_conv *c, const values *x, const float *dy, const weight *k) {
  const ft_window *w = &c->window;
  const area a = area_of(c, k);
  const size_t x_row = (size_t)w->stride_h * w->x.width * w->x.channels;
  float sum = 0.0f;
  for (uint32_t n = 0; n < w->x.batch; n++)
    for (uint32_t row = 0; row < a.rows; row++) {
      size_t from = n * numbers(&w->x) + a.x + row * x_row;
      const float *d = dy + n * numbers(&w->y) + a.dy + row * w->y.width * w->y.channels;
      for (uint32_t p = 0; p < a.columns; p++, d += w->y.channels) {
        sum += value_at(x, from) * *d;
        from += w->stride_w * w->x.channels;
      }
    }
  return sum;
}

enum { COLUMNS = 4 };

/* Adds a row of positions to the gradients of four inputs and four outputs. */
FT_BAND void add_row(const int8_t *x, size_t x_pace, ft_grid grid, const float *dy, size_t dy_pace,
                     uint32_t positions, float *sum) {
  float g[INPUTS * COLUMNS];
  FT_UNROLL for (uint32_t k = 0; k < INPUTS * COLUMNS; k++) g[k] = sum[k];
  for (; positions; positions--, x += x_pace, dy += dy_pace)
    FT_UNROLL for (uint32_t i = 0; i < INPUTS; i++) {
      const float real = ft_real(x[i], grid);
      FT_UNROLL for (uint32_t o = 0; o < COLUMNS; o++) g[i * COLUMNS + o] += real * dy[o];
    }
  FT_UNROLL for (uint32_t k = 0; k < INPUTS * COLUMNS; k++) sum[k] = g[k];
}

/* Of the inputs and outputs from k on. */
static void gradient_tile(const ft_conv *c, const values *x, const float *dy, const weight *k,
                          float *sum) {
  const ft_window *w = &c->window;
  const area a = area_of(c, k);
  memset(sum, 0, INPUTS * COLUMNS * sizeof *sum);
  for (uint32_t n = 0; n < w->x.batch; n++)
    for (uint32_t row = 0; row < a.rows; row++)
      add_row(x->q + n * numbers(&w->x) + a.x + row * w->stride_h * w->x.width * w->x.channels,
              (size_t)w->stride_w * w->x.channels, x->grid,
              dy + n * numbers(&w->y) + a.dy + row * w->y.width * w->y.channels, w->y.channels,
              a.columns, sum);
}

/* ---- updates ------------------------------------------------------------------------------- */

/* What an update moves. */
typedef struct {
  ft_rule rule;
  ft_rounding rounding;
  int8_t *q;               /* NULL of floats */
  float *real;
  uint32_t block, words[4];/* drawn last */
  int is_plain;
} target;

static target target_of(const ft_frame *f, const ft_op *op) {
  target t;
  t.rule = ft_rule_of(f, op);
  t.is_plain = ft_rule_is_plain(&t.rule);
  t.q = NULL, t.real = ft_at(f, op, 2);
  t.block = UINT32_MAX;    /* there is none */
  if (ft_operand(f, op, 2)->dtype != FT_I8) return t;
  t.q = ft_bytes_at(f, op, 2);
  t.rounding = ft_rounding_of(f, op);
  return t;
}

FT_BAND void draw(target *t, uint32_t block) {
  t->block = block;
  ft_words(&t->rounding.stream, block, t->words);
}

FT_INLINE float uniform_at(target *t, uint32_t word) {
  if (word / 4 != t->block) draw(t, word / 4);
  return ft_uniform(t->words[word % 4]);
}

/* `count` elements from `at` on, of the channels from o on. */
FT_BAND void move(target *t, uint32_t at, uint32_t o, const float *gradient, uint32_t count) {
  const float lr = t->rule.lr;
  for (const uint32_t end = at + count; at < end; at++, o++) {
    float g = *gradient++;
    if (!t->q) {
      if (t->is_plain) t->real[at] = t->real[at] - lr * g;
      else ft_apply(&t->rule, t->real, at, g);
      continue;
    }
    const float step = t->rounding.step[o];
    if (!t->is_plain) g = ft_followed(&t->rule, (float)t->q[at] * step, at, g);
    t->q[at] = ft_rounded(t->q[at], (lr * g) / step, uniform_at(t, t->rounding.word + at));
  }
}

/* The weights of a tap, whose first is element `first`. The last tiles reach back over those before
 * them, and move what is left. */
static void move_tiles(target *t, const ft_conv *c, const values *x, const float *dy,
                       const weight *tap, uint32_t first) {
  const uint32_t out = c->window.y.channels, depth = depth_of(c), columns = columns_of(c);
  float g[INPUTS * COLUMNS];
  for (uint32_t i = 0; i < depth; i += INPUTS)
    for (uint32_t o = 0, some; o < out; o += some) {
      const uint32_t left = columns - o % columns;
      some = left < COLUMNS ? left : COLUMNS;
      const weight k = {tap->ky, tap->kx, i + INPUTS <= depth ? i : depth - INPUTS,
                        o + some - COLUMNS};
      gradient_tile(c, x, dy, &k, g);
      for (uint32_t row = i; row < depth && row < i + INPUTS; row++)
        move(t, first + row * out + o, o, g + (row - k.i) * COLUMNS + (o - k.o), some);
    }
}

static void move_singly(target *t, const ft_conv *c, const values *x, const float *dy,
                        const weight *tap, uint32_t first) {
  weight k = *tap;
  for (; k.i < depth_of(c); k.i++)
    for (k.o = 0; k.o < c->window.y.channels; k.o++, first++) {
      const float g = gradient_at(c, x, dy, &k);
      move(t, first, k.o, &g, 1);
    }
}

FT_BAND void update(const ft_frame *f, const ft_op *op) {
  const ft_conv c = conv_of(f, op, 0, 1, 2);
  const values x = values_of(f, op, 0);
  const float *dy = ft_at(f, op, 1);
  const uint32_t taps = c.window.kernel_h * c.window.kernel_w;
  target t = target_of(f, op);
  for (uint32_t tap = 0; tap < taps; tap++) {
    const weight k = {tap / c.window.kernel_w, tap % c.window.kernel_w, 0, 0};
    const uint32_t first = tap * depth_of(&c) * c.window.y.channels;
    if (x.q && depth_of(&c) >= INPUTS && columns_of(&c) >= COLUMNS)
      move_tiles(&t, &c, &x, dy, &k, first);
    else
      move_singly(&t, &c, &x, dy, &k, first);
  }
}

static void gradient_update(const ft_frame *f, const ft_op *op) {
  const float *g = ft_at(f, op, 1);
  const uint32_t size = ft_floats(ft_operand(f, op, 2));
  target t = target_of(f, op);
  const uint32_t channels = ft_channels(ft_operand(f, op, 2));
  for (uint32_t at = 0; at < size; at += channels) move(&t, at, 0, g + at, channels);
}

/* ---- norms --------------------------------------------------------------------------------- */

/* Adds the squares of columns [first, end), row by row. */
static void add_squares(const ft_conv *c, const values *x, const float *dy, uint32_t first,
                        uint32_t end, float lane[8]) {
  const uint32_t taps = c->window.kernel_h * c->window.kernel_w, depth = depth_of(c);
  for (uint32_t row = 0; row < taps * depth; row++)
    for (uint32_t o = first; o < end; o++) {
      const uint32_t tap = row / depth;
      const weight k = {tap / c->window.kernel_w, tap % c->window.kernel_w, row % depth, o};
      const float g = gradient_at(c, x, dy, &k);
      lane[o % 8] += g * g;
    }
}

FT_BAND void norm(const ft_frame *f, const ft_op *op) {
  if (!(f->hyper->clip > 0.0f)) return;
  const ft_conv c = conv_of(f, op, 0, 1, 3);
  const values x = values_of(f, op, 0);
  const uint32_t out = c.window.y.channels, some = is_linear(op) ? out : 8;
  float lane[8] = {0};
  for (uint32_t o = 0; o < out; o += some)
    add_squares(&c, &x, ft_at(f, op, 1), o, out - o < some ? out : o + some, lane);
  *ft_at(f, op, 2) += ft_tree(lane);
}

/* ---- an op --------------------------------------------------------------------------------- */

void ft_run_real(const ft_frame *f, const ft_op *op) {
  switch (op->code) {
    case FT_OP_LINEAR: linear(f, op); break;
    case FT_OP_LINEAR_DX: case FT_OP_CONV_DX: conv_dx(f, op); break;
    case FT_OP_RELU_DX: case FT_OP_RELU6_DX: case FT_OP_LEAKY_RELU_DX: relu_dx(f, op); break;
    case FT_OP_LINEAR_NORM: case FT_OP_CONV_NORM: norm(f, op); break;
    case FT_OP_GRADIENT_UPDATE: gradient_update(f, op); break;
    default: update(f, op);
  }
}

#endif
