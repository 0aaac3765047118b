/* ft_check_ops.c: what the operands and the attributes of each op must be.
 *
 * It stands in one table, in symbols: the first operand that names an extent binds it, the others
 * must agree. Windows have rules of their own, in ft_window.c.
 */
#include "ft_kernels.h"

/* Multiply-adds a step: no image keeps a device busy for hours. */
#define FT_MAX_WORK ((uint64_t)1 << 40)

/* The taps of a pooling that a code of eight bits tells apart. */
#define MAX_CODES 256u

/* How an operand's shape is read, and by which symbols. */
enum {
  ABSENT,
  ROWS,      /* [a, ...] = [a, b] */
  INNER,     /* [..., b] = [a, b] */
  JOINED,    /* [..., B + C] = [a, B + C] */
  MATRIX,    /* [a, b] */
  VECTOR,    /* [a] */
  SCALAR,
  ANY,
  BITS,      /* [A, words] with a bit for each of [A, B] */
  PER_GROUP, /* [A, number] */
  X_IMAGE, KERNEL, Y_IMAGE, CODES /* of a window */
};
enum { A, B, C, SYMBOLS };
enum {
  READ, READ_BITS, WEIGHT, TRAINED, LIVE, PREDICTION, TARGET, LABEL, LIST,
  WRITE, WRITE_BITS, LOSS, RUNNING /* a statistic that a step moves */
};
/* OVER_n: may take the place of operand n. Without the others, an operand that is no list of bits is
 * FT_F32. REAL: or FT_I8, for its real values. BYTES: FT_I8. LIKE_0: as operand 0, whichever that
 * is, and of the same scale. */
enum { OPTIONAL = 1, OVER_0 = 2, OVER_1 = 4, REAL = 8, BYTES = 16, LIKE_0 = 32 };

typedef struct {
  uint8_t form, first, second, role, flags;
} operand_rule;

#define FT_OPERANDS 5

/* What stands in the attributes. */
enum {
  NOTHING, EPS, GROUPS_EPS, MOMENTUM_EPS, SLOPE, MASK_SLOPE, FIRST, AXIS, /* a number, a float */
  REGION,                                                                 /* four numbers */
  CONV, CONV_POOL, POOL, SPARSE                                           /* a window */
};

typedef struct {
  uint8_t code, output; /* output: operand number, for a forward op */
  uint8_t attributes;
  operand_rule operand[FT_OPERANDS];
} op_rule;

#define NO_OPERAND {ABSENT, 0, 0, READ, 0}
#define IN(a, b) {ROWS, a, b, READ, 0}
#define REAL_IN(a, b) {ROWS, a, b, READ, REAL}
#define BYTES_IN(a, b) {ROWS, a, b, READ, BYTES}
#define OUT(a, b, flags) {ROWS, a, b, WRITE, flags}
#define CHANNELS_IN(b) {INNER, A, b, READ, 0}
#define CHANNELS_OUT(b, flags) {INNER, A, b, WRITE, flags}
#define PER_CHANNEL(role) {VECTOR, B, 0, role, 0}
#define WEIGHTS(role) {MATRIX, B, C, role, REAL}
#define IMAGE(form, role) {form, 0, 0, role, 0}
#define REAL_IMAGE(form, role) {form, 0, 0, role, REAL}
#define BYTES_IMAGE(form, role) {form, 0, 0, role, BYTES}
#define BIAS(symbol) {VECTOR, symbol, 0, WEIGHT, OPTIONAL}
#define SUM {SCALAR, 0, 0, WRITE, 0}
#define SCALE {SCALAR, 0, 0, READ, OPTIONAL}
#define MASK {BITS, 0, 0, WRITE_BITS, OPTIONAL}

#define UNARY(op) {FT_OP_##op, 1, NOTHING, {IN(A, B), OUT(A, B, OVER_0)}}
#define MASKED(op, attributes) {FT_OP_##op, 1, attributes, {IN(A, B), OUT(A, B, OVER_0), MASK}}
#define BACK(op, attributes)                                                                       \
  {FT_OP_##op##_DX, 0, attributes, {IN(A, B), IN(A, B), OUT(A, B, OVER_0)}}
#define BACK_REAL(op, attributes)                                                                  \
  {FT_OP_##op##_DX, 0, attributes, {IN(A, B), REAL_IN(A, B), OUT(A, B, OVER_0)}}
#define LOSS_OF(op, label, ...)                                                                    \
  {FT_OP_##op, 0, NOTHING,                                                                         \
   {{ROWS, A, B, PREDICTION, 0}, label, OUT(A, B, OVER_0), {SCALAR, 0, 0, LOSS, 0}, __VA_ARGS__}}
#define TARGETS {ROWS, A, B, TARGET, 0}
#define CLASSES {VECTOR, A, 0, LABEL, 0}

/* The update of a parameter, its norm and its sum in a buffer. */
#define PARAMETER(op, attributes, x, dy, form, first, second, of_norm, codes)                      \
  {FT_OP_##op##_UPDATE, 0, attributes,                                                             \
   {x, dy, {form, first, second, TRAINED, REAL}, SCALE, codes}},                                   \
  {FT_OP_##op##_NORM, 0, attributes, {x, dy, SUM, of_norm, codes}},                                \
  {FT_OP_##op##_GRADIENT, 0, attributes,                                                           \
   {x, dy, {form, first, second, WRITE, 0}, NO_OPERAND, codes}}

static const op_rule op_rules[] = {
    {FT_OP_LINEAR, 3, NOTHING, {REAL_IN(A, B), WEIGHTS(WEIGHT), BIAS(C), OUT(A, C, 0)}},
    {FT_OP_BIAS, 2, NOTHING, {CHANNELS_IN(B), PER_CHANNEL(WEIGHT), CHANNELS_OUT(B, OVER_0)}},
    MASKED(RELU, NOTHING),
    MASKED(RELU6, NOTHING),
    MASKED(LEAKY_RELU, SLOPE),
    UNARY(TANH),
    UNARY(SIGMOID),
    UNARY(HARDSWISH),
    {FT_OP_ADD, 2, NOTHING, {IN(A, B), IN(A, B), OUT(A, B, OVER_0 | OVER_1)}},
    {FT_OP_SOFTMAX, 1, NOTHING, {CHANNELS_IN(B), CHANNELS_OUT(B, OVER_0)}},
    {FT_OP_CONCAT, 2, NOTHING, {CHANNELS_IN(B), CHANNELS_IN(C), {JOINED, A, 0, WRITE, 0}}},
    {FT_OP_RESHAPE, 1, NOTHING, {REAL_IN(A, B), OUT(A, B, OVER_0 | LIKE_0)}},
    {FT_OP_CONV, 3, CONV,
     {IMAGE(X_IMAGE, READ), IMAGE(KERNEL, WEIGHT), BIAS(C), IMAGE(Y_IMAGE, WRITE)}},
    {FT_OP_MAX_POOL, 1, POOL,
     {IMAGE(X_IMAGE, READ), IMAGE(Y_IMAGE, WRITE), IMAGE(CODES, WRITE_BITS)}},
    {FT_OP_AVG_POOL, 1, POOL, {IMAGE(X_IMAGE, READ), IMAGE(Y_IMAGE, WRITE)}},
    {FT_OP_CONV_POOL, 3, CONV_POOL,
     {IMAGE(X_IMAGE, READ), IMAGE(KERNEL, WEIGHT), BIAS(C), IMAGE(Y_IMAGE, WRITE),
      IMAGE(CODES, WRITE_BITS)}},
    {FT_OP_SPARSE_CONV, 3, SPARSE,
     {IMAGE(X_IMAGE, READ), IMAGE(KERNEL, LIVE), BIAS(C), IMAGE(Y_IMAGE, WRITE)}},
    {FT_OP_AFFINE, 3, NOTHING,
     {CHANNELS_IN(B), PER_CHANNEL(WEIGHT), PER_CHANNEL(WEIGHT), CHANNELS_OUT(B, OVER_0)}},
    {FT_OP_BATCH_NORMALIZE, 1, EPS,
     {CHANNELS_IN(B), CHANNELS_OUT(B, OVER_0), PER_CHANNEL(WRITE)}},
    {FT_OP_GROUP_NORMALIZE, 1, GROUPS_EPS,
     {IN(A, B), OUT(A, B, OVER_0), {PER_GROUP, 0, 0, WRITE, 0}}},
    {FT_OP_FROZEN_NORMALIZE, 3, EPS,
     {CHANNELS_IN(B), PER_CHANNEL(WEIGHT), PER_CHANNEL(WEIGHT), CHANNELS_OUT(B, OVER_0)}},
    {FT_OP_TRACKED_NORMALIZE, 3, MOMENTUM_EPS,
     {CHANNELS_IN(B), PER_CHANNEL(RUNNING), PER_CHANNEL(RUNNING), CHANNELS_OUT(B, OVER_0),
      PER_CHANNEL(WRITE)}},
    {FT_OP_CONV8, 3, CONV,
     {BYTES_IMAGE(X_IMAGE, READ), BYTES_IMAGE(KERNEL, WEIGHT), BIAS(C), BYTES_IMAGE(Y_IMAGE, WRITE)}},
    {FT_OP_ADD8, 2, NOTHING, {BYTES_IN(A, B), BYTES_IN(A, B), OUT(A, B, OVER_0 | OVER_1 | BYTES)}},
    {FT_OP_AVG_POOL8, 1, POOL, {BYTES_IMAGE(X_IMAGE, READ), BYTES_IMAGE(Y_IMAGE, WRITE)}},
    {FT_OP_MAX_POOL8, 1, POOL,
     {BYTES_IMAGE(X_IMAGE, READ), {Y_IMAGE, 0, 0, WRITE, LIKE_0}, IMAGE(CODES, WRITE_BITS)}},
    {FT_OP_MASK8, 1, MASK_SLOPE, {BYTES_IN(A, B), {BITS, 0, 0, WRITE_BITS, 0}}},
    {FT_OP_TAKE, 2, NOTHING,
     {{INNER, A, B, READ, REAL}, {VECTOR, C, 0, LIST, 0}, {INNER, A, C, WRITE, LIKE_0}}},
    {FT_OP_MERGE, 3, AXIS,
     {{ANY, 0, 0, WEIGHT, REAL}, {ANY, 0, 0, WEIGHT, REAL}, {VECTOR, C, 0, LIST, 0},
      {ANY, 0, 0, WRITE, LIKE_0}}},
    {FT_OP_CROP, 1, REGION, {{ANY, 0, 0, READ, REAL}, {ANY, 0, 0, WRITE, REAL}}},
    {FT_OP_PASTE, 2, REGION,
     {{ANY, 0, 0, READ, OPTIONAL | REAL}, {ANY, 0, 0, READ, OPTIONAL | REAL},
      {ANY, 0, 0, WRITE, OVER_0 | REAL}}},

    LOSS_OF(MSE, TARGETS, NO_OPERAND),
    LOSS_OF(CROSS_ENTROPY, CLASSES, NO_OPERAND),
    LOSS_OF(SOFT_CROSS_ENTROPY, TARGETS, NO_OPERAND),
    LOSS_OF(WEIGHTED_CROSS_ENTROPY, CLASSES, PER_CHANNEL(WEIGHT)),

    {FT_OP_LINEAR_DX, 0, NOTHING, {IN(A, C), WEIGHTS(WEIGHT), OUT(A, B, 0)}},
    BACK_REAL(RELU, NOTHING),
    BACK_REAL(RELU6, NOTHING),
    BACK_REAL(LEAKY_RELU, SLOPE),
    {FT_OP_MASK_DX, 0, MASK_SLOPE, {IN(A, B), {BITS, 0, 0, READ_BITS, 0}, OUT(A, B, OVER_0)}},
    BACK(TANH, NOTHING),
    BACK(SIGMOID, NOTHING),
    BACK(HARDSWISH, NOTHING),
    {FT_OP_SOFTMAX_DX, 0, NOTHING,
     {CHANNELS_IN(B), CHANNELS_IN(B), CHANNELS_OUT(B, OVER_0)}},
    {FT_OP_SLICE, 0, FIRST, {CHANNELS_IN(B), CHANNELS_OUT(C, 0)}},
    {FT_OP_CONV_DX, 0, CONV,
     {IMAGE(Y_IMAGE, READ), REAL_IMAGE(KERNEL, WEIGHT), IMAGE(X_IMAGE, WRITE)}},
    {FT_OP_SPARSE_CONV_DX, 0, SPARSE,
     {IMAGE(Y_IMAGE, READ), IMAGE(KERNEL, LIVE), IMAGE(X_IMAGE, WRITE)}},
    {FT_OP_MAX_POOL_DX, 0, POOL,
     {IMAGE(Y_IMAGE, READ), IMAGE(CODES, READ_BITS), IMAGE(X_IMAGE, WRITE)}},
    {FT_OP_AVG_POOL_DX, 0, POOL, {IMAGE(Y_IMAGE, READ), IMAGE(X_IMAGE, WRITE)}},
    {FT_OP_AFFINE_DX, 0, NOTHING,
     {CHANNELS_IN(B), PER_CHANNEL(WEIGHT), CHANNELS_OUT(B, OVER_0)}},
    {FT_OP_BATCH_NORMALIZE_DX, 0, EPS,
     {CHANNELS_IN(B), CHANNELS_IN(B), PER_CHANNEL(READ), CHANNELS_OUT(B, OVER_0)}},
    {FT_OP_GROUP_NORMALIZE_DX, 0, GROUPS_EPS,
     {IN(A, B), IN(A, B), {PER_GROUP, 0, 0, READ, 0}, OUT(A, B, OVER_0)}},
    {FT_OP_FROZEN_NORMALIZE_DX, 0, EPS,
     {CHANNELS_IN(B), PER_CHANNEL(WEIGHT), CHANNELS_OUT(B, OVER_0)}},

    {FT_OP_ZERO, 0, NOTHING, {{ANY, 0, 0, WRITE, 0}}},
    {FT_OP_NORM_SCALE, 0, NOTHING, {{SCALAR, 0, 0, READ, 0}, {SCALAR, 0, 0, WRITE, OVER_0}}},
    PARAMETER(LINEAR, NOTHING, REAL_IN(A, B), IN(A, C), MATRIX, B, C, NO_OPERAND, NO_OPERAND),
    PARAMETER(BIAS, NOTHING, NO_OPERAND, CHANNELS_IN(B), VECTOR, B, 0, NO_OPERAND, NO_OPERAND),
    PARAMETER(CONV, CONV, REAL_IMAGE(X_IMAGE, READ), IMAGE(Y_IMAGE, READ), KERNEL, 0, 0,
              REAL_IMAGE(KERNEL, WEIGHT), NO_OPERAND),
    PARAMETER(CONV_POOL, CONV_POOL, IMAGE(X_IMAGE, READ), IMAGE(Y_IMAGE, READ), KERNEL, 0, 0,
              IMAGE(KERNEL, WEIGHT), IMAGE(CODES, READ_BITS)),
    PARAMETER(AFFINE, NOTHING, CHANNELS_IN(B), CHANNELS_IN(B), VECTOR, B, 0, NO_OPERAND,
              NO_OPERAND),
    {FT_OP_GRADIENT_UPDATE, 0, NOTHING,
     {NO_OPERAND, CHANNELS_IN(B), {INNER, A, B, TRAINED, REAL}, SCALE}},
    {FT_OP_GRADIENT_NORM, 0, NOTHING, {NO_OPERAND, CHANNELS_IN(B), SUM}},
    {FT_OP_SPARSE_CONV_UPDATE, 0, SPARSE,
     {IMAGE(X_IMAGE, READ), IMAGE(Y_IMAGE, READ), IMAGE(KERNEL, LIVE), SCALE}},
    {FT_OP_SPARSE_CONV_NORM, 0, SPARSE,
     {IMAGE(X_IMAGE, READ), IMAGE(Y_IMAGE, READ), SUM, IMAGE(KERNEL, LIVE)}},
};

static const op_rule *rule_of(uint32_t code) {
  for (size_t i = 0; i < sizeof op_rules / sizeof *op_rules; i++)
    if (op_rules[i].code == code) return &op_rules[i];
  return NULL;
}

/* ---- kinds of ops -------------------------------------------------------------------------- */

static int is_forward(uint32_t code) { return code < 64; }
static int is_loss(uint32_t code) { return code >= 64 && code < 80; }
static int is_update(uint32_t code) { return code >= 128 && code < 160; }
static int is_norm(uint32_t code) { return code >= 160 && code < 192; }
static int is_of_parameter(uint32_t code) { return code >= 128; }

uint32_t ft_output_operand(uint32_t code) { return rule_of(code)->output; }

const ft_op *ft_loss_op(const ft_program *program) {
  const ft_op *op = program->ops + program->header->n_forward;
  while (!is_loss(op->code)) op++;
  return op;
}

/* ---- fields and attributes ----------------------------------------------------------------- */

static int is_positive(float x) { return x > 0.0f && x < __builtin_inff(); }

static int are_scalars(const ft_op *op, uint32_t kind) {
  const float value = ft_scalar(op);
  switch (kind) {
    case EPS: case SLOPE: return ft_number(op) == 0 && is_positive(value);
    case MASK_SLOPE: return ft_number(op) == 0 && (value == 0.0f || is_positive(value));
    case GROUPS_EPS: return ft_number(op) > 0 && is_positive(value);
    case MOMENTUM_EPS:
      return ft_number(op) > 0 && ft_number(op) <= 1000 && is_positive(value);
    case FIRST: return ft_is_zero(op->attr + 2, 2 * sizeof *op->attr);
    case AXIS:
      return ft_is_zero(op->attr + 2, 2 * sizeof *op->attr) &&
             (ft_number(op) == FT_IN || ft_number(op) == FT_OUT);
    default: return 1;
  }
}

static int are_attributes(const ft_op *op, uint32_t kind) {
  const uint32_t words = kind == NOTHING ? 0 : kind < REGION ? 3 : kind == REGION ? 4 : 9;
  if (op->attr[0] && !is_update(op->code)) return 0;
  return ft_is_zero(op->attr + 1 + words, (9 - words) * sizeof *op->attr) && are_scalars(op, kind);
}

/* The fields that are not operands. */
static ft_status check_fields(const ft_program *p, const ft_op *op, const op_rule *rule) {
  const ft_header *h = p->header;
  if (op->flags || op->reserved || !are_attributes(op, rule->attributes)) return FT_E_OP;
  for (uint32_t k = 0; k < 8; k++) {
    const operand_rule *o = k < FT_OPERANDS ? &rule->operand[k] : NULL;
    int absent = op->t[k] == FT_NONE, wanted = o && o->form != ABSENT;
    if (!absent && (!wanted || op->t[k] >= h->n_tensors)) return FT_E_OP;
    if (absent && wanted && !(o->flags & OPTIONAL)) return FT_E_OP;
  }
  if (op->group != FT_ALWAYS && (!is_of_parameter(op->code) || op->group >= FT_MAX_GROUPS))
    return FT_E_OP;
  int clips = is_norm(op->code) || op->code == FT_OP_NORM_SCALE ||
              (is_update(op->code) && op->t[3] != FT_NONE);
  return clips && !(h->features & FT_CLIP) ? FT_E_OP : FT_OK;
}

/* ---- shapes -------------------------------------------------------------------------------- */

/* Binds a symbol to an extent, or compares. */
static int agrees(uint32_t symbols[SYMBOLS], uint32_t symbol, uint32_t extent) {
  if (!symbols[symbol]) symbols[symbol] = extent;
  return symbols[symbol] == extent;
}

static int fits(const ft_op *op, const ft_tensor *t, const operand_rule *o,
                uint32_t symbols[SYMBOLS]) {
  const uint32_t last = ft_channels(t), row = ft_row_floats(t);
  switch (o->form) {
    case ROWS: return agrees(symbols, o->first, t->dims[0]) && agrees(symbols, o->second, row);
    case INNER:
      return agrees(symbols, o->first, ft_floats(t) / last) && agrees(symbols, o->second, last);
    case JOINED:
      return agrees(symbols, o->first, ft_floats(t) / last) && last == symbols[B] + symbols[C];
    case MATRIX:
      return t->ndim == 2 && agrees(symbols, o->first, t->dims[0]) &&
             agrees(symbols, o->second, t->dims[1]);
    case VECTOR: return t->ndim == 1 && agrees(symbols, o->first, t->dims[0]);
    case SCALAR: return ft_floats(t) == 1;
    case BITS: return t->dims[0] == symbols[A] && row == ft_words_of(symbols[B], 1);
    case PER_GROUP: return t->dims[0] == symbols[A] && row == ft_number(op);
    default: return 1; /* any; or part of a window, which is checked as a whole */
  }
}

/* The operand of a form that an op has once. */
static const ft_tensor *operand_of(const ft_program *p, const ft_op *op, const op_rule *rule,
                                   uint32_t form) {
  for (uint32_t k = 0; k < FT_OPERANDS; k++)
    if (rule->operand[k].form == form) return &p->tensors[op->t[k]];
  return NULL;
}

/* The most terms of an int8 sum. */
#define MAX_TERMS 32768u

/* A matrix is a window of one tap over images of one pixel. A host pads a sample. */
static ft_status check_conv8(const ft_op *op, const ft_tensor *x, const ft_tensor *w,
                             const ft_tensor *y, uint64_t *work) {
  const ft_tensor in = ft_as_image(x, w), out = ft_as_image(y, w), window = ft_as_window(w);
  const ft_status status = ft_check_conv(op, &in, &window, &out, 0, work);
  if (status) return status;
  if (ft_floats(w) / ft_channels(w) > MAX_TERMS) return FT_E_SHAPE;
  const ft_window win = ft_conv_of(op, &in, &window).window;
  const uint64_t height = (uint64_t)(win.y.height - 1) * win.stride_h + win.kernel_h;
  const uint64_t width = (uint64_t)(win.y.width - 1) * win.stride_w + win.kernel_w;
  return height * width <= FT_MAX_FLOATS / win.x.channels ? FT_OK : FT_E_SHAPE;
}

static ft_status check_window(const ft_program *p, const ft_op *op, const op_rule *rule,
                              const uint32_t symbols[SYMBOLS], uint64_t *work) {
  const ft_tensor *x = operand_of(p, op, rule, X_IMAGE), *y = operand_of(p, op, rule, Y_IMAGE);
  const ft_tensor *w = operand_of(p, op, rule, KERNEL), *codes = operand_of(p, op, rule, CODES);
  if (codes && ft_pool_taps(op) > MAX_CODES) return FT_E_OP;
  if (op->code == FT_OP_AVG_POOL8 && ft_pool_taps(op) > MAX_TERMS) return FT_E_OP;
  ft_status status = rule->attributes == SPARSE ? ft_check_sparse(op, x, w, y, work)
                     : op->code == FT_OP_CONV8  ? check_conv8(op, x, w, y, work)
                     : w ? ft_check_conv(op, x, w, y, rule->attributes == CONV_POOL, work)
                         : ft_check_pool(op, x, y, work);
  if (status) return status;
  if (symbols[C] && symbols[C] != ft_channels(w)) return FT_E_SHAPE; /* the bias */
  if (!codes) return FT_OK;
  const uint32_t words = ft_words_of(ft_row_floats(y), ft_code_bits(ft_pool_taps(op)));
  return codes->dims[0] == y->dims[0] && ft_row_floats(codes) == words ? FT_OK : FT_E_SHAPE;
}

static int has_groups(const ft_tensor *x, uint32_t groups) {
  return x->ndim >= 2 && ft_channels(x) % groups == 0;
}

/* Channels of a parameter from an overlay. */
static ft_status check_merge(const ft_program *p, const ft_op *op) {
  const ft_tensor *w = &p->tensors[op->t[0]], *part = &p->tensors[op->t[1]];
  const ft_tensor *y = &p->tensors[op->t[3]];
  const uint32_t axis = ft_number(op), channels = p->tensors[op->t[2]].dims[0];
  const int fits = ft_is_list(p, op->t[2], ft_axis_channels(w, axis)) &&
                   ft_is_part(part, w, axis, channels) && y->ndim == w->ndim &&
                   !memcmp(y->dims, w->dims, sizeof y->dims);
  return fits ? FT_OK : FT_E_SHAPE;
}

/* Whether an operand, if present, has the images, rows, columns and channels, and the scale. */
static int is_like(const ft_program *p, uint32_t index, const ft_tensor *like, uint32_t height,
                   uint32_t width) {
  if (index == FT_NONE) return 1;
  const ft_tensor *t = &p->tensors[index];
  return t->ndim == 4 && t->dims[0] == like->dims[0] && t->dims[1] == height &&
         t->dims[2] == width && t->dims[3] == like->dims[3] && t->dtype == like->dtype &&
         t->scale == like->scale;
}

static ft_status check_region(const ft_program *p, const ft_op *op, uint64_t *work) {
  const int pastes = op->code == FT_OP_PASTE;
  const ft_tensor *whole = &p->tensors[op->t[pastes ? 2 : 0]];
  const uint32_t height = op->attr[3], width = op->attr[4];
  const int inside = height && width && op->attr[1] + height <= whole->dims[1] &&
                     op->attr[2] + width <= whole->dims[2];
  *work += ft_floats(whole);
  const int fits = inside && whole->ndim == 4 && is_like(p, op->t[1], whole, height, width) &&
                   (!pastes || is_like(p, op->t[0], whole, whole->dims[1], whole->dims[2]));
  return fits ? FT_OK : FT_E_SHAPE;
}

/* What the attributes and the shapes say of each other; the multiply-adds are added to *work. */
static ft_status check_extents(const ft_program *p, const ft_op *op, const op_rule *rule,
                               const uint32_t symbols[SYMBOLS], uint64_t *work) {
  if (rule->attributes >= CONV) return check_window(p, op, rule, symbols, work);
  if (rule->attributes == REGION) return check_region(p, op, work);
  uint64_t terms = 1;
  for (uint32_t s = 0; s < SYMBOLS; s++) terms *= symbols[s] ? symbols[s] : 1;
  *work += terms;
  if (rule->attributes == GROUPS_EPS && !has_groups(&p->tensors[op->t[0]], ft_number(op)))
    return FT_E_SHAPE;
  if (rule->attributes == MOMENTUM_EPS && symbols[A] < 2) return FT_E_SHAPE; /* no variance */
  if (op->code == FT_OP_TAKE) return ft_is_list(p, op->t[1], symbols[B]) ? FT_OK : FT_E_SHAPE;
  if (op->code == FT_OP_MERGE) return check_merge(p, op);
  const int leaves = rule->attributes == FIRST && ft_number(op) + symbols[C] > symbols[B];
  return leaves ? FT_E_SHAPE : FT_OK;
}

/* ---- places -------------------------------------------------------------------------------- */

static int is_trained(const ft_program *p, uint32_t tensor) {
  for (const ft_param *a = p->params; a < p->params + p->header->n_params; a++)
    if (a->tensor == tensor) return a->trained;
  return 0;
}

/* Where an operand with this role may live, and which tensor it must be. Weights in the arena are
 * merged ones. */
static int may_be(const ft_program *p, uint32_t index, uint32_t role) {
  const ft_header *h = p->header;
  const ft_tensor *t = &p->tensors[index];
  switch (role) {
    case READ: return t->region == FT_ARENA || t->region == FT_INPUT;
    case WEIGHT:
      return t->region == FT_PARAMS || t->region == FT_FROZEN || t->region == FT_ARENA;
    case TRAINED: return t->region == FT_PARAMS;
    case LIVE: return t->region == FT_LIVE;
    case LIST: return t->region == FT_CONST;
    case RUNNING: return t->region == FT_PARAMS && is_trained(p, index);
    case PREDICTION: return index == h->output;
    case TARGET: case LABEL: return index == h->label;
    case LOSS: return index == h->loss;
    default: return t->region == FT_ARENA;
  }
}

/* Which dtype it must have there. */
static int has_dtype(const ft_program *p, const ft_op *op, const operand_rule *o, uint32_t k) {
  const ft_tensor *t = &p->tensors[op->t[k]];
  switch (o->role) {
    case READ_BITS: case WRITE_BITS: case LABEL: case LIST: return t->dtype == FT_I32;
    default: break;
  }
  if (o->flags & LIKE_0) {
    const ft_tensor *first = &p->tensors[op->t[0]];
    return t->dtype == first->dtype && t->scale == first->scale;
  }
  if (o->flags & BYTES) return t->dtype == FT_I8;
  return t->dtype == FT_F32 || (o->flags & REAL && t->dtype == FT_I8);
}

/* The scale of an activation has two floats, that of weights one for each output. */
static int has_scale(const ft_program *p, const ft_op *op, const operand_rule *o, uint32_t k) {
  const ft_tensor *t = &p->tensors[op->t[k]];
  const int is_weight = o->role == WEIGHT || o->role == TRAINED || op->code == FT_OP_MERGE;
  if (t->dtype != FT_I8) return 1;
  return ft_scale_floats(p, t) == (is_weight ? ft_channels(t) : 2);
}

static int overlap(const ft_tensor *a, const ft_tensor *b) {
  const uint64_t a_end = (uint64_t)a->offset + ft_bytes(a);
  const uint64_t b_end = (uint64_t)b->offset + ft_bytes(b);
  return a->region == b->region && a->offset < b_end && b->offset < a_end;
}

static int same_place(const ft_tensor *a, const ft_tensor *b) {
  return a->region == b->region && a->offset == b->offset && ft_bytes(a) == ft_bytes(b) &&
         a->dtype == b->dtype;
}

/* Operand k of an op, which it writes, against all its other operands. */
static int is_apart(const ft_program *p, const ft_op *op, const op_rule *rule, uint32_t k) {
  const ft_tensor *written = &p->tensors[op->t[k]];
  for (uint32_t j = 0; j < FT_OPERANDS; j++) {
    if (j == k || op->t[j] == FT_NONE) continue;
    const ft_tensor *other = &p->tensors[op->t[j]];
    int allowed = j < 2 && (rule->operand[k].flags & (OVER_0 << j)) && same_place(written, other);
    if (overlap(written, other) && !allowed) return 0;
  }
  return 1;
}

static ft_status check_update(const ft_program *p, const ft_op *op) {
  if (op->attr[0] >= p->header->n_params) return FT_E_OP;
  const ft_param *param = &p->params[op->attr[0]];
  if (param->tensor != op->t[2] || param->group != op->group) return FT_E_OP;
  return param->trained ? FT_OK : FT_E_REGION;
}

/* ---- one op, and all of them --------------------------------------------------------------- */

static ft_status check_operands(const ft_program *p, const ft_op *op, const op_rule *rule,
                                uint32_t symbols[SYMBOLS]) {
  for (uint32_t k = 0; k < FT_OPERANDS; k++) {
    if (op->t[k] == FT_NONE) continue;
    const operand_rule *o = &rule->operand[k];
    if (!may_be(p, op->t[k], o->role) || !has_dtype(p, op, o, k)) return FT_E_REGION;
    if (!has_scale(p, op, o, k)) return FT_E_SHAPE;
    if (!fits(op, &p->tensors[op->t[k]], &rule->operand[k], symbols)) return FT_E_SHAPE;
  }
  for (uint32_t k = 0; k < FT_OPERANDS; k++)
    if (op->t[k] != FT_NONE && rule->operand[k].role >= WRITE && !is_apart(p, op, rule, k))
      return FT_E_REGION;
  return FT_OK;
}

static ft_status check_op(const ft_program *p, const ft_op *op, uint64_t *work) {
  const op_rule *rule = rule_of(op->code);
  if (!rule) return FT_E_OP;
  uint32_t symbols[SYMBOLS] = {0, 0, 0};
  ft_status status = check_fields(p, op, rule);
  if (!status) status = check_operands(p, op, rule, symbols);
  if (!status) status = check_extents(p, op, rule, symbols, work);
  if (status) return status;
  if (*work > FT_MAX_WORK) return FT_E_OP;
  return is_update(op->code) ? check_update(p, op) : FT_OK;
}

ft_status ft_check_ops(const ft_program *p) {
  uint32_t losses = 0;
  uint64_t work = 0;
  for (uint32_t i = 0; i < p->header->n_ops; i++) {
    const ft_op *op = &p->ops[i];
    const int forward = i < p->header->n_forward;
    if (forward && !is_forward(op->code)) return FT_E_OP;
    ft_status status = check_op(p, op, &work);
    if (status) return status;
    /* The moments of an output count its first samples; those of merged weights are not asked. */
    if (forward && op->code != FT_OP_MERGE &&
        p->tensors[op->t[ft_output_operand(op->code)]].dims[0] != p->header->batch)
      return FT_E_SHAPE;
    losses += (uint32_t)is_loss(op->code);
  }
  return losses == 1 ? FT_OK : FT_E_OP;
}
