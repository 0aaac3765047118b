/* ft_int8.h: the numbers of int8 tensors, and what is done with them; private to the runtime.
 *
 * "INT8" in ft_runtime.h says what each of these is. None of them is undefined for any float.
 */
#ifndef FT_INT8_H
#define FT_INT8_H

#include "ft_ops.h"
#include "ft_rng.h"

#define FT_TINY 0x1p-100f    /* an extent below it is none */
#define FT_STEP_OF_NONE 0x1p-7f

/* ---- numbers ------------------------------------------------------------------------------- */

FT_INLINE float ft_scale16(float x) { return ft_float((ft_bits(x) + 0xFFu) & ~0xFFu); }

FT_INLINE float ft_clamped(float v, float low, float high) {
  v = v > low ? v : low;
  return v < high ? v : high;
}

/* Of |v| <= 2^22: 1.5 * 2^23 more leaves no place for a fraction. */
FT_INLINE float ft_rint(float v) { return (v + 12582912.0f) - 12582912.0f; }

FT_INLINE int32_t ft_clamped_int(int32_t v, int32_t low, int32_t high) {
  v = v > low ? v : low;
  return v < high ? v : high;
}

/* What the numbers of an activation stand for. */
typedef struct { float scale; int32_t zero; } ft_grid;

/* From the two floats of a scale. */
FT_INLINE ft_grid ft_grid_of(const float *scale) {
  return (ft_grid){scale[0], (int32_t)ft_clamped(scale[1], -128.0f, 127.0f)};
}

FT_INLINE float ft_real(int32_t q, ft_grid grid) { return (float)(q - grid.zero) * grid.scale; }

FT_INLINE int8_t ft_quantised(float v, int32_t zero) {
  const int32_t q = (int32_t)ft_rint(ft_clamped(v, -1024.0f, 1024.0f));
  return (int8_t)ft_clamped_int(q + zero, -128, 127);
}

/* The bias of an int8 sum whose unit is `unit`; floats from 2^23 on are integers. */
FT_INLINE int32_t ft_bias8(float b, float unit) {
  const float v = ft_clamped(b / unit, -0x1p30f, 0x1p30f);
  const float size = v < 0.0f ? -v : v, large = v < 0.0f ? -0x1p23f : 0x1p23f;
  return (int32_t)(size < 0x1p23f ? (v + large) - large : v);
}

/* ---- vectors: ft_grids.c ------------------------------------------------------------------- */

/* A range (low, high) of a vector as the (scale, zero) of memory, and back. */
void ft_put_range(const float *range, float *scale);
void ft_get_range(const float *scale, float *range);
/* The steps of rows of weights; their numbers; and their real values. */
void ft_steps_of(const float *w, uint32_t rows, uint32_t channels, float *step);
void ft_put_weights(const float *w, const float *step, uint32_t channels, int8_t *q);
void ft_get_weights(const int8_t *q, const float *step, uint32_t channels, float *w);

/* ---- copies: ft_lists.c -------------------------------------------------------------------- */

/* Some elements of `bytes` bytes (1 or 4) of each row. */
void ft_take(const void *x, const int32_t *list, void *y, uint32_t rows, uint32_t channels,
             uint32_t listed, uint32_t bytes);

/* A whole parameter as [rows, whole, run], and of each row the listed runs. */
typedef struct {
  const int32_t *list;       /* NULL: all, and `listed` is `whole` */
  uint32_t rows, listed, whole, run;
} ft_part;

ft_part ft_part_of(const ft_tensor *whole, uint32_t axis, const int32_t *list, uint32_t listed);
/* y with the elements of the part instead of its own. */
void ft_merge(const ft_part *part, const void *from, void *y, uint32_t bytes);

/* ---- int8 kernels: ft_int8.c, ft_conv8.c; ft_small_int8.c, ft_small_conv8.c ---------------- */

/* b may be NULL. The room is ft_conv8_room(conv) bytes; the plain loops use none. */
void ft_conv8(const ft_conv *conv, const int8_t *x, ft_grid x_grid, const int8_t *w,
              const float *step, const float *b, int8_t *y, ft_grid y_grid, void *room);
void ft_add8(const int8_t *a, ft_grid a_grid, const int8_t *b, ft_grid b_grid, int8_t *y,
             ft_grid y_grid, uint32_t size);
void ft_avg_pool8(const ft_window *pool, const int8_t *x, ft_grid x_grid, int8_t *y,
                  ft_grid y_grid);
void ft_max_pool8(const ft_window *pool, const int8_t *x, int8_t *y, uint32_t *codes);
/* `rows` samples of `row` elements. */
void ft_mask8(const int8_t *y, ft_grid grid, uint32_t *mask, uint32_t rows, uint32_t row,
              float top);

/* ---- float ops over int8 operands: ft_real.c; ft_small_real.c ------------------------------ */

/* What an update of int8 weights rounds with. */
typedef struct {
  ft_stream stream;
  uint32_t word;             /* of the parameter's first element */
  const float *step;         /* [channels] */
  uint32_t channels;
} ft_rounding;

/* Of the update `op`; both are in ft_ops.c. */
ft_rounding ft_rounding_of(const ft_frame *f, const ft_op *op);
ft_rule ft_rule_of(const ft_frame *f, const ft_op *op);

/* q after it moved by t = (lr * v) / step, with u in [0, 1). */
FT_INLINE int8_t ft_rounded(int32_t q, float t, float u) {
  const float moved = ft_clamped(t == t ? t : 0.0f, -256.0f, 256.0f) + u;
  const int32_t whole = (int32_t)moved, below = whole - ((float)whole > moved);
  return (int8_t)ft_clamped_int(q - below, -127, 127);
}

/* Does it compute with floats, though an operand is int8? */
int ft_is_real_op(const ft_frame *f, const ft_op *op);

/* Runs such an op: LINEAR, LINEAR_DX, CONV_DX, the RELU_DX, and the UPDATE, NORM and GRADIENT of
 * linear layers and convolutions; GRADIENT_UPDATE. */
void ft_run_real(const ft_frame *f, const ft_op *op);

/* Bytes of scratch, of host forms alone: of an op like that; of a CONV8. */
size_t ft_real_room(const ft_program *program, const ft_op *op);
size_t ft_conv8_room(const ft_conv *conv);

#endif
