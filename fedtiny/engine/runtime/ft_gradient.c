/* ft_gradient.c: a gradient that several ops have summed in a buffer: its update and its norm. */
#include "ft_rule.h"

#ifndef FT_SMALL

void ft_gradient_update_f32(const float *g, float *w, uint32_t size, const ft_rule *rule) {
  uint32_t at = 0;
  for (; at + FT_WIDTH <= size; at += FT_WIDTH) {
    vw part = FT_W(load)(g + at);
    ft_apply(*rule, 1, 0, 1, w, at, &part, FT_WIDTH);
  }
  if (at < size) {
    vw part = FT_W_FIRST(load)(g + at, size - at);
    ft_apply(*rule, 1, 1, 1, w, at, &part, size - at);
  }
}

float ft_gradient_norm_f32(const float *g, uint32_t size, uint32_t channels) {
  ft_lanes squares = ft_no_lanes();
  for (uint32_t row = 0; row < size; row += channels, g += channels) {
    uint32_t o = 0;
    for (; o + 8 <= channels; o += 8)
      ft_add_products(&squares, ft_lanes_at(g + o), ft_lanes_at(g + o));
    if (o < channels) {
      const ft_lanes last = ft_lanes_first(g + o, channels - o);
      ft_add_products(&squares, last, last);
    }
  }
  return ft_tree(squares);
}

#endif
