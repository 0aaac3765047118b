/* ft_linear.c: the dense layer forward and back to its input.
 *
 * Forward, the lanes are columns of y: each sum is sequential over `in` by itself. Back, a sum runs
 * over contiguous columns of w: eight lanes and the tree, several results at once.
 */
#include "ft_blocks.h"

#ifndef FT_SMALL

/* ---- y[rows, out] = b + x[rows, in] w[in, out] --------------------------------------------- */

/* `rows` rows of y, `vectors` vw of columns. */
FT_INLINE void forward_block(uint32_t rows, uint32_t vectors, int partial, const float *x,
                             const float *w, const float *b, float *y, uint32_t in, uint32_t out,
                             uint32_t lanes) {
  vw sum[6][4];
  FT_UNROLL for (uint32_t v = 0; v < vectors; v++) {
    const vw start = b ? ft_get(b + FT_WIDTH * v, partial, lanes) : FT_W(set)(0.0f);
    FT_UNROLL for (uint32_t r = 0; r < rows; r++) sum[r][v] = start;
  }
  for (uint32_t i = 0; i < in; i++, w += out) {
    vw weight[4];
    FT_UNROLL for (uint32_t v = 0; v < vectors; v++)
      weight[v] = ft_get(w + FT_WIDTH * v, partial, lanes);
    FT_UNROLL for (uint32_t r = 0; r < rows; r++) {
      const float value = x[(size_t)r * in + i];
      FT_UNROLL for (uint32_t v = 0; v < vectors; v++) sum[r][v] += value * weight[v];
    }
  }
  FT_UNROLL for (uint32_t r = 0; r < rows; r++)
    FT_UNROLL for (uint32_t v = 0; v < vectors; v++)
      ft_put(y + (size_t)r * out + FT_WIDTH * v, sum[r][v], partial, lanes);
}

/* All rows of one band of columns. */
FT_INLINE void forward_band(uint32_t vectors, int partial, const float *x, const float *w,
                            const float *b, float *y, uint32_t rows, uint32_t in, uint32_t out,
                            uint32_t lanes) {
  uint32_t r = 0;
#define BLOCKS(size)                                                                               \
  for (; r + size <= rows; r += size, x += (size_t)size * in, y += (size_t)size * out)             \
    forward_block(size, vectors, partial, x, w, b, y, in, out, lanes);
  BLOCKS(6)
  BLOCKS(4)
  BLOCKS(2)
  BLOCKS(1)
#undef BLOCKS
}

typedef void forward_fn(const float *x, const float *w, const float *b, float *y, uint32_t rows,
                        uint32_t in, uint32_t out, uint32_t lanes);

#define FORWARD(name, body)                                                                        \
  FT_BAND void name(const float *x, const float *w, const float *b, float *y, uint32_t rows,       \
                    uint32_t in, uint32_t out, uint32_t lanes) {                                   \
    body;                                                                                          \
  }
FORWARD(forward_1x4, (void)rows; forward_block(1, 4, 0, x, w, b, y, in, out, lanes))
FORWARD(forward_2, forward_band(2, 0, x, w, b, y, rows, in, out, lanes))
FORWARD(forward_1, forward_band(1, 0, x, w, b, y, rows, in, out, lanes))
FORWARD(forward_last, forward_band(1, 1, x, w, b, y, rows, in, out, lanes))
#undef FORWARD

static void forward_matrix(const float *x, const float *w, const float *b, float *y, uint32_t rows,
                           uint32_t in, uint32_t out) {
  uint32_t o = 0;
#define BAND(function, at, width)                                                                  \
  function(x, w + (at), b ? b + (at) : NULL, y + (at), rows, in, out, width)
  if (out < FT_WIDTH) {
    BAND(forward_last, 0, out);
    return;
  }
  if (rows == 1)
    for (; o + 4 * FT_WIDTH <= out; o += 4 * FT_WIDTH) BAND(forward_1x4, o, FT_WIDTH);
  for (; o + 2 * FT_WIDTH <= out; o += 2 * FT_WIDTH) BAND(forward_2, o, FT_WIDTH);
  for (; o < out; o += FT_WIDTH) BAND(forward_1, ft_block_start(o, FT_WIDTH, out), FT_WIDTH);
#undef BAND
}

/* FT_WIDTH rows of x times one column of weights. */
FT_INLINE vw forward_dots(const float *x, const float *w, uint32_t in) {
  ft_lanes sum[FT_WIDTH];
  FT_UNROLL for (uint32_t r = 0; r < FT_WIDTH; r++) sum[r] = ft_no_lanes();
  uint32_t i = 0;
  for (; i + 8 <= in; i += 8) {
    const ft_lanes weight = ft_lanes_at(w + i);
    FT_UNROLL for (uint32_t r = 0; r < FT_WIDTH; r++)
      ft_add_products(&sum[r], ft_lanes_at(x + (size_t)r * in + i), weight);
  }
  if (i < in) {
    const ft_lanes weight = ft_lanes_first(w + i, in - i);
    FT_UNROLL for (uint32_t r = 0; r < FT_WIDTH; r++)
      ft_add_products(&sum[r], ft_lanes_first(x + (size_t)r * in + i, in - i), weight);
  }
  return ft_trees(sum);
}

static void forward_column(const float *x, const float *w, const float *b, float *y, uint32_t rows,
                           uint32_t in) {
  uint32_t r = 0;
  for (; r + FT_WIDTH <= rows; r += FT_WIDTH, x += (size_t)FT_WIDTH * in) {
    const vw sum = forward_dots(x, w, in);
    FT_W(store)(y + r, b ? sum + b[0] : sum);
  }
  for (; r < rows; r++, x += in) {
    const float sum = ft_dot(x, w, in);
    y[r] = b ? sum + b[0] : sum;
  }
}

void ft_linear_f32(const float *x, const float *w, const float *b, float *y, uint32_t rows,
                   uint32_t in, uint32_t out) {
  if (out == 1)
    forward_column(x, w, b, y, rows, in);
  else
    forward_matrix(x, w, b, y, rows, in, out);
}

/* ---- dx[rows, in] = dy[rows, out] w[in, out]^T --------------------------------------------- */

/* FT_WIDTH results: `rows` rows of dy against FT_WIDTH / rows rows of w. */
FT_INLINE vw back_block(uint32_t rows, const float *dy, const float *w, uint32_t out) {
  const uint32_t ins = FT_WIDTH / rows;
  ft_lanes sum[FT_WIDTH], gradient[2];
  FT_UNROLL for (uint32_t k = 0; k < FT_WIDTH; k++) sum[k] = ft_no_lanes();
  uint32_t o = 0;
#define TERMS(get)                                                                                 \
  {                                                                                                \
    FT_UNROLL for (uint32_t r = 0; r < rows; r++) gradient[r] = get(dy + (size_t)r * out + o);     \
    FT_UNROLL for (uint32_t i = 0; i < ins; i++) {                                                 \
      const ft_lanes weight = get(w + (size_t)i * out + o);                                        \
      FT_UNROLL for (uint32_t r = 0; r < rows; r++)                                                \
        ft_add_products(&sum[r * ins + i], weight, gradient[r]);                                   \
    }                                                                                              \
  }
#define GET_LAST(from) ft_lanes_first(from, out - o)
  for (; o + 8 <= out; o += 8) TERMS(ft_lanes_at)
  if (o < out) TERMS(GET_LAST)
#undef TERMS
#undef GET_LAST
  return ft_trees(sum);
}

FT_BAND void back_one_row(const float *dy, const float *w, float *dx, uint32_t in, uint32_t out) {
  if (in < FT_WIDTH) {
    for (uint32_t i = 0; i < in; i++) dx[i] = ft_dot(w + (size_t)i * out, dy, out);
    return;
  }
  for (uint32_t i = 0; i < in; i += FT_WIDTH) {
    const uint32_t start = ft_block_start(i, FT_WIDTH, in);
    FT_W(store)(dx + start, back_block(1, dy, w + (size_t)start * out, out));
  }
}

FT_BAND void back_two_rows(const float *dy, const float *w, float *dx, uint32_t in, uint32_t out) {
  const uint32_t half = FT_WIDTH / 2;
  for (uint32_t i = 0; i < in; i += half) {
    const uint32_t start = ft_block_start(i, half, in);
    ft_store_halves(dx + start, dx + in + start, back_block(2, dy, w + (size_t)start * out, out));
  }
}

static void back_column(const float *dy, const float *w, float *dx, uint32_t rows, uint32_t in) {
  for (uint32_t r = 0; r < rows; r++, dx += in) {
    uint32_t i = 0;
    for (; i + FT_WIDTH <= in; i += FT_WIDTH) FT_W(store)(dx + i, dy[r] * FT_W(load)(w + i));
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
  if (in >= FT_WIDTH / 2)
    for (; r + 2 <= rows; r += 2)
      back_two_rows(dy + (size_t)r * out, w, dx + (size_t)r * in, in, out);
  for (; r < rows; r++) back_one_row(dy + (size_t)r * out, w, dx + (size_t)r * in, in, out);
}

#endif
