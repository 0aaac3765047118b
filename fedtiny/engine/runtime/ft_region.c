/* ft_region.c: some rows and columns of images, whatever their elements are. */
#include "ft_kernels.h"

static inline size_t offset_of(const ft_region *region, uint32_t sample, uint32_t row) {
  const size_t rows = (size_t)sample * region->image.height + region->top + row;
  const size_t places = rows * region->image.width + region->left;
  return places * region->image.channels * region->element_bytes;
}

static inline size_t row_bytes(const ft_region *region) {
  return (size_t)region->width * region->image.channels * region->element_bytes;
}

void ft_crop(const ft_region *region, const void *x, void *y) {
  const uint8_t *from = x;
  uint8_t *to = y;
  const size_t run = row_bytes(region);
  for (uint32_t b = 0; b < region->image.batch; b++)
    for (uint32_t r = 0; r < region->height; r++, to += run)
      memcpy(to, from + offset_of(region, b, r), run);
}

void ft_paste(const ft_region *region, const void *part, void *y) {
  const uint8_t *from = part;
  uint8_t *to = y;
  const size_t run = row_bytes(region);
  for (uint32_t b = 0; b < region->image.batch; b++)
    for (uint32_t r = 0; r < region->height; r++)
      if (from) memcpy(to + offset_of(region, b, r), from, run), from += run;
      else memset(to + offset_of(region, b, r), 0, run);
}
