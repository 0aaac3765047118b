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

#define FT_ABI 2           /* changes with every struct and function of the runtime's headers */
#define FT_IMAGE_VERSION 1
#define FT_HEADER_BYTES 128
#define FT_NONE 0xFFFFu   /* an absent tensor in an op */
#define FT_ALWAYS 0xFFu    /* the group of an op that every phase runs */
#define FT_MAX_GROUPS 32
#define FT_MAX_FLOATS (1u << 28) /* no region holds more: every byte offset fits in 31 bits */

typedef enum {
  FT_OK = 0,
  FT_E_SIZE = 1,       /* shorter than its header, or than the header says */
  FT_E_MAGIC = 2,
  FT_E_VERSION = 3,
  FT_E_CHECKSUM = 4,
  FT_E_HEADER = 5,     /* a table outside the image, a limit exceeded, a reserved byte not zero */
  FT_E_TENSOR = 6,     /* a tensor outside its region, misaligned, or of impossible shape */
  FT_E_PARAM = 7,      /* a parameter outside the vector or the state, or not a parameter tensor */
  FT_E_OP = 8,         /* unknown op code, tensor index or flag */
  FT_E_SHAPE = 9,      /* the tensors of an op do not fit together */
  FT_E_REGION = 10,    /* an op would write where it may only read, or overlap what it reads */
  FT_E_LABEL = 11,     /* run time: a class label outside the logits */
  FT_E_MEMORY = 12,    /* the caller's memory is smaller than the plan */
  FT_E_FEATURE = 13,   /* a hyper-parameter that the Program reserved nothing for */
  FT_E_NOT_FINITE = 14,/* a visit ended with NaN or infinity */
  FT_E_BOUND = 15,     /* a visit moved a coordinate further than the fold's bound */
  FT_E_EMPTY = 16,     /* a visit without samples */
  FT_E_FLEET = 17      /* hosts: a table of a fleet call does not fit, or points outside */
} ft_status;

/* ---- the image ---------------------------------------------------------------------------
 * header, tensor table, parameter table, op table, card (JSON; names and figures, for people and
 * for the coordinator: the runtime never reads it). All tables 4-byte aligned, offsets in bytes
 * from the start of the image.
 */
typedef struct {
  uint8_t magic[4];        /* "FTI1" */
  uint16_t version;        /* FT_IMAGE_VERSION */
  uint16_t header_bytes;   /* FT_HEADER_BYTES */
  uint32_t image_bytes;
  uint32_t crc32;          /* IEEE, of everything from byte 16 on */
  uint8_t layout[32];      /* SHA-256 of the Layout */
  uint32_t arena_bytes;
  uint32_t param_floats;   /* parameter memory of this device */
  uint32_t state_floats;   /* number of state slots x trained floats */
  uint32_t trained_floats;
  uint32_t vector_floats;  /* the averaged vector (Layout) */
  uint16_t n_tensors, n_params, n_ops;
  uint16_t n_forward;      /* ops [0, n_forward) compute the output from the input */
  uint16_t batch;
  uint16_t features;       /* FT_MOMENTUM | ... */
  uint16_t input, label, output, loss; /* tensor indices */
  uint32_t tensors_at, params_at, ops_at, card_at, card_bytes;
  uint8_t reserved[20];    /* zero; the header has FT_HEADER_BYTES */
} ft_header;

/* What the update rule of this Program may use. A slot holds trained_floats floats; slots stand in
 * the state memory in the order of these bits (clip has none). */
enum { FT_MOMENTUM = 1, FT_CLIP = 2, FT_PROX = 4, FT_CORRECTION = 8 };

enum { FT_F32 = 0, FT_I32 = 1 };
enum { FT_ARENA = 0, FT_PARAMS = 1, FT_INPUT = 2, FT_LABELS = 3 };

typedef struct {           /* 24 bytes */
  uint8_t dtype, region, ndim, reserved;
  uint32_t offset;         /* bytes in its region, a multiple of 4 */
  uint32_t dims[4];        /* unused ones are 1; dims[0] is the batch except for parameters */
} ft_tensor;

/* The records ascend without overlap in vector_at, in their tensors' offsets and, of the trained
 * ones, in state_at. */
typedef struct {           /* 24 bytes: where a parameter stands in the averaged vector */
  uint16_t tensor;
  uint8_t group;           /* index; bit of ft_hyper.groups */
  uint8_t trained;         /* 0 or 1: does the UpdatePlan train it */
  uint32_t vector_at;      /* floats into the averaged vector */
  uint32_t count;          /* floats */
  uint32_t state_at;       /* floats into each state slot, if trained */
  uint32_t reserved[2];    /* zero */
} ft_param;

typedef struct {           /* 40 bytes */
  uint8_t code, group, flags, reserved; /* group: FT_ALWAYS; else runs if its bit is set */
  uint16_t t[8];           /* tensor indices, FT_NONE where absent */
  uint16_t attr[10];
} ft_op;

/* The ops. Tensors are row-major; B is the batch; an axis in [brackets] is the innermost.
 * "+=" below is: product rounded to float, then added. r = row, i = in, o = out.
 *
 * Forward and loss (t0, t1 ... as listed; out-of-place unless "may alias" is said):
 *  LINEAR   t0 x[B,I] t1 W[I,O] t2 b[O] or none, t3 y[B,O].
 *           O > 1: y[r,o] starts at b[o] (or +0), += x[r,i] * W[i,o] sequentially over i.
 *           O == 1: y[r] = lanes8 over i of x[r,i] * W[i], then + b[0] if there is a b.
 *  BIAS     t0 x[...,C] t1 b[C] t2 y; y = x + b. y may alias x.
 *  RELU     t0 x t1 y; y = x > 0 ? x : (x != x ? x : +0): NaN passes. y may alias x.
 *  TANH, SIGMOID  t0 x t1 y; element-wise, ft_math.h. y may alias x. sigmoid(x) = 1 / (1 + exp(-x)).
 *  ADD      t0 a t1 b t2 y; y = a + b. y may alias a or b (also both).
 *  MSE      t0 prediction[B,O] t1 target[B,O] t2 gradient[B,O] (may alias t0) t3 loss[1]:
 *           e = p - y; row loss = (lanes8 over o of e * e) / (float)O; loss = (sequential sum of
 *           the rows, from +0) / (float)B; gradient = (2 / (float)(B * O)) * e.
 *  CROSS_ENTROPY  t0 logits[B,C] t1 label i32[B] t2 gradient[B,C] (may alias t0) t3 loss[1]:
 *           m = max over c (ascending, m = z > m ? z : m); q[c] = exp(z[c] - m); s = lanes8 over c
 *           of q[c]; row loss = log(s) - (z[label] - m); loss as above;
 *           gradient = q[c] * ((1 / (float)B) / s), then gradient[label] -= 1 / (float)B.
 * Backward (d = gradient of the loss by that tensor):
 *  LINEAR_DX     t0 dy[B,O] t1 W[I,O] t2 dx[B,I]; dx[r,i] = lanes8 over o of W[i,o] * dy[r,o];
 *                O == 1: dx[r,i] = dy[r] * W[i].
 *  RELU_DX       t0 dy t1 y t2 dx; dx = y > 0 ? dy : +0. dx may alias dy.
 *  TANH_DX       t0 dy t1 y t2 dx; dx = dy * (1 - y * y). dx may alias dy.
 *  SIGMOID_DX    t0 dy t1 y t2 dx; dx = dy * (y * (1 - y)). dx may alias dy.
 * Update in place. g is the gradient element; attr[0] = index into the parameter table;
 * t3 = scale[1] or none:
 *  LINEAR_UPDATE t0 x[B,I] t1 dy[B,O] t2 W[I,O]; g[i,o] from +0, += x[r,i] * dy[r,o] over r.
 *  BIAS_UPDATE   t0 none t1 dy[...,C] t2 b[C];   g[c] from +0, + dy[r,c] over r.
 *    if t3: g = scale * g; if weight_decay != 0: g = g + weight_decay * w;
 *    if prox != 0: g = g + prox * (w - base); if FT_USE_CORRECTION: g = g + correction;
 *    if the Program has FT_MOMENTUM: v = momentum * v + g and g = v;   w = w - lr * g.
 * Clipping by the global norm without a gradient buffer (before the updates; while clip is 0 the
 * two norms are not computed, since the scale is 1):
 *  NORM_ZERO     t0 sum[1]; sum = +0.
 *  LINEAR_NORM   t0 x t1 dy t2 sum[1]; per parameter: lane (o mod 8) += g[i,o] * g[i,o], over i,
 *                then o, ascending, all lanes from +0; sum = sum + tree8(lanes).
 *  BIAS_NORM     t0 none t1 dy t2 sum[1]; the same over c.
 *  NORM_SCALE    t0 sum[1] t1 scale[1] (may alias t0); n = sqrt(sum);
 *                scale = (clip > 0 and n > clip) ? clip / n : 1.
 */
enum {
  FT_OP_LINEAR = 1, FT_OP_BIAS = 2, FT_OP_RELU = 3, FT_OP_TANH = 4, FT_OP_SIGMOID = 5, FT_OP_ADD = 6,
  FT_OP_MSE = 16, FT_OP_CROSS_ENTROPY = 17,
  FT_OP_LINEAR_DX = 32, FT_OP_RELU_DX = 33, FT_OP_TANH_DX = 34, FT_OP_SIGMOID_DX = 35,
  FT_OP_LINEAR_UPDATE = 64, FT_OP_BIAS_UPDATE = 65,
  FT_OP_NORM_ZERO = 80, FT_OP_LINEAR_NORM = 81, FT_OP_BIAS_NORM = 82, FT_OP_NORM_SCALE = 83
};

/* ---- running ----------------------------------------------------------------------------- */

typedef struct {           /* a checked image; points into it */
  const ft_header *header;
  const ft_tensor *tensors;
  const ft_param *params;
  const ft_op *ops;
} ft_program;

typedef struct {           /* the caller's memory; 4-byte aligned */
  float *params;           /* header.param_floats */
  uint8_t *arena;          /* header.arena_bytes */
  float *state;            /* header.state_floats; NULL if 0 */
} ft_memory;

enum { FT_USE_CORRECTION = 1 };

typedef struct {           /* the hyper-parameters of a phase; run-time data */
  float lr, momentum, weight_decay, clip, prox; /* 0 = not used */
  uint32_t groups;         /* bit g set: group g trains */
  uint32_t flags;          /* FT_USE_CORRECTION */
} ft_hyper;

typedef struct { double loss_sum; uint32_t count, correct; } ft_score; /* add to it; starts at 0 */

typedef struct { uint64_t count; double sum, sum_squares; float min, max; } ft_moments;

/* The FT_ABI that a library was compiled with. */
uint32_t ft_abi(void);

/* Every byte of the image is checked here; what follows trusts a program that passed. The image
 * must be 4-byte aligned, stay in place and not change. Beside the rules above: exactly one loss op,
 * behind the forward ops, over the header's output, label and loss; a forward op's output has
 * `batch` rows; only updates and the two norms depend on a group; a step has at most 2^40
 * multiply-adds. */
ft_status ft_check(const void *image, size_t bytes, ft_program *program);

/* FT_E_FEATURE if the hyper-parameters need what the Program did not reserve (non-zero momentum,
 * clip, prox, or the correction flag). */
ft_status ft_check_hyper(const ft_program *program, const ft_hyper *hyper);

/* The averaged vector (header.vector_floats) into the parameters; sets the prox base; clears the
 * momentum. */
void ft_load(const ft_program *program, const ft_memory *memory, const float *vector);
void ft_clear_momentum(const ft_program *program, const ft_memory *memory);
/* A correction in the order of the averaged vector into its slot. Needs FT_CORRECTION. */
void ft_load_correction(const ft_program *program, const ft_memory *memory, const float *vector);
/* The parameters into the averaged vector; coordinates without a parameter stay as they are. */
void ft_store(const ft_program *program, const ft_memory *memory, float *vector);
/* The momentum slot into the averaged vector: after a step with lr = 0 and momentum = 0 it holds
 * that step's gradient. Untrained coordinates get 0. Needs FT_MOMENTUM. */
void ft_store_gradient(const ft_program *program, const ft_memory *memory, float *vector);

/* One training step on one batch: x[B, ...] float32; y: float32[B, ...] or int32[B]. Labels are
 * checked before anything is written. */
ft_status ft_step(const ft_program *program, const ft_memory *memory, const float *x, const void *y,
                  const ft_hyper *hyper, float *loss);

/* The output of one batch, in the arena until the next call. */
const float *ft_predict(const ft_program *program, const ft_memory *memory, const float *x);

/* Forward on one batch of which the first `valid` samples count: adds loss (row loss as in the op),
 * count and correct answers (cross-entropy only: the first largest logit equals the label). */
ft_status ft_evaluate(const ft_program *program, const ft_memory *memory, const float *x,
                      const void *y, uint32_t valid, ft_score *score);

/* Forward on one batch; adds the moments of the first `valid` samples of every op's output to
 * moments[n_forward] (one entry per forward op, in op order), in float64, element by element. */
void ft_calibrate(const ft_program *program, const ft_memory *memory, const float *x,
                  uint32_t valid, ft_moments *moments);

#endif
