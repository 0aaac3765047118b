/* ft_runtime.h: check a Program image, then execute it.
 *
 * One runtime serves the microcontroller, the Linux agent and the fleet simulator. It allocates
 * nothing, keeps no globals and never recurses: the caller gives the memory, and may run as many
 * programs at once as it has memories for. Little-endian hosts with IEEE 754 floats only.
 *
 * THE CANONICAL ARITHMETIC. Every float32 result is the same on every host: multiply, then add
 * (never fused), in the order stated beside each op code. Two orders occur:
 *   sequential: one accumulator per result, terms added one by one in ascending index order;
 *   eight lanes: term i is added to lane i mod 8, in ascending order, lanes start at +0; missing
 *     terms of the last group add nothing; then tree8 =
 *     ((l0 + l1) + (l2 + l3)) + ((l4 + l5) + (l6 + l7)).
 * exp, log, tanh, sin and cos are our own (ft_math.h).
 */
#ifndef FT_RUNTIME_H
#define FT_RUNTIME_H

#include <stddef.h>
#include <stdint.h>

#define FT_ABI 5           /* changes with every struct and function of the runtime's headers */
#define FT_IMAGE_VERSION 4
#define FT_HEADER_BYTES 136
#define FT_NONE 0xFFFFu   /* an absent tensor in an op */
#define FT_ALWAYS 0xFFu    /* the group of an op that every phase runs */
#define FT_MAX_GROUPS 32
#define FT_MAX_FLOATS (1u << 28) /* no region holds more: every byte offset fits in 31 bits */
#define FT_TILE_FLOATS (1u << 18) /* of the scratch that a sparse op works in */

typedef enum {
  FT_OK = 0,
  FT_E_SIZE = 1,       /* shorter than its header, or than the header says */
  FT_E_MAGIC = 2,
  FT_E_VERSION = 3,
  FT_E_CHECKSUM = 4,
  FT_E_HEADER = 5,     /* a table outside the image, a limit exceeded, a reserved byte not zero */
  FT_E_TENSOR = 6,     /* a tensor outside its region, misaligned, of impossible shape, or without
                          the scale that its dtype needs */
  FT_E_PARAM = 7,      /* a parameter outside the vector or the state, or not a parameter tensor;
                          an overlay that does not fit its whole parameter */
  FT_E_OP = 8,         /* unknown op code, tensor index or flag */
  FT_E_SHAPE = 9,      /* the tensors of an op do not fit together */
  FT_E_REGION = 10,    /* an op would write where it may only read, or overlap what it reads */
  FT_E_LABEL = 11,     /* run time: a class label outside the logits */
  FT_E_MEMORY = 12,    /* the caller's memory is smaller than the plan */
  FT_E_FEATURE = 13,   /* a hyper-parameter that the Program reserved nothing for */
  FT_E_NOT_FINITE = 14,/* a visit ended with NaN or infinity */
  FT_E_BOUND = 15,     /* a visit moved a coordinate further than the fold's bound */
  FT_E_EMPTY = 16,     /* a visit without samples */
  FT_E_FLEET = 17,     /* hosts: a table of a fleet call does not fit, or points outside */
  FT_E_MASK = 18       /* a mask has more live values than the pool holds */
} ft_status;

/* ---- the image ---------------------------------------------------------------------------
 * header, tensor table, parameter table, op table, constants, card (JSON; names and figures, for
 * people and for the coordinator: the runtime never reads it). All tables 4-byte aligned, offsets in
 * bytes from the start of the image. A word has 4 bytes.
 */
typedef struct {
  uint8_t magic[4];        /* "FTI1" */
  uint16_t version;        /* FT_IMAGE_VERSION */
  uint16_t header_bytes;   /* FT_HEADER_BYTES */
  uint32_t image_bytes;
  uint32_t crc32;          /* IEEE, of everything from byte 16 on */
  uint8_t layout[32];      /* SHA-256 of the Layout */
  uint32_t arena_bytes;
  uint32_t param_floats;   /* words of the parameter memory: what trains */
  uint32_t state_floats;   /* number of state slots x trained floats */
  uint32_t trained_floats; /* of dense parameters, + live_capacity */
  uint32_t vector_floats;  /* the averaged vector (Layout) */
  uint16_t n_tensors, n_params, n_ops;
  uint16_t n_forward;      /* ops [0, n_forward) compute the output from the input */
  uint16_t batch;
  uint16_t features;       /* FT_MOMENTUM | ... */
  uint16_t input, label, output, loss; /* tensor indices */
  uint32_t tensors_at, params_at, ops_at, card_at, card_bytes;
  uint32_t live_capacity;  /* live values that the pool holds; 0 without a pool, and so all below */
  uint32_t live_at;        /* floats into the parameter memory where the pool stands */
  uint16_t live_form;      /* FT_GAPS or FT_BITMAP */
  uint16_t n_pruned;       /* parameters whose values stand in the pool */
  uint32_t bucket;         /* the most places that one growth returns */
  uint32_t frozen_words;   /* of the FROZEN region: what only a load writes */
  uint32_t consts_at, const_words; /* the CONST region, which is part of the image; 0, 0: none */
} ft_header;

/* THE POOL. The weights of the pruned parameters stand in one pool of live_capacity live values, in
 * ascending order of parameter and coordinate; every other weight of theirs is dead: it is no term
 * of any sum and no gradient moves it. Which weights live is run-time data (ft_load_mask). The pool
 * stands behind the dense parameters, to the end of the parameter memory. In 4-byte words:
 *   float  values[live_capacity]
 *   uint32 starts[n_pruned + 1]     the live values of pruned parameter k: [starts[k], starts[k + 1])
 * FT_GAPS:
 *   uint32 gap_starts[n_pruned + 1] the entries of parameter k: [gap_starts[k], gap_starts[k + 1])
 *   uint16 gaps[live_capacity + sum over k of count_k div 65535], padded to a word: cursor = 0; an
 *          entry e < 65535: the weight at cursor + e lives, cursor = cursor + e + 1; 65535: nothing
 *          lives there, cursor = cursor + 65535
 * FT_BITMAP:
 *   uint32 bits[sum over k of ceil(count_k / 32)], parameter by parameter: weight j lives if bit
 *          j mod 32 of word j div 32 is set
 * A pool of all zeros is empty. */
enum { FT_GAPS = 1, FT_BITMAP = 2 };

/* What the update rule of this Program may use. A slot holds trained_floats floats; slots stand in
 * the state memory in the order of these bits (clip has none). */
enum { FT_MOMENTUM = 1, FT_CLIP = 2, FT_PROX = 4, FT_CORRECTION = 8 };

/* FT_I8: only where the input is FT_I8 too. See INT8 below. */
enum { FT_F32 = 0, FT_I32 = 1, FT_I8 = 2 };
/* FT_LIVE: the weights of a pruned parameter; its offset is the parameter's ordinal in the pool, its
 * dims are those of the dense weights, and only sparse ops name it.
 * FT_FROZEN: parameters that do not train, ranges and steps. A load writes them, and nothing else:
 * a device may keep them in flash.
 * FT_CONST: FT_I32 lists of channels, in the image: [k], strictly ascending where an op or a record
 * names them, and below the number of channels there. */
enum {
  FT_ARENA = 0, FT_PARAMS = 1, FT_INPUT = 2, FT_LABELS = 3, FT_LIVE = 4, FT_FROZEN = 5,
  FT_CONST = 6, FT_REGIONS
};

typedef struct {           /* 28 bytes */
  uint8_t dtype, region, ndim, reserved;
  uint32_t offset;         /* bytes in its region, a multiple of 4 */
  uint32_t dims[4];        /* unused ones are 1; dims[0] of the input and the labels is the batch */
  uint16_t scale;          /* of FT_I8: the FT_F32 tensor in FT_FROZEN that says what its numbers
                              stand for: [2] of an activation, [O] of weights [..., O]; else FT_NONE */
  uint16_t reserved2;      /* zero. A tensor of FT_I8 takes its size, rounded up to whole words but
                              in FT_INPUT, where the caller's buffer has no more than the samples */
} ft_tensor;

/* INT8. The numbers q of a tensor stand for real values, which are exact in float32, because scales
 * and steps have at most 16 significant bits:
 *   activations: real = (float)(q - zero) * scale, (scale, zero) = the two floats of its scale
 *   weights[..., o]: real = (float)q * step[o], q in [-127, 127]
 * scale16(x), x > 0: the bits of x, rounded up to 16 significant bits: (bits + 0xFF) & ~0xFF.
 * clamped(v, lo, hi): v = v > lo ? v : lo; v < hi ? v : hi (of a NaN lo). rint is to the nearest,
 * ties to even.
 * A range (lo, hi) of the vector is (scale, zero) in memory: lo = min(lo, 0); hi = max(hi, 0);
 *   e = hi - lo; if e is not in [2^-100, FLT_MAX]: scale = 2^-7, zero = 0; else
 *   scale = scale16(e / 255), zero = clamped(rint(clamped(-128 - lo / scale, -1024, 1024)),
 *   -128, 127).
 *   A store gives lo = (-128 - zero) * scale, hi = (127 - zero) * scale.
 * Weights W[..., O] of the vector get their steps by a load: m[o] = max over the rest of |W[..., o]|
 *   (m starts at 0; m = |w| > m ? |w| : m), M = max over o of m[o]; step[o] = scale16(m[o] / 96) if
 *   m[o] is in [2^-100, FLT_MAX], else scale16(M / 96) if M is, else 2^-7;
 *   q = rint(clamped(w / step[o], -127, 127)). A store gives (float)q * step[o].
 * quantised(v), the number of an activation for a real v that is divided by its scale already:
 *   clamped(rint(clamped(v, -1024, 1024)) + zero, -128, 127).
 *
 * Ops whose operand is marked "real" below take FT_F32, or FT_I8 for its real values: the same
 * arithmetic on the numbers that the real values are.
 *
 * STOCHASTIC ROUNDING. An update of FT_I8 weights makes v as the update of a float would, with
 * w = the real value (v is its g at the end, see "Update in place"), and then, element by element,
 *   t = (lr * v) / step[o]; of a NaN 0; clamped to [-256, 256];
 *   q = clamped(q - floor(t + u), -127, 127)
 * where t + u is a float sum and u = ft_uniform(word) (ft_rng.h), word number state_at + j for
 * element j of the record's tensor, of the stream (run, round, device, FT_PURPOSE_WEIGHT +
 * (step << 8)) of ft_hyper. */

/* The form of a parameter in memory: as in the vector, or, of a range, (scale, zero). */
enum { FT_PLAIN = 0, FT_RANGE = 1 };
/* The axis that an overlay has a part of. */
enum { FT_WHOLE = 0, FT_IN = 1, FT_OUT = 2 };

/* The records ascend without overlap in vector_at, in their tensors' offsets (those in FT_PARAMS and
 * those in FT_FROZEN) and, of the trained ones, in state_at. Those of pruned parameters ascend in
 * vector_at and in ordinal; in a state slot their live values stand behind all others, at
 * trained_floats - live_capacity + starts[ordinal].
 *
 * AN OVERLAY is the trained part of a parameter that stands whole, and untrained, in FT_FROZEN: some
 * of its channels. Its record follows that of the whole parameter, with the same vector_at and
 * group, and has a tensor, a count and a state of its own. With the whole tensor as [R, N, M] (FT_IN:
 * M = the last axis, N = the one before it; FT_OUT: N = the last axis, M = 1) element (r, j, m) of
 * the overlay is element (r, list[j], m) of the whole. FT_I8 overlays have the steps of the whole
 * weights: the same tensor (FT_IN), or copies of those of their channels in one of their own
 * (FT_OUT). A load writes both, a store takes these channels from the overlay. A Program with a
 * pool has neither overlays nor FT_I8. */
typedef struct {           /* 24 bytes: where a parameter stands in the averaged vector */
  uint16_t tensor;
  uint8_t group;           /* index; bit of ft_hyper.groups */
  uint8_t trained;         /* 0 or 1: does the UpdatePlan train it */
  uint32_t vector_at;      /* floats into the averaged vector */
  uint32_t count;          /* floats */
  uint32_t state_at;       /* floats into each state slot, if trained; 0 of a pruned one */
  uint32_t pruned;         /* 0, or 1 + its ordinal in the pool */
  uint16_t index;          /* of an overlay: the list of its channels; else FT_NONE */
  uint8_t axis;            /* FT_WHOLE, or of an overlay FT_IN or FT_OUT */
  uint8_t form;            /* FT_PLAIN or FT_RANGE */
} ft_param;

typedef struct {           /* 40 bytes */
  uint8_t code, group, flags, reserved; /* group: FT_ALWAYS; else runs if its bit is set */
  uint16_t t[8];           /* tensor indices, FT_NONE where absent */
  uint16_t attr[10];
} ft_op;

/* The ops. Tensors are row-major; B is the batch; an axis in [brackets] is the innermost.
 * "+=" below is: product rounded to float, then added. r = row, i = in, o = out, c = channel.
 * An operand "may alias" another: it may stand in exactly its place.
 *
 * Images are [B,H,W,C]; [B,L,C] is an image of height 1, [B,C] one of a single pixel. A weight of
 * a convolution is [kh,kw,I,O], or [k,I,O] for height 1. Its window stands in attr[1..9]: stride_h,
 * stride_w, pad_top, pad_left, pad_bottom, pad_right, groups (0 where the op does not convolve),
 * kernel_h, kernel_w (of the pooling; 0 where the op does not pool). Output extents are (H + pad_top + pad_bottom - kernel) / stride + 1,
 * rounded down. p = (b, oy, ox) is a position of the output, q = (b, oy * stride_h - pad_top + ky,
 * ox * stride_w - pad_left + kx) the one that tap (ky, kx) of its window reads; taps outside the
 * image are left out. Pads are smaller than the kernel.
 * Other attributes: attr[1] = number (groups, first channel), attr[2], attr[3] = a float's low and
 * high half (eps, slope).
 *
 * Masks and codes are FT_I32 tensors [B, words]: sample by sample, element j of the sample's row.
 * A mask has one bit an element: bit j mod 32 of word j div 32. The codes of a pooling say which tap
 * of the window (ky * kernel_w + kx) is the largest: 2 bits each for windows of up to 4 taps, 4 bits
 * up to 16, 8 bits up to 256; the first element stands in the lowest bits. Unused bits are 0. A code
 * that names no tap inside the image (none that a forward op wrote) adds nothing to any sum.
 *
 * Forward (t0, t1 ... as listed):
 *  LINEAR   t0 x[B,I] (real) t1 W[I,O] (real) t2 b[O] or none, t3 y[B,O].
 *           O > 1: y[r,o] starts at b[o] (or +0), += x[r,i] * W[i,o] sequentially over i.
 *           O == 1: y[r] = lanes8 over i of x[r,i] * W[i], then + b[0] if there is a b.
 *  BIAS     t0 x[...,C] t1 b[C] t2 y; y = x + b. y may alias x.
 *  RELU     t0 x t1 y t2 mask or none; y = x <= 0 ? +0 : x (NaN passes); bit = y > 0.
 *  RELU6    t0 x t1 y t2 mask or none; y = x <= 0 ? +0 : (x >= 6 ? 6 : x); bit = y > 0 and y < 6.
 *  LEAKY_RELU  t0 x t1 y t2 mask or none; slope > 0; y = x > 0 ? x : slope * x; bit = y > 0.
 *  TANH, SIGMOID  t0 x t1 y; element-wise, ft_math.h. sigmoid(x) = 1 / (1 + exp(-x)).
 *  HARDSWISH  t0 x t1 y; u = x + 3; c = u <= 0 ? +0 : (u >= 6 ? 6 : u); y = (x * c) / 6.
 *           y may alias x in all of these.
 *  ADD      t0 a t1 b t2 y; y = a + b. y may alias a or b (also both).
 *  SOFTMAX  t0 z[...,C] t1 y (may alias z); m, q and s as in CROSS_ENTROPY; y = q / s.
 *  CONCAT   t0 a[...,C1] t1 b[...,C2] t2 y[...,C1+C2]: the channels of a, then those of b.
 *  RESHAPE  t0 x t1 y (may alias x), f32 or I8 of one scale tensor: the same elements in another
 *           shape.
 *  CONV     t0 x[B,H,W,I] t1 W[kh,kw,I/groups,O] t2 b[O] or none, t3 y[B,OH,OW,O]: y[p,o] starts
 *           at b[o] (or +0), += x[q,i] * W[ky,kx,i,o] sequentially over ky, kx, i of o's group.
 *  MAX_POOL t0 x[B,H,W,C] t1 y[B,OH,OW,C] t2 codes: m starts at the window's first tap inside, then
 *           taps ascending: m = (z > m or z != z) ? z : m; the code is that of the tap taken last.
 *  AVG_POOL t0 x t1 y: y = (sequential sum of the taps inside, from +0) / (float)(kh * kw).
 *  CONV_POOL  t0 x t1 W t2 b or none, t3 y[B,PH,PW,O] t4 codes: CONV, then MAX_POOL of its output
 *           with stride = kernel and no padding; the output of the CONV is never stored.
 *  AFFINE   t0 x[...,C] t1 g[C] t2 b[C] t3 y (may alias x); y = x * g + b.
 *  BATCH_NORMALIZE  t0 x[...,C] t1 y (may alias x) t2 rstd[C]; eps. Over the N rows of x, channel by
 *           channel: mean = (sequential sum, from +0) / (float)N; e = x - mean; var = (sequential
 *           sum of e * e) / (float)N; rstd = 1 / sqrt(var + eps); y = e * rstd.
 *  GROUP_NORMALIZE  t0 x[B,...,C] t1 y (may alias x) t2 rstd[B,G]; G = number, eps. The same over
 *           each sample's elements of one group of C / G channels, n in all; a "sum" is: of each
 *           channel sequentially over the rows of the sample, then lanes8 over the group's channels.
 *  FROZEN_NORMALIZE  t0 x[...,C] t1 mean[C] t2 var[C] t3 y (may alias x); eps;
 *           y = (x - mean) * (1 / sqrt(var + eps)).
 *  TRACKED_NORMALIZE  t0 x[...,C] t1 mean[C] t2 var[C] (trained parameters without an update) t3 y
 *           (may alias x) t4 rstd[C]; eps; number from 1 to 1000, m = number / 1000. In a step:
 *           BATCH_NORMALIZE, and then, unless FT_KEEP_STATISTICS: mean = mean + m * (batch mean -
 *           mean); var = var + m * (v - var), v = (sum of e * e) / (float)(N - 1), N > 1.
 *           Elsewhere: rstd = 1 / sqrt(var + eps); y = (x - mean) * rstd. Its way back is
 *           BATCH_NORMALIZE_DX.
 *  SPARSE_CONV  t0 x[B,H,W,I] t1 W[kh,kw,I,O] (live) t2 b[O] or none, t3 y[B,OH,OW,O]: y[p,o] starts
 *           at b[o] (or +0), += x[q,i] * W[ky,kx,i,o] sequentially over the live (ky, kx, i); x[q]
 *           is +0 outside the image, and such terms count. The window has groups = 1. If W is
 *           [I,O], x [B,...] is taken as [B,1,1,I] and y as [B,1,1,O], here and in the other SPARSE
 *           ops. A host works in tiles, so 8 * (O + kh * kw) is at most FT_TILE_FLOATS.
 *  CONV8    t0 x I8 t1 W I8 t2 b f32[O] or none t3 y I8; the window of CONV, any groups. If W is
 *           [I,O], x [B,...] is taken as [B,1,1,I] and y as [B,1,1,O]. At most 32768 terms a sum.
 *           acc = c[o] + sum over the taps inside of (x - zero_x) * W, an int32, which no order
 *           changes; c[o] = rint(clamped(b[o] / (scale_x * step[o]), -2^30, 2^30)), 0 without b;
 *           m[o] = (scale_x * step[o]) / scale_y; y = quantised((float)acc * m[o]).
 *  ADD8     t0 a I8 t1 b I8 t2 y I8 (may alias a or b): ra = scale_a / scale_y; rb = scale_b /
 *           scale_y; y = quantised((float)(a - zero_a) * ra + (float)(b - zero_b) * rb).
 *  AVG_POOL8  t0 x I8 t1 y I8: r = scale_x / (scale_y * (float)(kh * kw)); y = quantised(
 *           (float)(sum over the taps inside of (x - zero_x)) * r). kh * kw <= 2^15.
 *  MAX_POOL8  t0 x I8 t1 y I8 (of the same scale tensor) t2 codes: as MAX_POOL on the numbers.
 *  MASK8    t0 y I8 t1 mask; a float top, 0 for none: bit = real > 0 and (top == 0 or real < top).
 *  TAKE     t0 x[...,C] t1 list i32[k] t2 y[...,k], f32 or I8 of one scale tensor: y[r,j] =
 *           x[r,list[j]]. Also among backward ops.
 *  MERGE    t0 W (a parameter) t1 part (a parameter) t2 list t3 y, all f32, or W and y I8 of one
 *           scale tensor and part I8; number = FT_IN or FT_OUT: y = W, with the listed channels from
 *           the part, as an overlay has them. Also among backward ops. y is not made of samples.
 *  CROP     t0 x[B,H,W,C] t1 y[B,h,w,C], f32 or I8 of one scale tensor; the attributes are top,
 *           left, h, w: y = these rows and columns of x. Also among backward ops.
 *  PASTE    t0 base[B,H,W,C] or none t1 patch[B,h,w,C] or none t2 y[B,H,W,C] (may alias the base),
 *           f32 or I8 of one scale tensor; attributes of CROP: y = the base with the patch at these
 *           rows and columns; zeros stand for either that is absent. Also among backward ops.
 * Losses (t0 = output, t1 = label, t2 gradient, which may alias t0, t3 loss[1]):
 *  MSE      t0 prediction[B,O] t1 target[B,O]: e = p - y; row loss = (lanes8 over o of e * e) /
 *           (float)O; loss = (sequential sum of the rows, from +0) / (float)B;
 *           gradient = (2 / (float)(B * O)) * e.
 *  CROSS_ENTROPY  t0 logits[B,C] t1 label i32[B]:
 *           m = max over c (ascending, m = z > m ? z : m); q[c] = exp(z[c] - m); s = lanes8 over c
 *           of q[c]; row loss = log(s) - (z[label] - m); loss as above;
 *           gradient = q[c] * ((1 / (float)B) / s), then gradient[label] -= 1 / (float)B.
 *  SOFT_CROSS_ENTROPY  t1 label f32[B,C]: row loss = lanes8 over c of label[c] * (log(s) -
 *           (z[c] - m)); S = lanes8 over c of label[c]; loss as above;
 *           gradient = (q[c] * (S / s) - label[c]) * (1 / (float)B).
 *  WEIGHTED_CROSS_ENTROPY  t1 label i32[B], t4 weight[C] (a parameter): w = weight[label]; W = sequential sum of
 *           the rows' w, from +0; loss = (sequential sum of w * row loss, from +0) / W;
 *           gradient = q[c] * ((w / W) / s), then gradient[label] -= w / W. Evaluation is unweighted.
 * Backward (d = gradient of the loss by that tensor):
 *  LINEAR_DX     t0 dy[B,O] t1 W[I,O] (real) t2 dx[B,I]; dx[r,i] = lanes8 over o of W[i,o] * dy[r,o];
 *                O == 1: dx[r,i] = dy[r] * W[i].
 *  RELU_DX       t0 dy t1 y (real) t2 dx; dx = y > 0 ? dy : +0.
 *  RELU6_DX      t0 dy t1 y (real) t2 dx; dx = (y > 0 and y < 6) ? dy : +0.
 *  LEAKY_RELU_DX t0 dy t1 y (real) t2 dx; dx = y > 0 ? dy : slope * dy.
 *  MASK_DX       t0 dy t1 mask t2 dx; dx = bit ? dy : (slope == 0 ? +0 : slope * dy).
 *  TANH_DX       t0 dy t1 y t2 dx; dx = dy * (1 - y * y).
 *  SIGMOID_DX    t0 dy t1 y t2 dx; dx = dy * (y * (1 - y)).
 *  HARDSWISH_DX  t0 dy t1 x t2 dx; dx = x <= -3 ? +0 : (x >= 3 ? dy : dy * (x / 3 + 0.5)).
 *  SOFTMAX_DX    t0 dy t1 y t2 dx; d = lanes8 over c of dy * y; dx = y * (dy - d).
 *                dx may alias dy in all of these.
 *  SLICE         t0 dy[...,C] t1 dx[...,C1]; number = the first of the C1 channels copied.
 *  CONV_DX       t0 dy t1 W (real) t2 dx[B,H,W,I]: of dx[q,i], lane ((o - first o of i's group) mod 8) +=
 *                W[ky,kx,i,o] * dy[p,o] over ky, kx ascending where a p reads q by that tap, then o of
 *                the group; all lanes from +0; then tree8.
 *  MAX_POOL_DX   t0 dy t1 codes t2 dx; dx from +0; per channel, over p: dx[q of the code] += dy[p].
 *  AVG_POOL_DX   t0 dy t1 dx; dx[q] = (sequential sum over the p whose window holds q, from +0,
 *                of dy[p]) / (float)(kh * kw).
 *  AFFINE_DX     t0 dy t1 g[C] t2 dx (may alias dy); dx = dy * g.
 *  BATCH_NORMALIZE_DX  t0 dy t1 y t2 rstd t3 dx (may alias dy): a = (sum of dy) / (float)N;
 *                b = (sum of dy * y) / (float)N; dx = rstd * ((dy - a) - y * b); sums as forward.
 *  GROUP_NORMALIZE_DX  the same with the sums and the n of GROUP_NORMALIZE.
 *  FROZEN_NORMALIZE_DX  t0 dy t1 var[C] t2 dx (may alias dy); dx = dy * (1 / sqrt(var + eps)).
 *  SPARSE_CONV_DX  t0 dy t1 W t2 dx[B,H,W,I]: dx[q,i] from +0, += W[ky,kx,i,o] * dy[p,o] sequentially
 *                over the live (ky, kx, o) where a p reads q by that tap.
 *  ZERO          t0 any; all elements +0.
 * Update in place. x is real everywhere, W of LINEAR, CONV and GRADIENT_UPDATE may be FT_I8 (see
 * STOCHASTIC ROUNDING). g is the gradient element; attr[0] = index into the parameter table;
 * t3 = scale[1] or none:
 *  LINEAR_UPDATE t0 x[B,I] t1 dy[B,O] t2 W[I,O]; g[i,o] from +0, += x[r,i] * dy[r,o] over r.
 *  BIAS_UPDATE   t0 none t1 dy[...,C] t2 b[C];   g[c] from +0, + dy[r,c] over r.
 *  CONV_UPDATE   t0 x t1 dy t2 W; g[ky,kx,i,o] from +0, += x[q,i] * dy[p,o] over p ascending.
 *  CONV_POOL_UPDATE  t0 x t1 dy[B,PH,PW,O] t2 W, t4 codes; g from +0, over the pooled positions
 *                ascending, += x[q,i] * dy[pooled p,o], q as read from the position that the code of
 *                (pooled p, o) names.
 *  SPARSE_CONV_UPDATE  t0 x t1 dy t2 W; per live weight: lane (b mod 8) += x[q,i] * dy[p,o] over
 *                groups of eight samples b ascending, then (oy, ox) ascending (x is +0 outside the
 *                image), all lanes from +0; g = tree8.
 *  AFFINE_UPDATE t0 x[...,C] t1 dy[...,C] t2 g[C]; from +0, += x[r,c] * dy[r,c] over r.
 *  GRADIENT_UPDATE  t0 none t1 g t2 w, of one shape: g itself.
 *    if t3: g = scale * g; if weight_decay != 0: g = g + weight_decay * w;
 *    if prox != 0: g = g + prox * (w - base); if FT_USE_CORRECTION: g = g + correction;
 *    if the Program has FT_MOMENTUM: v = momentum * v + g and g = v;   w = w - lr * g.
 * Parameters that several ops use: their gradients are summed in a buffer before one GRADIENT_UPDATE:
 *  LINEAR_GRADIENT, BIAS_GRADIENT, CONV_GRADIENT, CONV_POOL_GRADIENT, AFFINE_GRADIENT: operands as
 *                of the update with a buffer of the parameter's shape for t2, no t3; buffer += g.
 * Clipping by the global norm without a gradient buffer (before the updates; while clip is 0 the
 * norms are not computed, since the scale is 1). sum[1] is set by ZERO; t0, t1, t4 as of the update:
 *  LINEAR_NORM, BIAS_NORM, AFFINE_NORM, GRADIENT_NORM  ... t2 sum[1]; per parameter: lane (o mod 8)
 *                += g * g, over the rows of the parameter, then its innermost axis o, ascending, all
 *                lanes from +0; sum = sum + tree8(lanes).
 *  CONV_NORM, CONV_POOL_NORM  ... t3 W (for its shape); the same, but over groups of eight o
 *                ascending, then the rows (ky, kx, i) ascending.
 *  SPARSE_CONV_NORM  t0 x t1 dy t2 sum[1] t3 W; lane (index of the live value within its parameter
 *                mod 8) += g * g, ascending, all lanes from +0; sum = sum + tree8(lanes).
 *  NORM_SCALE    t0 sum[1] t1 scale[1] (may alias t0); n = sqrt(sum);
 *                scale = (clip > 0 and n > clip) ? clip / n : 1.
 */
enum {
  /* forward: below 64 */
  FT_OP_LINEAR = 1, FT_OP_BIAS = 2, FT_OP_RELU = 3, FT_OP_TANH = 4, FT_OP_SIGMOID = 5, FT_OP_ADD = 6,
  FT_OP_RELU6 = 7, FT_OP_LEAKY_RELU = 8, FT_OP_HARDSWISH = 9, FT_OP_SOFTMAX = 10, FT_OP_CONCAT = 11,
  FT_OP_RESHAPE = 12, FT_OP_CONV = 16, FT_OP_CONV_POOL = 17, FT_OP_MAX_POOL = 18,
  FT_OP_AVG_POOL = 19, FT_OP_SPARSE_CONV = 20, FT_OP_AFFINE = 24, FT_OP_BATCH_NORMALIZE = 25, FT_OP_GROUP_NORMALIZE = 26,
  FT_OP_FROZEN_NORMALIZE = 27, FT_OP_TRACKED_NORMALIZE = 29,
  FT_OP_CONV8 = 34, FT_OP_ADD8 = 36, FT_OP_AVG_POOL8 = 37, FT_OP_MAX_POOL8 = 38, FT_OP_MASK8 = 39,
  FT_OP_TAKE = 40, FT_OP_MERGE = 41,
  FT_OP_CROP = 43, FT_OP_PASTE = 44,
  /* losses: 64 to 79 */
  FT_OP_MSE = 64, FT_OP_CROSS_ENTROPY = 65, FT_OP_SOFT_CROSS_ENTROPY = 66,
  FT_OP_WEIGHTED_CROSS_ENTROPY = 67,
  /* backward: 80 to 127 */
  FT_OP_LINEAR_DX = 80, FT_OP_RELU_DX = 81, FT_OP_TANH_DX = 82, FT_OP_SIGMOID_DX = 83,
  FT_OP_RELU6_DX = 84, FT_OP_LEAKY_RELU_DX = 85, FT_OP_HARDSWISH_DX = 86, FT_OP_SOFTMAX_DX = 87,
  FT_OP_MASK_DX = 88, FT_OP_SLICE = 89, FT_OP_CONV_DX = 96, FT_OP_MAX_POOL_DX = 97,
  FT_OP_AVG_POOL_DX = 98, FT_OP_SPARSE_CONV_DX = 99, FT_OP_AFFINE_DX = 104, FT_OP_BATCH_NORMALIZE_DX = 105,
  FT_OP_GROUP_NORMALIZE_DX = 106, FT_OP_FROZEN_NORMALIZE_DX = 107, FT_OP_ZERO = 120,
  FT_OP_NORM_SCALE = 121,
  /* updates: 128 to 159; the norm of the same gradient is 32 above, its sum in a buffer 64 above */
  FT_OP_LINEAR_UPDATE = 128, FT_OP_BIAS_UPDATE = 129, FT_OP_CONV_UPDATE = 130,
  FT_OP_CONV_POOL_UPDATE = 131, FT_OP_AFFINE_UPDATE = 132, FT_OP_GRADIENT_UPDATE = 133,
  FT_OP_SPARSE_CONV_UPDATE = 134,
  FT_OP_LINEAR_NORM = 160, FT_OP_BIAS_NORM = 161, FT_OP_CONV_NORM = 162, FT_OP_CONV_POOL_NORM = 163,
  FT_OP_AFFINE_NORM = 164, FT_OP_GRADIENT_NORM = 165,
  FT_OP_SPARSE_CONV_NORM = 166,
  FT_OP_LINEAR_GRADIENT = 192, FT_OP_BIAS_GRADIENT = 193, FT_OP_CONV_GRADIENT = 194,
  FT_OP_CONV_POOL_GRADIENT = 195, FT_OP_AFFINE_GRADIENT = 196
};

/* ---- running ----------------------------------------------------------------------------- */

typedef struct {           /* a checked image; points into it */
  const ft_header *header;
  const ft_tensor *tensors;
  const ft_param *params;
  const ft_op *ops;
} ft_program;

typedef struct {           /* the caller's memory; 4-byte aligned */
  float *params;           /* header.param_floats words; NULL if 0 */
  uint8_t *arena;          /* header.arena_bytes */
  float *state;            /* header.state_floats; NULL if 0 */
  void *scratch;           /* ft_scratch_bytes, 64-byte aligned; NULL if 0. Keeps nothing */
  float *frozen;           /* header.frozen_words words; NULL if 0. Only the loads write it */
} ft_memory;

/* FT_KEEP_STATISTICS: a step leaves running means and variances as they are. */
enum { FT_USE_CORRECTION = 1, FT_KEEP_STATISTICS = 2 };

typedef struct {           /* the hyper-parameters of a phase; run-time data */
  float lr, momentum, weight_decay, clip, prox; /* 0 = not used */
  uint32_t groups;         /* bit g set: group g trains */
  uint32_t flags;          /* FT_USE_CORRECTION | FT_KEEP_STATISTICS */
  uint32_t step;           /* of the stochastic rounding: the steps since the load, */
  uint64_t run;            /* and whose stream it draws from (ft_rng.h) */
  uint32_t round, device;
} ft_hyper;

typedef struct { double loss_sum; uint32_t count, correct; } ft_score; /* add to it; starts at 0 */

typedef struct { uint64_t count; double sum, sum_squares; float min, max; } ft_moments;

/* The FT_ABI that a library was compiled with. */
uint32_t ft_abi(void);

/* Every byte of the image is checked here; what follows trusts a program that passed. The image
 * must be 4-byte aligned, stay in place and not change. Beside the rules above: exactly one loss op,
 * behind the forward ops, over the header's output, label and loss; a forward op's output has
 * `batch` rows; only updates, norms and gradients of parameters depend on a group; a convolution's
 * output has at most FT_MAX_FLOATS even if a pooling spares its memory; a step has at most 2^40
 * multiply-adds. */
ft_status ft_check(const void *image, size_t bytes, ft_program *program);

/* FT_E_FEATURE if the hyper-parameters need what the Program did not reserve (non-zero momentum,
 * clip, prox, or the correction flag). */
ft_status ft_check_hyper(const ft_program *program, const ft_hyper *hyper);

/* The room that the host form of the sparse ops works in, or that of the int8 ones: they widen the
 * numbers of one op at a time to floats. 0 without them, and with FT_SMALL, whose loops read the
 * numbers themselves: no device pays for it. */
size_t ft_scratch_bytes(const ft_program *program);

/* The numbers of `count` real values: quantised(x / scale). Any scale, zero and x will do. */
void ft_quantise(const float *x, uint32_t count, float scale, float zero, int8_t *q);

/* Which weights live: a bit for each coordinate of the averaged vector, bit i mod 8 of byte i div 8;
 * those of coordinates that are not pruned count for nothing. All live values and what the state
 * holds of them become 0: load the model, and a correction, again. A pool needs this call, or
 * zeros, before any other. FT_E_MASK, and no change, if the pool is too small. */
ft_status ft_load_mask(const ft_program *program, const ft_memory *memory, const uint8_t *bits);
/* The floats of a compact vector: the parameters in the order of their records, and of pruned ones
 * the live values. */
uint32_t ft_live_floats(const ft_program *program, const ft_memory *memory);
/* As ft_load and ft_store, with a compact vector. */
void ft_load_live(const ft_program *program, const ft_memory *memory, const float *vector);
void ft_store_live(const ft_program *program, const ft_memory *memory, float *vector);

/* The averaged vector (header.vector_floats) into the parameters, of which dead ones take nothing;
 * sets the prox base; clears the momentum. */
void ft_load(const ft_program *program, const ft_memory *memory, const float *vector);
void ft_clear_momentum(const ft_program *program, const ft_memory *memory);
/* A correction in the order of the averaged vector into its slot. Needs FT_CORRECTION. */
void ft_load_correction(const ft_program *program, const ft_memory *memory, const float *vector);
/* The parameters into the averaged vector; coordinates without a parameter, and dead ones, stay as
 * they are. */
void ft_store(const ft_program *program, const ft_memory *memory, float *vector);
/* The momentum slot into the averaged vector: after a step with lr = 0 and momentum = 0 it holds
 * that step's gradient. Untrained and dead coordinates get 0. Needs FT_MOMENTUM. */
void ft_store_gradient(const ft_program *program, const ft_memory *memory, float *vector);

/* One training step on one batch: x[B, ...] of the input's dtype, float32 or int8; y: float32[B,
 * ...] or int32[B]. Labels are checked before anything is written. */
ft_status ft_step(const ft_program *program, const ft_memory *memory, const void *x, const void *y,
                  const ft_hyper *hyper, float *loss);

/* The output of one batch, in the arena until the next call. */
const float *ft_predict(const ft_program *program, const ft_memory *memory, const void *x);

/* Forward on one batch of which the first `valid` samples count: adds loss (row loss as in the op),
 * count and correct answers (not for MSE: the first largest logit is at the label, or at the first
 * largest of soft labels). */
ft_status ft_evaluate(const ft_program *program, const ft_memory *memory, const void *x,
                      const void *y, uint32_t valid, ft_score *score);

/* Forward on one batch; adds the moments of the first `valid` samples of every op's output to
 * moments[n_forward] (one entry per forward op, in op order), in float64, element by element. The
 * real values of FT_I8; nothing of masks, and of what MERGE makes. */
void ft_calibrate(const ft_program *program, const ft_memory *memory, const void *x,
                  uint32_t valid, ft_moments *moments);

/* Forward on one whole batch as in a step, but running statistics stay. Of the input of every
 * TRACKED_NORMALIZE, in op order, adds the C sums over the batch, then the C sums of squares, each
 * element by element in float64. */
void ft_observe(const ft_program *program, const ft_memory *memory, const void *x, double *sums);

typedef struct { uint32_t at; float g; } ft_place; /* a coordinate of the averaged vector */

/* Forward and backward on one batch; nothing moves. Of pruned parameter k the most[k] dead
 * coordinates with the largest |g| (of equal ones the lower; a NaN counts as the largest), in
 * ascending order from places[sum of most[< k]] on; found[k] says how many there are. g as in
 * CONV_UPDATE. FT_E_MEMORY if the sum of most is above header.bucket. */
ft_status ft_grow(const ft_program *program, const ft_memory *memory, const void *x, const void *y,
                  const uint32_t *most, ft_place *places, uint32_t *found);

#endif
