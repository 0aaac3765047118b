/* ft_lists.c: channels that a list names. */
#include "ft_int8.h"

FT_INLINE void take_words(const uint32_t *x, const int32_t *list, uint32_t *y, uint32_t listed) {
  for (uint32_t j = 0; j < listed; j++) y[j] = x[list[j]];
}

FT_INLINE void take_bytes(const uint8_t *x, const int32_t *list, uint8_t *y, uint32_t listed) {
  for (uint32_t j = 0; j < listed; j++) y[j] = x[list[j]];
}

void ft_take(const void *x, const int32_t *list, void *y, uint32_t rows, uint32_t channels,
             uint32_t listed, uint32_t bytes) {
  const uint8_t *from = x;
  uint8_t *to = y;
  for (uint32_t r = 0; r < rows; r++, from += channels * bytes, to += listed * bytes)
    if (bytes == 1)
      take_bytes(from, list, to, listed);
    else
      take_words((const uint32_t *)(const void *)from, list, (uint32_t *)(void *)to, listed);
}

ft_part ft_part_of(const ft_tensor *whole, uint32_t axis, const int32_t *list, uint32_t listed) {
  const uint32_t channels = ft_channels(whole), run = axis == FT_OUT ? 1 : channels;
  const uint32_t along = list ? (axis == FT_OUT ? channels : whole->dims[whole->ndim - 2]) : 1;
  const ft_part part = {list, ft_floats(whole) / (along * run), list ? listed : 1, along, run};
  return part;
}

void ft_merge(const ft_part *part, const void *from, void *y, uint32_t bytes) {
  const size_t run = (size_t)part->run * bytes;
  const uint8_t *next = from;
  uint8_t *row = y;
  for (uint32_t r = 0; r < part->rows; r++, row += part->whole * run)
    for (uint32_t j = 0; j < part->listed; j++, next += run)
      memcpy(row + (uint32_t)part->list[j] * run, next, run);
}
