/* ft_window.c: from an op's attributes and tensors to the window that slides over its images, and
 * the proof that this window fits them. */
#include "ft_kernels.h"

enum { STRIDE_H = 1, STRIDE_W, PAD_TOP, PAD_LEFT, PAD_BOTTOM, PAD_RIGHT, GROUPS, POOL_H, POOL_W };

static ft_image image_of(const ft_tensor *t) {
  const uint32_t *dims = t->dims, axes = t->ndim;
  const ft_image image = {dims[0], axes > 3 ? dims[1] : 1, axes > 2 ? dims[axes - 2] : 1,
                          dims[axes - 1]};
  return image;
}

static uint32_t extent(uint32_t size, uint32_t pads, uint32_t kernel, uint32_t stride) {
  return (size + pads - kernel) / stride + 1;
}

static ft_window window_of(const ft_op *op, const ft_tensor *x, uint32_t kernel_h,
                           uint32_t kernel_w) {
  const uint16_t *a = op->attr;
  ft_window w;
  w.x = w.y = image_of(x);
  w.kernel_h = kernel_h, w.kernel_w = kernel_w;
  w.stride_h = a[STRIDE_H], w.stride_w = a[STRIDE_W];
  w.pad_top = a[PAD_TOP], w.pad_left = a[PAD_LEFT];
  w.y.height = extent(w.x.height, w.pad_top + a[PAD_BOTTOM], kernel_h, w.stride_h);
  w.y.width = extent(w.x.width, w.pad_left + a[PAD_RIGHT], kernel_w, w.stride_w);
  return w;
}

static uint32_t kernel_height(const ft_tensor *w) { return w->ndim == 4 ? w->dims[0] : 1; }
static uint32_t kernel_width(const ft_tensor *w) { return w->dims[w->ndim - 3]; }

ft_conv ft_conv_of(const ft_op *op, const ft_tensor *x, const ft_tensor *w) {
  ft_conv conv;
  conv.window = window_of(op, x, kernel_height(w), kernel_width(w));
  conv.window.y.channels = ft_channels(w);
  conv.groups = op->attr[GROUPS];
  conv.pool_h = op->attr[POOL_H] ? op->attr[POOL_H] : 1;
  conv.pool_w = op->attr[POOL_W] ? op->attr[POOL_W] : 1;
  return conv;
}

static ft_tensor pixels(const ft_tensor *t, uint32_t count, uint32_t channels) {
  const ft_tensor image = {t->dtype, t->region, 4, 0, t->offset, {count, 1, 1, channels},
                           t->scale, 0};
  return image;
}

ft_tensor ft_as_image(const ft_tensor *x, const ft_tensor *w) {
  return w->ndim == 2 ? pixels(x, x->dims[0], ft_row_floats(x)) : *x;
}

ft_tensor ft_as_window(const ft_tensor *w) {
  if (w->ndim != 2) return *w;
  ft_tensor window = pixels(w, 1, w->dims[1]);
  window.dims[2] = w->dims[0];
  return window;
}

ft_conv ft_sparse_conv_of(const ft_op *op, const ft_tensor *x, const ft_tensor *w) {
  const ft_tensor image = ft_as_image(x, w), window = ft_as_window(w);
  return ft_conv_of(op, &image, &window);
}

ft_window ft_pool_of(const ft_op *op, const ft_tensor *x) {
  return window_of(op, x, op->attr[POOL_H], op->attr[POOL_W]);
}

uint32_t ft_pool_taps(const ft_op *op) { return (uint32_t)op->attr[POOL_H] * op->attr[POOL_W]; }

/* ---- the proof ----------------------------------------------------------------------------- */

/* Pads are smaller than the kernel, so that every window has a tap inside the image. */
static ft_status check_axis(uint32_t size, uint32_t kernel, uint32_t stride, uint32_t before,
                            uint32_t after) {
  if (!stride || before >= kernel || after >= kernel) return FT_E_OP;
  return size + before + after >= kernel ? FT_OK : FT_E_SHAPE;
}

static ft_status check_window(const ft_op *op, const ft_tensor *x, uint32_t kernel_h,
                              uint32_t kernel_w) {
  const ft_image image = image_of(x);
  const uint16_t *a = op->attr;
  ft_status status =
      check_axis(image.height, kernel_h, a[STRIDE_H], a[PAD_TOP], a[PAD_BOTTOM]);
  if (status) return status;
  return check_axis(image.width, kernel_w, a[STRIDE_W], a[PAD_LEFT], a[PAD_RIGHT]);
}

static int is_image(const ft_tensor *t) { return t->ndim >= 2; }

static int are_alike(ft_image a, ft_image b) {
  return a.batch == b.batch && a.height == b.height && a.width == b.width &&
         a.channels == b.channels;
}

/* Adds the multiply-adds of an output, and makes sure that it has at most FT_MAX_FLOATS. */
static ft_status count_work(const ft_image *y, uint64_t terms, uint64_t *work) {
  uint64_t floats = (uint64_t)y->height * y->width;
  if (floats > FT_MAX_FLOATS || floats * y->batch > FT_MAX_FLOATS) return FT_E_SHAPE;
  floats *= y->batch;
  if (floats * y->channels > FT_MAX_FLOATS) return FT_E_SHAPE;
  *work += floats * y->channels * terms; /* below 2^28 * 2^28 */
  return FT_OK;
}

static int is_pooling(const ft_op *op) { return op->attr[POOL_H] && op->attr[POOL_W]; }

ft_status ft_check_conv(const ft_op *op, const ft_tensor *x, const ft_tensor *w,
                        const ft_tensor *y, int is_pooled, uint64_t *work) {
  const uint32_t groups = op->attr[GROUPS];
  if (!is_image(x) || !is_image(y) || w->ndim < 3) return FT_E_SHAPE;
  if (is_pooled ? !is_pooling(op) : op->attr[POOL_H] || op->attr[POOL_W]) return FT_E_OP;
  if (!groups || ft_channels(w) % groups) return FT_E_OP;
  ft_status status = check_window(op, x, kernel_height(w), kernel_width(w));
  if (status) return status;
  const ft_conv conv = ft_conv_of(op, x, w);
  ft_image out = conv.window.y;
  status = count_work(&out, ft_floats(w) / out.channels, work);
  if (status) return status;
  out.height /= conv.pool_h, out.width /= conv.pool_w;
  const int fits = (uint64_t)w->dims[w->ndim - 2] * groups == conv.window.x.channels &&
                   are_alike(out, image_of(y));
  return fits ? FT_OK : FT_E_SHAPE;
}

ft_status ft_check_pool(const ft_op *op, const ft_tensor *x, const ft_tensor *y, uint64_t *work) {
  if (!is_image(x) || !is_image(y)) return FT_E_SHAPE;
  if (op->attr[GROUPS] || !is_pooling(op)) return FT_E_OP;
  ft_status status = check_window(op, x, op->attr[POOL_H], op->attr[POOL_W]);
  if (status) return status;
  const ft_window pool = ft_pool_of(op, x);
  if (!are_alike(pool.y, image_of(y))) return FT_E_SHAPE;
  return count_work(&pool.y, pool.kernel_h * pool.kernel_w, work);
}
