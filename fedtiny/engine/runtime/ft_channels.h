/* ft_channels.h: kernels whose lanes are channels, any number of them; private to them. */
#ifndef FT_CHANNELS_H
#define FT_CHANNELS_H

#include "ft_blocks.h"

#ifndef FT_SMALL

/* call(vectors, partial, c) for the columns [c, ...): four vectors, two, one, and what is left. */
#define FT_EACH_VECTOR(columns, call)                                                              \
  {                                                                                                \
    uint32_t c = 0;                                                                                \
    for (; c + 4 * FT_WIDTH <= (columns); c += 4 * FT_WIDTH) call(4, 0, c);                        \
    for (; c + 2 * FT_WIDTH <= (columns); c += 2 * FT_WIDTH) call(2, 0, c);                        \
    for (; c + FT_WIDTH <= (columns); c += FT_WIDTH) call(1, 0, c);                                \
    if (c < (columns)) call(1, 1, c);                                                              \
  }

#endif
#endif
