/* ft_int8.c: the int8 kernels but the convolution. */
#include "ft_int8.h"

#ifndef FT_SMALL

#include "ft_pairs.h"

typedef int8_t b16 __attribute__((vector_size(16)));
typedef int8_t ft_few_numbers __attribute__((vector_size(FT_SUMS)));

/* Half a group's numbers, less their zero. */
FT_INLINE ft_reals reals_at(const int8_t *from, int half, int32_t zero) {
  ft_few_numbers q;
  memcpy(&q, from + 4 * half, 4);
  memcpy((int8_t *)&q + 4, from + 4 * half + 8, FT_SUMS - 4);
  return __builtin_convertvector(__builtin_convertvector(q, ft_sums) - zero, ft_reals);
}

void ft_add8(const int8_t *a, ft_grid a_grid, const int8_t *b, ft_grid b_grid, int8_t *y,
             ft_grid y_grid, uint32_t size) {
  const float ra = a_grid.scale / y_grid.scale, rb = b_grid.scale / y_grid.scale;
  const int32_t za = a_grid.zero, zb = b_grid.zero;
  uint32_t i = 0;
  for (; i + FT_GROUP <= size; i += FT_GROUP) {
    ft_reals v[2];
    FT_UNROLL for (int h = 0; h < 2; h++)
      v[h] = reals_at(a + i, h, za) * ra + reals_at(b + i, h, zb) * rb;
    ft_put_numbers(y + i, ft_rounded_group(v, y_grid.zero), FT_GROUP);
  }
  for (; i < size; i++)
    y[i] = ft_quantised((float)(a[i] - za) * ra + (float)(b[i] - zb) * rb, y_grid.zero);
}

FT_INLINE b16 b16_at(const int8_t *from) {
  b16 x;
  memcpy(&x, from, sizeof x);
  return x;
}

/* ---- pools --------------------------------------------------------------------------------- */

/* The taps of a window that stand inside the image: [first, end) along one axis. */
typedef struct { uint32_t first, end, tap; } taps;

static taps taps_inside(uint32_t at, uint32_t stride, uint32_t pad, uint32_t kernel, uint32_t in) {
  const uint32_t start = at * stride, tap = pad > start ? pad - start : 0;
  const uint32_t first = start + tap - pad, left = in - first, wanted = kernel - tap;
  const taps inside = {first, first + (wanted < left ? wanted : left), tap};
  return inside;
}

/* The windows of a sample, one by one; channels innermost. */
typedef struct {
  taps rows, columns;
  size_t image;            /* the sample's first element */
} window;

static window window_at(const ft_window *pool, uint32_t b, uint32_t y, uint32_t x) {
  const ft_image *in = &pool->x;
  const window w = {
      taps_inside(y, pool->stride_h, pool->pad_top, pool->kernel_h, in->height),
      taps_inside(x, pool->stride_w, pool->pad_left, pool->kernel_w, in->width),
      (size_t)b * in->height * in->width * in->channels};
  return w;
}

enum { CHANNELS = 64 };    /* that are summed at a time */

static void average(const ft_window *pool, const window *w, uint32_t c, uint32_t count,
                    const int8_t *x, ft_grid x_grid, float r, int8_t *y, int32_t zero) {
  int32_t sum[CHANNELS] = {0};
  for (uint32_t row = w->rows.first; row < w->rows.end; row++)
    for (uint32_t column = w->columns.first; column < w->columns.end; column++) {
      const int8_t *at =
          x + w->image + ((size_t)row * pool->x.width + column) * pool->x.channels + c;
      for (uint32_t k = 0; k < count; k++) sum[k] += at[k] - x_grid.zero;
    }
  for (uint32_t k = 0; k < count; k++) y[k] = ft_quantised((float)sum[k] * r, zero);
}

void ft_avg_pool8(const ft_window *pool, const int8_t *x, ft_grid x_grid, int8_t *y,
                  ft_grid y_grid) {
  const uint32_t channels = pool->y.channels;
  const float r = x_grid.scale / (y_grid.scale * (float)(pool->kernel_h * pool->kernel_w));
  for (uint32_t b = 0; b < pool->y.batch; b++)
    for (uint32_t oy = 0; oy < pool->y.height; oy++)
      for (uint32_t ox = 0; ox < pool->y.width; ox++) {
        const window w = window_at(pool, b, oy, ox);
        for (uint32_t c = 0, count; c < channels; c += count, y += count) {
          count = channels - c < CHANNELS ? channels - c : CHANNELS;
          average(pool, &w, c, count, x, x_grid, r, y, y_grid.zero);
        }
      }
}

/* Of sixteen channels from x on: the largest tap, and which it is. */
FT_INLINE b16 largest16(const ft_window *pool, const window *w, const int8_t *x, b16 *code) {
  const uint32_t channels = pool->x.channels;
  uint32_t tap = w->rows.tap * pool->kernel_w + w->columns.tap;
  b16 m = b16_at(x + ((size_t)w->rows.first * pool->x.width + w->columns.first) * channels);
  *code = (b16){0} + (int8_t)tap;
  for (uint32_t row = w->rows.first; row < w->rows.end; row++, tap += pool->kernel_w) {
    const int8_t *at = x + ((size_t)row * pool->x.width + w->columns.first) * channels;
    int8_t number = (int8_t)tap;
    for (uint32_t column = w->columns.first; column < w->columns.end; column++, number++) {
      const b16 z = b16_at(at), taken = z > m;
      m = (z & taken) | (m & ~taken);
      *code = (((b16){0} + number) & taken) | (*code & ~taken);
      at += channels;
    }
  }
  return m;
}

/* The same of the last `count` channels, which are less than sixteen. */
static b16 largest_rest(const ft_window *pool, const window *w, const int8_t *x, uint32_t count,
                        b16 *code) {
  int8_t rest[16] = {0};
  uint8_t tap_of[16] = {0};
  for (uint32_t k = 0; k < count; k++)
    for (uint32_t row = w->rows.first; row < w->rows.end; row++)
      for (uint32_t column = w->columns.first; column < w->columns.end; column++) {
        const int8_t z = x[((size_t)row * pool->x.width + column) * pool->x.channels + k];
        const uint32_t ky = row - w->rows.first + w->rows.tap;
        const uint32_t kx = column - w->columns.first + w->columns.tap;
        const int is_first = row == w->rows.first && column == w->columns.first;
        if (is_first || z > rest[k]) rest[k] = z, tap_of[k] = (uint8_t)(ky * pool->kernel_w + kx);
      }
  memcpy(code, tap_of, sizeof *code);
  return b16_at(rest);
}

/* Codes of `bits` bits of so many elements from `element` on. */
static void put_codes(uint32_t *words, uint32_t element, uint32_t bits, b16 codes,
                      uint32_t count) {
  uint8_t code[16];
  memcpy(code, &codes, sizeof code);
  if (bits != 2 || element % 8) {
    for (uint32_t k = 0; k < count; k++, element++)
      words[element * bits / 32] |= (uint32_t)code[k] << element * bits % 32;
    return;
  }
  for (uint32_t k = 0; k < count; k += 8, element += 8) { /* eight bytes to sixteen bits */
    uint64_t eight;
    memcpy(&eight, code + k, sizeof eight);
    eight = (eight | eight >> 6) & 0x000F000F000F000F;
    eight = (eight | eight >> 12) & 0x000000FF000000FF;
    words[element / 16] |= (uint32_t)((eight | eight >> 24) & 0xFFFF) << element % 16 * 2;
  }
}

/* One window: the row of y, and element `element` of the sample's codes. */
static void largest_of(const ft_window *pool, const window *w, const int8_t *x, int8_t *y,
                       uint32_t *words, uint32_t element, uint32_t bits) {
  const uint32_t channels = pool->y.channels;
  for (uint32_t c = 0; c < channels; c += 16) {
    const uint32_t count = channels - c < 16 ? channels - c : 16;
    b16 code;
    const b16 m = count == 16 ? largest16(pool, w, x + c, &code)
                              : largest_rest(pool, w, x + c, count, &code);
    memcpy(y + c, &m, count);
    put_codes(words, element + c, bits, code, count);
  }
}

void ft_max_pool8(const ft_window *pool, const int8_t *x, int8_t *y, uint32_t *codes) {
  const ft_image *out = &pool->y;
  const uint32_t channels = out->channels, bits = ft_code_bits(pool->kernel_h * pool->kernel_w);
  const uint32_t words = ft_words_of(out->height * out->width * channels, bits);
  memset(codes, 0, (size_t)out->batch * words * sizeof *codes);
  for (uint32_t b = 0; b < out->batch; b++, codes += words) {
    uint32_t element = 0;
    for (uint32_t oy = 0; oy < out->height; oy++)
      for (uint32_t ox = 0; ox < out->width; ox++, y += channels, element += channels) {
        const window w = window_at(pool, b, oy, ox);
        largest_of(pool, &w, x + w.image, y, codes, element, bits);
      }
  }
}

/* ---- masks --------------------------------------------------------------------------------- */

static int is_between(float real, float top) {
  return real > 0.0f && (top == 0.0f || real < top);
}

static uint32_t bits_of(const int8_t *y, uint32_t count, int32_t first, int32_t last) {
  uint32_t bits = 0;
  for (uint32_t j = 0; j < count; j++) bits |= (uint32_t)(y[j] >= first && y[j] <= last) << j;
  return bits;
}

FT_INLINE uint32_t bits32(const int8_t *y, int32_t first, int32_t last) {
#ifdef __SSE2__
  uint32_t bits = 0;
  if (first > last) return 0;
  for (uint32_t h = 0; h < 2; h++) {
    const b16 q = b16_at(y + 16 * h);
    const b16 set = (b16)(q >= (int8_t)first) & (b16)(q <= (int8_t)last);
    bits |= (uint32_t)_mm_movemask_epi8((__m128i)set) << 16 * h;
  }
  return bits;
#else
  return bits_of(y, 32, first, last);
#endif
}

void ft_mask8(const int8_t *y, ft_grid grid, uint32_t *mask, uint32_t rows, uint32_t row,
              float top) {
  int32_t first = -128, last = 127; /* the numbers whose bit is set are neighbours */
  while (first <= last && !is_between(ft_real(first, grid), top)) first++;
  while (first <= last && !is_between(ft_real(last, grid), top)) last--;
  for (uint32_t r = 0; r < rows; r++, y += row) {
    uint32_t j = 0;
    for (; j + 32 <= row; j += 32) *mask++ = bits32(y + j, first, last);
    if (j < row) *mask++ = bits_of(y + j, row - j, first, last);
  }
}

#endif
