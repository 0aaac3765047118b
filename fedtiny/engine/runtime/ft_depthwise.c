/* ft_depthwise.c: convolutions of one channel by one weight a tap, forward and back.
 *
 * The lanes are channels, and several positions share the weights.
 */
#include "ft_taps.h"

#ifndef FT_SMALL

typedef struct { const float *from, *w, *b; float *to; uint32_t lanes; } band;

FT_INLINE void block(uint32_t positions, uint32_t vectors, int partial, const ft_area *area,
                     const band *at_band, ft_area_cursor *at) {
  size_t from[4], to[4];
  vw sum[4][2];
  const uint32_t lanes = at_band->lanes;
  const float *x[4];
  ft_take(area, at, positions, from, to);
  FT_UNROLL for (uint32_t p = 0; p < positions; p++) x[p] = at_band->from + from[p];
  FT_UNROLL for (uint32_t v = 0; v < vectors; v++) {
    const vw start =
        at_band->b ? ft_get(at_band->b + FT_WIDTH * v, partial, lanes) : FT_W(set)(0.0f);
    FT_UNROLL for (uint32_t p = 0; p < positions; p++) sum[p][v] = start;
  }
  const float *w_row = at_band->w + area->w_at;
  ptrdiff_t row = 0;
  for (uint32_t ky = 0; ky < area->tap_rows; ky++) {
    const float *w = w_row;
    ptrdiff_t tap = row;
    for (uint32_t kx = 0; kx < area->taps; kx++, tap += area->from_tap, w += area->w_tap)
      FT_UNROLL for (uint32_t v = 0; v < vectors; v++) {
        const vw weight = ft_get(w + FT_WIDTH * v, partial, lanes);
        FT_UNROLL for (uint32_t p = 0; p < positions; p++)
          sum[p][v] += ft_get(x[p] + tap + FT_WIDTH * v, partial, lanes) * weight;
      }
    row += area->from_tap_row;
    w_row += area->w_tap_row;
  }
  FT_UNROLL for (uint32_t p = 0; p < positions; p++)
    FT_UNROLL for (uint32_t v = 0; v < vectors; v++)
      ft_put(at_band->to + to[p] + FT_WIDTH * v, sum[p][v], partial, lanes);
}

#define BAND(name, vectors, partial)                                                               \
  FT_BAND void name(const ft_area *area, band at_band) {                                           \
    ft_area_cursor at = ft_first(area);                                                            \
    uint32_t left = ft_positions(area);                                                            \
    for (; left >= 4; left -= 4) block(4, vectors, partial, area, &at_band, &at);                  \
    for (; left; left--) block(1, vectors, partial, area, &at_band, &at);                          \
  }
BAND(band_2, 2, 0)
BAND(band_1, 1, 0)
BAND(band_last, 1, 1)
#undef BAND

void ft_depthwise_area(const ft_area *area, const float *from, const float *w, const float *b,
                       float *to, uint32_t columns) {
#define AT(c) (band){from + (c), w + (c), b ? b + (c) : NULL, to + (c), columns - (c)}
  uint32_t c = 0;
  for (; c + 2 * FT_WIDTH <= columns; c += 2 * FT_WIDTH) band_2(area, AT(c));
  for (; c + FT_WIDTH <= columns; c += FT_WIDTH) band_1(area, AT(c));
  if (c < columns) band_last(area, AT(c));
#undef AT
}

#endif
