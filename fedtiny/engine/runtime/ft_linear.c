/* ft_linear.c: the dense layer forward and back to its input, eight lanes.
 *
 * Forward, the lanes are eight columns of y: each sum is sequential over `in` by itself. Back, the
 * sum runs over contiguous columns of w: eight lanes and the tree, eight results at once.
 */
#include "ft_blocks.h"

#ifndef FT_SMALL

/* ---- y[rows, 8 vectors] = b + x[rows, in] w[in, 8 vectors] --------------------------------- */

FT_INLINE void forward_block(uint32_t rows, uint32_t vectors, int partial, const float *x,
                             const float *w, const float *b, float *y, uint32_t in, uint32_t out,
                             uint32_t lanes) {
  v8 sum[6][4];
  FT_UNROLL for (uint32_t v = 0; v < vectors; v++) {
    v8 start = {0};
    if (b) start = ft_get8(b + 8 * v, partial, lanes);
    FT_UNROLL for (uint32_t r = 0; r < rows; r++) sum[r][v] = start;
  }
  for (uint32_t i = 0; i < in; i++, w += out) {
    v8 weight[4];
    FT_UNROLL for (uint32_t v = 0; v < vectors; v++) weight[v] = ft_get8(w + 8 * v, partial, lanes);
    FT_UNROLL for (uint32_t r = 0; r < rows; r++)
      FT_UNROLL for (uint32_t v = 0; v < vectors; v++) sum[r][v] += x[(size_t)r * in + i] * weight[v];
  }
  FT_UNROLL for (uint32_t r = 0; r < rows; r++)
    FT_UNROLL for (uint32_t v = 0; v < vectors; v++)
      ft_put8(y + (size_t)r * out + 8 * v, sum[r][v], partial, lanes);
}

typedef void forward_fn(const float *x, const float *w, const float *b, float *y, uint32_t in,
                        uint32_t out, uint32_t lanes);

#define FORWARD(name, rows, vectors, partial)                                                      \
  FT_BLOCK void name(const float *x, const float *w, const float *b, float *y, uint32_t in,        \
                     uint32_t out, uint32_t lanes) {                                               \
    forward_block(rows, vectors, partial, x, w, b, y, in, out, lanes);                             \
  }
FORWARD(forward_1x32, 1, 4, 0)
FORWARD(forward_1x16, 1, 2, 0)
FORWARD(forward_2x16, 2, 2, 0)
FORWARD(forward_4x16, 4, 2, 0)
FORWARD(forward_6x16, 6, 2, 0)
FORWARD(forward_1x8, 1, 1, 1)
FORWARD(forward_2x8, 2, 1, 1)
FORWARD(forward_4x8, 4, 1, 1)
FORWARD(forward_6x8, 6, 1, 1)
#undef FORWARD

/* All rows of one band of columns, in blocks of 6, 4, 2 and 1 rows. */
static void forward_band(forward_fn *const block[4], const float *x, const float *w, const float *b,
                         float *y, uint32_t rows, uint32_t in, uint32_t out, uint32_t lanes) {
  static const uint32_t block_rows[4] = {6, 4, 2, 1};
  for (uint32_t k = 0; k < 4; k++)
    for (; rows >= block_rows[k]; rows -= block_rows[k]) {
      block[k](x, w, b, y, in, out, lanes);
      x += (size_t)block_rows[k] * in;
      y += (size_t)block_rows[k] * out;
    }
}

static void forward_wide(const float *x, const float *w, const float *b, float *y, uint32_t rows,
                         uint32_t in, uint32_t out) {
  static forward_fn *const wide[4] = {forward_6x16, forward_4x16, forward_2x16, forward_1x16};
  static forward_fn *const narrow[4] = {forward_6x8, forward_4x8, forward_2x8, forward_1x8};
  uint32_t o = 0;
  if (rows == 1)
    for (; o + 32 <= out; o += 32) forward_1x32(x, w + o, b ? b + o : NULL, y + o, in, out, 8);
  for (; o + 16 <= out; o += 16)
    forward_band(wide, x, w + o, b ? b + o : NULL, y + o, rows, in, out, 8);
  for (; o < out; o += 8)
    forward_band(narrow, x, w + o, b ? b + o : NULL, y + o, rows, in, out,
                 out - o < 8 ? out - o : 8);
}

/* Eight rows of x times one column of weights. */
FT_BLOCK v8 forward_8x1(const float *x, const float *w, uint32_t in) {
  v8 sum[8] = {{0}};
  uint32_t i = 0;
  for (; i + 8 <= in; i += 8) {
    const v8 weight = ft_load8(w + i);
    FT_UNROLL for (uint32_t r = 0; r < 8; r++) sum[r] += ft_load8(x + (size_t)r * in + i) * weight;
  }
  if (i < in) {
    const v8 weight = ft_load8_first(w + i, in - i);
    FT_UNROLL for (uint32_t r = 0; r < 8; r++)
      sum[r] += ft_load8_first(x + (size_t)r * in + i, in - i) * weight;
  }
  return ft_tree8_of8(sum);
}

static void forward_column(const float *x, const float *w, const float *b, float *y, uint32_t rows,
                           uint32_t in) {
  uint32_t r = 0;
  for (; r + 8 <= rows; r += 8, x += (size_t)8 * in) {
    const v8 sum = forward_8x1(x, w, in);
    ft_store8(y + r, b ? sum + b[0] : sum);
  }
  for (; r < rows; r++, x += in) {
    const float sum = ft_dot8(x, w, in);
    y[r] = b ? sum + b[0] : sum;
  }
}

void ft_linear_f32(const float *x, const float *w, const float *b, float *y, uint32_t rows,
                   uint32_t in, uint32_t out) {
  if (out == 1)
    forward_column(x, w, b, y, rows, in);
  else
    forward_wide(x, w, b, y, rows, in, out);
}

/* ---- dx[rows, in] = dy[rows, out] w[in, out]^T --------------------------------------------- */

/* `rows` rows of dy against 8 / rows rows of w. */
FT_INLINE v8 back_block(uint32_t rows, const float *dy, const float *w, uint32_t out) {
  const uint32_t ins = 8 / rows;
  v8 sum[8] = {{0}};
  for (uint32_t o = 0; o < out; o += 8) {
    const uint32_t lanes = out - o < 8 ? out - o : 8;
    v8 gradient[2];
    FT_UNROLL for (uint32_t r = 0; r < rows; r++)
      gradient[r] = ft_get8(dy + (size_t)r * out + o, 1, lanes);
    FT_UNROLL for (uint32_t i = 0; i < ins; i++) {
      const v8 weight = ft_get8(w + (size_t)i * out + o, 1, lanes);
      FT_UNROLL for (uint32_t r = 0; r < rows; r++) sum[r * ins + i] += weight * gradient[r];
    }
  }
  return ft_tree8_of8(sum);
}

FT_BLOCK v8 back_1x8(const float *dy, const float *w, uint32_t out) {
  return back_block(1, dy, w, out);
}

FT_BLOCK v8 back_2x4(const float *dy, const float *w, uint32_t out) {
  return back_block(2, dy, w, out);
}

/* Where the next block of `size` starts: the last one ends at the end, and so may compute again
 * what the one before it has computed. */
FT_INLINE uint32_t block_start(uint32_t i, uint32_t size, uint32_t end) {
  return i + size <= end ? i : end - size;
}

static void back_one_row(const float *dy, const float *w, float *dx, uint32_t in, uint32_t out) {
  if (in < 8) {
    for (uint32_t i = 0; i < in; i++) dx[i] = ft_dot8(w + (size_t)i * out, dy, out);
    return;
  }
  for (uint32_t i = 0; i < in; i += 8) {
    const uint32_t start = block_start(i, 8, in);
    ft_store8(dx + start, back_1x8(dy, w + (size_t)start * out, out));
  }
}

static void back_two_rows(const float *dy, const float *w, float *dx, uint32_t in, uint32_t out) {
  for (uint32_t i = 0; i < in; i += 4) {
    const uint32_t start = block_start(i, 4, in);
    const v8 both = back_2x4(dy, w + (size_t)start * out, out);
    memcpy(dx + start, &both, 4 * sizeof(float));
    memcpy(dx + in + start, (const float *)(const void *)&both + 4, 4 * sizeof(float));
  }
}

static void back_column(const float *dy, const float *w, float *dx, uint32_t rows, uint32_t in) {
  for (uint32_t r = 0; r < rows; r++, dx += in) {
    uint32_t i = 0;
    for (; i + 8 <= in; i += 8) ft_store8(dx + i, dy[r] * ft_load8(w + i));
    for (; i < in; i++) dx[i] = dy[r] * w[i];
  }
}

void ft_linear_dx_f32(const float *dy, const float *w, float *dx, uint32_t rows, uint32_t in,
                      uint32_t out) {
  if (out == 1) {
    back_column(dy, w, dx, rows, in);
    return;
  }
  uint32_t r = 0;
  if (in >= 4)
    for (; r + 2 <= rows; r += 2)
      back_two_rows(dy + (size_t)r * out, w, dx + (size_t)r * in, in, out);
  for (; r < rows; r++) back_one_row(dy + (size_t)r * out, w, dx + (size_t)r * in, in, out);
}

#endif
