/* ft_sparse_update.c: gradients of the weights that live, used where they arise.
 *
 * The eight lanes of each gradient stand in the scratch while the tiles go by; several are in
 * registers at a time.
 */
#include "ft_rule.h"
#include "ft_sparse.h"

#ifndef FT_SMALL

/* What becomes of the gradients: either the weights by their rule, or the lanes of a norm. */
typedef struct {
  const ft_rule *rule;
  float *squares;
} purpose;

/* Adds the terms of a patch to the lanes of `weights` weights. */
FT_INLINE void add_products(uint32_t weights, const ft_sparse *s, const ft_meeting *m,
                            float *lanes) {
  const uint32_t positions = ft_patch_positions(&s->patch), *places = s->places;
  const float *x[4], *dy[4];
  ft_lanes sum[4];
  FT_UNROLL for (uint32_t k = 0; k < weights; k++) {
    x[k] = s->x + m[k].x, dy[k] = s->y + m[k].y;
    sum[k] = ft_lanes_at(lanes + 8 * k);
  }
  for (size_t p = 0; p < positions; p++)
    FT_UNROLL for (uint32_t k = 0; k < weights; k++)
      ft_add_products(&sum[k], ft_lanes_at(x[k] + places[p]), ft_lanes_at(dy[k] + 8 * p));
  FT_UNROLL for (uint32_t k = 0; k < weights; k++) ft_put_lanes(lanes + 8 * k, sum[k]);
}

FT_BAND void add_patch(const ft_sparse *s, float *lanes) {
  const ft_meeting *m = s->room;
  const uint32_t count = s->decoded.size;
  uint32_t k = 0;
  for (; k + 4 <= count; k += 4) add_products(4, s, m + k, lanes + 8 * k);
  for (; k < count; k++) add_products(1, s, m + k, lanes + 8 * k);
}

FT_INLINE vw gradients_of(const float *lanes, uint32_t count) {
  ft_lanes g[FT_WIDTH];
  FT_UNROLL for (uint32_t k = 0; k < FT_WIDTH; k++)
    g[k] = k < count ? ft_lanes_at(lanes + 8 * k) : ft_no_lanes();
  return ft_trees(g);
}

FT_INLINE void apply(int general, const ft_rule rule, float *w, size_t at, const float *lanes,
                     uint32_t count) {
  for (; count >= FT_WIDTH; count -= FT_WIDTH, at += FT_WIDTH, lanes += 8 * FT_WIDTH) {
    vw g = gradients_of(lanes, FT_WIDTH);
    ft_apply(rule, 1, 0, general, w, at, &g, FT_WIDTH);
  }
  if (!count) return;
  vw g = gradients_of(lanes, count);
  ft_apply(rule, 1, 1, general, w, at, &g, count);
}

#define APPLY(name, general)                                                                       \
  FT_BAND void name(const ft_rule *rule, float *w, size_t at, const float *lanes,                  \
                    uint32_t count) {                                                              \
    apply(general, *rule, w, at, lanes, count);                                                    \
  }
APPLY(apply_plain, 0)
APPLY(apply_general, 1)
#undef APPLY

static void use_lanes(const purpose *to, float *w, uint32_t at, const float *lanes,
                      uint32_t count) {
  if (to->rule) {
    (ft_rule_is_plain(to->rule) ? apply_plain : apply_general)(to->rule, w, at, lanes, count);
    return;
  }
  for (uint32_t k = 0; k < count; k++) {
    const float g = ft_tree(ft_lanes_at(lanes + 8 * k));
    to->squares[(at + k) % 8] += g * g;
  }
}

/* The planes stay from one part of the weights to the next, if there is a single patch. */
static void use_gradients(const ft_conv *conv, const float *x, const float *dy,
                          const ft_live *live, const purpose *to, void *scratch) {
  ft_sparse s = ft_sparse_of(conv, scratch);
  const uint32_t patches = ft_patches(&s.cut);
  float *lanes = (float *)s.room + 2 * FT_MEETINGS;
  ft_walk walk = ft_walk_of(live);
  while (ft_is_left(&walk)) {
    const uint32_t at = walk.taken;
    s.decoded = ft_decode_meetings(&s, &walk);
    memset(lanes, 0, s.decoded.size * 8 * sizeof *lanes);
    for (uint32_t i = 0; i < patches; i++) {
      if (patches > 1 || !at) {
        ft_open_patch(&s, i);
        ft_gather_y(&s.cut, &s.patch, dy, s.y);
      }
      ft_need_x(&s, s.decoded.channel, 0, x);
      add_patch(&s, lanes);
    }
    use_lanes(to, live->values, at, lanes, s.decoded.size);
  }
}

void ft_sparse_conv_update_f32(const ft_conv *conv, const float *x, const float *dy,
                               const ft_live *live, const ft_rule *rule, void *scratch) {
  const purpose to = {rule, NULL};
  use_gradients(conv, x, dy, live, &to, scratch);
}

float ft_sparse_conv_norm_f32(const ft_conv *conv, const float *x, const float *dy,
                              const ft_live *live, void *scratch) {
  float squares[8] = {0};
  const purpose to = {NULL, squares};
  use_gradients(conv, x, dy, live, &to, scratch);
  return ft_tree(ft_lanes_at(squares));
}

#endif
