/* ft_small.h: what the plain loops share; private to them. */
#ifndef FT_SMALL_H
#define FT_SMALL_H

#include "ft_kernels.h"

/* ((x0 + x1) + (x2 + x3)) + ((x4 + x5) + (x6 + x7)), the end of every sum in eight lanes. */
float ft_tree(const float lane[8]);

/* What the rule makes of the gradient g of weight i, which is w. */
float ft_followed(const ft_rule *rule, float w, uint32_t i, float g);

/* What it makes of w[i]. */
void ft_apply(const ft_rule *rule, float *w, uint32_t i, float g);

#endif
