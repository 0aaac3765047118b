/* ft_check_live.c: the pool of live values, and the parameters that stand in it.
 *
 * The index in the pool is written by ft_load_mask alone, in the caller's memory, so the kernels
 * trust it; what is proved here is that no tensor of an image reaches into it.
 */
#include "ft_kernels.h"
#include "ft_live.h"

/* ---- the pool ------------------------------------------------------------------------------ */

ft_status ft_check_pool_header(const ft_header *h) {
  const uint8_t *first = (const uint8_t *)&h->live_capacity;
  const uint8_t *end = (const uint8_t *)&h->frozen_words;
  if (!h->live_form) return ft_is_zero(first, (size_t)(end - first)) ? FT_OK : FT_E_HEADER;
  const int good = h->live_form <= FT_BITMAP && h->n_pruned && h->live_capacity &&
                   h->live_capacity <= h->trained_floats && h->live_at <= h->param_floats;
  return good ? FT_OK : FT_E_HEADER;
}

static uint64_t pruned_floats(const ft_program *p) {
  uint64_t floats = 0;
  for (const ft_param *a = p->params; a < p->params + p->header->n_params; a++)
    if (a->pruned) floats += a->count;
  return floats;
}

/* Each record has the tensor of its ordinal, so if there are no more tensors than records, none is
 * left that gives a parameter other extents. */
ft_status ft_check_live(const ft_program *p) {
  const ft_header *h = p->header;
  const uint64_t floats = pruned_floats(p);
  uint32_t tensors = 0;
  for (uint32_t i = 0; i < h->n_tensors; i++) tensors += p->tensors[i].region == FT_LIVE;
  if (tensors != h->n_pruned) return FT_E_TENSOR;
  const int good = h->live_capacity <= floats && h->bucket <= floats &&
                   (!h->n_pruned || h->live_at + ft_pool_floats(p) == h->param_floats);
  return good ? FT_OK : FT_E_HEADER;
}

/* ---- the ops ------------------------------------------------------------------------------- */

ft_status ft_check_sparse(const ft_op *op, const ft_tensor *x, const ft_tensor *w,
                          const ft_tensor *y, uint64_t *work) {
  const ft_tensor in = ft_as_image(x, w), out = ft_as_image(y, w), window = ft_as_window(w);
  const ft_status status = ft_check_conv(op, &in, &window, &out, 0, work);
  if (status) return status;
  const ft_conv conv = ft_sparse_conv_of(op, x, w);
  const uint64_t taps = (uint64_t)conv.window.kernel_h * conv.window.kernel_w;
  if (conv.groups != 1) return FT_E_OP;
  return 8 * (conv.window.y.channels + taps) <= FT_TILE_FLOATS ? FT_OK : FT_E_SHAPE;
}
