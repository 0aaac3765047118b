/* ft_rule.h: what an update makes of its gradient; private to the vector kernels. */
#ifndef FT_RULE_H
#define FT_RULE_H

#include "ft_blocks.h"

#ifndef FT_SMALL

/* What the rule makes of `vectors` vw of weights, from element `at` of the parameter on, whose
 * gradient is g. The rule is a copy of the caller's, so that no store of weights can be taken for a
 * change of it. */
FT_INLINE void ft_apply(const ft_rule rule, uint32_t vectors, int partial, int general, float *w,
                        size_t at, vw *g, uint32_t lanes) {
  vw weight[4];
  FT_UNROLL for (uint32_t v = 0; v < vectors; v++)
    weight[v] = ft_get(w + at + FT_WIDTH * v, partial, lanes);
#define EACH(statement)                                                                            \
  FT_UNROLL for (uint32_t v = 0; v < vectors; v++) {                                               \
    const size_t k = at + FT_WIDTH * v;                                                            \
    (void)k, statement;                                                                            \
  }
  if (general) {
    if (rule.scale != 1.0f) EACH(g[v] = rule.scale * g[v])
    if (rule.weight_decay != 0.0f) EACH(g[v] += rule.weight_decay * weight[v])
    if (rule.base) EACH(g[v] += rule.prox * (weight[v] - ft_get(rule.base + k, partial, lanes)))
    if (rule.correction) EACH(g[v] += ft_get(rule.correction + k, partial, lanes))
    if (rule.velocity) {
      EACH(g[v] = rule.momentum * ft_get(rule.velocity + k, partial, lanes) + g[v])
      EACH(ft_put(rule.velocity + k, g[v], partial, lanes))
    }
  }
  EACH(ft_put(w + k, weight[v] - rule.lr * g[v], partial, lanes))
#undef EACH
}

#endif
#endif
