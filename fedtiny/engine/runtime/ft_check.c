/* ft_check.c: every byte of an image, before anything trusts it.
 *
 * The order matters: sizes before the bytes they count, the tensors before the parameters and the
 * ops that name them. All sums are made in 64 bits from 32-bit fields, so none can wrap. What the
 * operands of an op must be stands in one table, in symbols: the first operand that names an extent
 * binds it, the others must agree.
 */
#include "ft_kernels.h"

#include <string.h>

/* Multiply-adds a step: no image keeps a device busy for hours. */
#define FT_MAX_WORK ((uint64_t)1 << 40)

typedef char ft_sizes_are_those_of_the_image[
    sizeof(ft_header) == FT_HEADER_BYTES && sizeof(ft_tensor) == 24 && sizeof(ft_param) == 24 &&
    sizeof(ft_op) == 40 ? 1 : -1];

/* ---- the envelope -------------------------------------------------------------------------- */

static uint32_t crc32_of(const uint8_t *bytes, size_t count) {
  static const uint32_t nibble[16] = {
      0x00000000, 0x1db71064, 0x3b6e20c8, 0x26d930ac, 0x76dc4190, 0x6b6b51f4,
      0x4db26158, 0x5005713c, 0xedb88320, 0xf00f9344, 0xd6d6a3e8, 0xcb61b38c,
      0x9b64c2b0, 0x86d3d2d4, 0xa00ae278, 0xbdbdf21c};
  uint32_t crc = 0xffffffffu;
  for (size_t i = 0; i < count; i++) {
    crc ^= bytes[i];
    crc = (crc >> 4) ^ nibble[crc & 15];
    crc = (crc >> 4) ^ nibble[crc & 15];
  }
  return ~crc;
}

static ft_status check_envelope(const uint8_t *image, size_t bytes) {
  const ft_header *h = (const ft_header *)(const void *)image;
  if ((uintptr_t)image % 4 || bytes < FT_HEADER_BYTES) return FT_E_SIZE;
  if (memcmp(h->magic, "FTI1", 4)) return FT_E_MAGIC;
  if (h->version != FT_IMAGE_VERSION || h->header_bytes != FT_HEADER_BYTES) return FT_E_VERSION;
  if (h->image_bytes < FT_HEADER_BYTES || h->image_bytes > bytes) return FT_E_SIZE;
  return crc32_of(image + 16, h->image_bytes - 16) == h->crc32 ? FT_OK : FT_E_CHECKSUM;
}

static int is_inside(const ft_header *h, uint32_t at, uint64_t bytes) {
  return at >= FT_HEADER_BYTES && at + bytes <= h->image_bytes;
}

static int is_table(const ft_header *h, uint32_t at, uint32_t rows, size_t row_bytes) {
  return at % 4 == 0 && is_inside(h, at, (uint64_t)rows * row_bytes);
}

static uint32_t slots(uint32_t features) {
  return (features & FT_MOMENTUM ? 1u : 0u) + (features & FT_PROX ? 1u : 0u) +
         (features & FT_CORRECTION ? 1u : 0u);
}

static int is_zero(const void *bytes, size_t count) {
  const uint8_t *b = bytes;
  uint8_t any = 0;
  for (size_t i = 0; i < count; i++) any |= b[i];
  return !any;
}

static ft_status check_header(const ft_header *h) {
  const uint32_t all = FT_MOMENTUM | FT_CLIP | FT_PROX | FT_CORRECTION;
  int good = is_table(h, h->tensors_at, h->n_tensors, sizeof(ft_tensor)) &&
             is_table(h, h->params_at, h->n_params, sizeof(ft_param)) &&
             is_table(h, h->ops_at, h->n_ops, sizeof(ft_op)) &&
             is_inside(h, h->card_at, h->card_bytes) && is_zero(h->reserved, sizeof h->reserved) &&
             h->arena_bytes <= 4 * FT_MAX_FLOATS && h->param_floats <= FT_MAX_FLOATS &&
             h->vector_floats <= FT_MAX_FLOATS && h->state_floats <= FT_MAX_FLOATS &&
             h->trained_floats <= h->param_floats && h->batch >= 1 && h->n_forward <= h->n_ops &&
             !(h->features & ~all) &&
             h->state_floats == (uint64_t)slots(h->features) * h->trained_floats;
  return good ? FT_OK : FT_E_HEADER;
}

/* ---- tensors ------------------------------------------------------------------------------- */

static int is_shape(const ft_tensor *t) {
  uint64_t floats = 1;
  for (uint32_t i = 0; i < 4; i++) {
    if (t->dims[i] < 1 || (i >= t->ndim && t->dims[i] != 1)) return 0;
    floats *= t->dims[i];
    if (floats > FT_MAX_FLOATS) return 0;
  }
  return t->ndim <= 4;
}

/* The bytes of a region; the input and the labels are as large as the tensors that name them. */
static uint64_t region_bytes(const ft_program *p, uint32_t region) {
  const ft_header *h = p->header;
  if (region == FT_ARENA) return h->arena_bytes;
  if (region == FT_PARAMS) return (uint64_t)h->param_floats * sizeof(float);
  return (uint64_t)ft_floats(&p->tensors[region == FT_INPUT ? h->input : h->label]) * sizeof(float);
}

static ft_status check_tensor(const ft_program *p, const ft_tensor *t) {
  const ft_header *h = p->header;
  if (t->region > FT_LABELS || t->reserved || t->offset % 4 || !is_shape(t)) return FT_E_TENSOR;
  const uint32_t dtype = t->region == FT_LABELS ? p->tensors[h->label].dtype : FT_F32;
  if (t->dtype != dtype) return FT_E_TENSOR;
  if (t->region != FT_PARAMS && t->dims[0] != h->batch && ft_floats(t) != 1) return FT_E_TENSOR;
  uint64_t end = t->offset + (uint64_t)ft_floats(t) * sizeof(float);
  return end <= region_bytes(p, t->region) ? FT_OK : FT_E_TENSOR;
}

/* The input and the label fill their regions, which the caller's buffers are. */
static int is_buffer(const ft_program *p, uint32_t index, uint32_t region) {
  if (index >= p->header->n_tensors) return 0;
  const ft_tensor *t = &p->tensors[index];
  return is_shape(t) && t->region == region && t->offset == 0 && t->dtype <= FT_I32 &&
         t->dims[0] == p->header->batch;
}

static ft_status check_tensors(const ft_program *p) {
  const ft_header *h = p->header;
  if (!is_buffer(p, h->input, FT_INPUT) || !is_buffer(p, h->label, FT_LABELS)) return FT_E_TENSOR;
  if (h->output >= h->n_tensors || h->loss >= h->n_tensors) return FT_E_TENSOR;
  for (uint32_t i = 0; i < h->n_tensors; i++) {
    ft_status status = check_tensor(p, &p->tensors[i]);
    if (status) return status;
  }
  const ft_tensor *output = &p->tensors[h->output], *loss = &p->tensors[h->loss];
  int good = output->region == FT_ARENA && output->dims[0] == h->batch &&
             loss->region == FT_ARENA && ft_floats(loss) == 1;
  return good ? FT_OK : FT_E_TENSOR;
}

/* ---- parameters ---------------------------------------------------------------------------- */

/* The records stand in ascending order in the vector, in the memory and, if trained, in the state:
 * so a single pass shows that no two overlap. */
static ft_status check_params(const ft_program *p) {
  const ft_header *h = p->header;
  uint64_t vector_end = 0, memory_end = 0, state_end = 0;
  for (uint32_t i = 0; i < h->n_params; i++) {
    const ft_param *a = &p->params[i];
    if (a->tensor >= h->n_tensors || a->group >= FT_MAX_GROUPS || a->trained > 1 ||
        !is_zero(a->reserved, sizeof a->reserved))
      return FT_E_PARAM;
    const ft_tensor *t = &p->tensors[a->tensor];
    uint32_t memory_at = t->offset / (uint32_t)sizeof(float);
    if (t->region != FT_PARAMS || a->count != ft_floats(t)) return FT_E_PARAM;
    if (a->vector_at < vector_end || memory_at < memory_end) return FT_E_PARAM;
    vector_end = (uint64_t)a->vector_at + a->count;
    memory_end = (uint64_t)memory_at + a->count;
    if (a->trained && a->state_at < state_end) return FT_E_PARAM;
    if (a->trained) state_end = (uint64_t)a->state_at + a->count;
  }
  return vector_end <= h->vector_floats && state_end <= h->trained_floats ? FT_OK : FT_E_PARAM;
}

/* ---- ops ----------------------------------------------------------------------------------- */

/* How an operand's shape is read, and by which symbols. */
enum { ABSENT, ROWS, INNER, MATRIX, VECTOR, SCALAR };
/* ROWS   [a, ...] = [a, b]     INNER [..., b] = [a, b]     MATRIX [a, b]     VECTOR [a] */
enum { A, B, C, SYMBOLS };
enum { READ, WEIGHT, TRAINED, PREDICTION, TARGET, LABEL, WRITE, LOSS };
enum { OPTIONAL = 1, OVER_0 = 2, OVER_1 = 4 }; /* OVER_n: may take the place of operand n */

typedef struct {
  uint8_t form, first, second, role, flags;
} operand_rule;

#define FT_OPERANDS 4

typedef struct {
  uint8_t code, output; /* output: operand number, for a forward op */
  operand_rule operand[FT_OPERANDS];
} op_rule;

#define IN(a, b) {ROWS, a, b, READ, 0}
#define OUT(a, b, flags) {ROWS, a, b, WRITE, flags}
#define NO_OPERAND {ABSENT, 0, 0, READ, 0}
#define CHANNELS_IN {INNER, A, B, READ, 0}
#define WEIGHTS(role) {MATRIX, B, C, role, 0}
#define SUM {SCALAR, 0, 0, WRITE, 0}
#define SCALE {SCALAR, 0, 0, READ, OPTIONAL}

static const op_rule op_rules[] = {
    {FT_OP_LINEAR, 3,
     {IN(A, B), WEIGHTS(WEIGHT), {VECTOR, C, 0, WEIGHT, OPTIONAL}, OUT(A, C, 0)}},
    {FT_OP_BIAS, 2, {CHANNELS_IN, {VECTOR, B, 0, WEIGHT, 0}, {INNER, A, B, WRITE, OVER_0}}},
    {FT_OP_RELU, 1, {IN(A, B), OUT(A, B, OVER_0)}},
    {FT_OP_TANH, 1, {IN(A, B), OUT(A, B, OVER_0)}},
    {FT_OP_SIGMOID, 1, {IN(A, B), OUT(A, B, OVER_0)}},
    {FT_OP_ADD, 2, {IN(A, B), IN(A, B), OUT(A, B, OVER_0 | OVER_1)}},
    {FT_OP_MSE, 0,
     {{ROWS, A, B, PREDICTION, 0}, {ROWS, A, B, TARGET, 0}, OUT(A, B, OVER_0),
      {SCALAR, 0, 0, LOSS, 0}}},
    {FT_OP_CROSS_ENTROPY, 0,
     {{ROWS, A, B, PREDICTION, 0}, {VECTOR, A, 0, LABEL, 0}, OUT(A, B, OVER_0),
      {SCALAR, 0, 0, LOSS, 0}}},
    {FT_OP_LINEAR_DX, 0, {IN(A, C), WEIGHTS(WEIGHT), OUT(A, B, 0)}},
    {FT_OP_RELU_DX, 0, {IN(A, B), IN(A, B), OUT(A, B, OVER_0)}},
    {FT_OP_TANH_DX, 0, {IN(A, B), IN(A, B), OUT(A, B, OVER_0)}},
    {FT_OP_SIGMOID_DX, 0, {IN(A, B), IN(A, B), OUT(A, B, OVER_0)}},
    {FT_OP_LINEAR_UPDATE, 0, {IN(A, B), IN(A, C), WEIGHTS(TRAINED), SCALE}},
    {FT_OP_BIAS_UPDATE, 0, {NO_OPERAND, CHANNELS_IN, {VECTOR, B, 0, TRAINED, 0}, SCALE}},
    {FT_OP_NORM_ZERO, 0, {SUM}},
    {FT_OP_LINEAR_NORM, 0, {IN(A, B), IN(A, C), SUM}},
    {FT_OP_BIAS_NORM, 0, {NO_OPERAND, CHANNELS_IN, SUM}},
    {FT_OP_NORM_SCALE, 0, {{SCALAR, 0, 0, READ, 0}, {SCALAR, 0, 0, WRITE, OVER_0}}},
};

static const op_rule *rule_of(uint32_t code) {
  for (size_t i = 0; i < sizeof op_rules / sizeof *op_rules; i++)
    if (op_rules[i].code == code) return &op_rules[i];
  return NULL;
}

static int is_forward(uint32_t code) { return code >= FT_OP_LINEAR && code <= FT_OP_ADD; }
static int is_loss(uint32_t code) { return code == FT_OP_MSE || code == FT_OP_CROSS_ENTROPY; }
static int is_update(uint32_t code) {
  return code == FT_OP_LINEAR_UPDATE || code == FT_OP_BIAS_UPDATE;
}
static int is_norm(uint32_t code) { return code >= FT_OP_NORM_ZERO && code <= FT_OP_NORM_SCALE; }

uint32_t ft_output_operand(uint32_t code) { return rule_of(code)->output; }

const ft_op *ft_loss_op(const ft_program *program) {
  const ft_op *op = program->ops + program->header->n_forward;
  while (!is_loss(op->code)) op++;
  return op;
}

/* The fields that are not operands. */
static ft_status check_fields(const ft_program *p, const ft_op *op, const op_rule *rule) {
  const ft_header *h = p->header;
  uint32_t attrs = is_update(op->code) ? 1 : 0;
  if (op->flags || op->reserved || !is_zero(op->attr + attrs, (10 - attrs) * sizeof *op->attr))
    return FT_E_OP;
  for (uint32_t k = 0; k < 8; k++) {
    const operand_rule *o = k < FT_OPERANDS ? &rule->operand[k] : NULL;
    int absent = op->t[k] == FT_NONE, wanted = o && o->form != ABSENT;
    if (!absent && (!wanted || op->t[k] >= h->n_tensors)) return FT_E_OP;
    if (absent && wanted && !(o->flags & OPTIONAL)) return FT_E_OP;
  }
  int conditional = is_update(op->code) || op->code == FT_OP_LINEAR_NORM ||
                    op->code == FT_OP_BIAS_NORM;
  if (op->group != FT_ALWAYS && (!conditional || op->group >= FT_MAX_GROUPS)) return FT_E_OP;
  int clips = is_norm(op->code) || (is_update(op->code) && op->t[3] != FT_NONE);
  return clips && !(h->features & FT_CLIP) ? FT_E_OP : FT_OK;
}

/* Binds a symbol to an extent, or compares. */
static int agrees(uint32_t symbols[SYMBOLS], uint32_t symbol, uint32_t extent) {
  if (!symbols[symbol]) symbols[symbol] = extent;
  return symbols[symbol] == extent;
}

static int fits(const ft_tensor *t, const operand_rule *o, uint32_t symbols[SYMBOLS]) {
  uint32_t last = ft_channels(t);
  switch (o->form) {
    case ROWS:
      return agrees(symbols, o->first, t->dims[0]) && agrees(symbols, o->second, ft_row_floats(t));
    case INNER:
      return agrees(symbols, o->first, ft_floats(t) / last) && agrees(symbols, o->second, last);
    case MATRIX:
      return t->ndim == 2 && agrees(symbols, o->first, t->dims[0]) &&
             agrees(symbols, o->second, t->dims[1]);
    case VECTOR:
      return t->ndim == 1 && agrees(symbols, o->first, t->dims[0]);
    default:
      return ft_floats(t) == 1;
  }
}

/* Where an operand with this role may live, and which tensor it must be. */
static int may_be(const ft_program *p, uint32_t index, uint32_t role) {
  const ft_header *h = p->header;
  const ft_tensor *t = &p->tensors[index];
  switch (role) {
    case READ: return t->region == FT_ARENA || t->region == FT_INPUT;
    case WEIGHT: case TRAINED: return t->region == FT_PARAMS;
    case PREDICTION: return index == h->output;
    case TARGET: return index == h->label && t->dtype == FT_F32;
    case LABEL: return index == h->label && t->dtype == FT_I32;
    case LOSS: return index == h->loss;
    default: return t->region == FT_ARENA;
  }
}

static int overlap(const ft_tensor *a, const ft_tensor *b) {
  uint64_t a_end = a->offset + (uint64_t)ft_floats(a) * sizeof(float);
  uint64_t b_end = b->offset + (uint64_t)ft_floats(b) * sizeof(float);
  return a->region == b->region && a->offset < b_end && b->offset < a_end;
}

static int same_place(const ft_tensor *a, const ft_tensor *b) {
  return a->region == b->region && a->offset == b->offset && ft_floats(a) == ft_floats(b);
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

static ft_status check_op(const ft_program *p, const ft_op *op, uint64_t *work) {
  const op_rule *rule = rule_of(op->code);
  if (!rule) return FT_E_OP;
  ft_status status = check_fields(p, op, rule);
  if (status) return status;
  uint32_t symbols[SYMBOLS] = {0, 0, 0};
  for (uint32_t k = 0; k < FT_OPERANDS; k++) {
    if (op->t[k] == FT_NONE) continue;
    if (!may_be(p, op->t[k], rule->operand[k].role)) return FT_E_REGION;
    if (!fits(&p->tensors[op->t[k]], &rule->operand[k], symbols)) return FT_E_SHAPE;
  }
  for (uint32_t k = 0; k < FT_OPERANDS; k++)
    if (op->t[k] != FT_NONE && rule->operand[k].role >= WRITE && !is_apart(p, op, rule, k))
      return FT_E_REGION;
  uint64_t terms = 1;
  for (uint32_t s = 0; s < SYMBOLS; s++) terms *= symbols[s] ? symbols[s] : 1;
  *work += terms;
  if (*work > FT_MAX_WORK) return FT_E_OP;
  return is_update(op->code) ? check_update(p, op) : FT_OK;
}

static ft_status check_ops(const ft_program *p) {
  uint32_t losses = 0;
  uint64_t work = 0;
  for (uint32_t i = 0; i < p->header->n_ops; i++) {
    const ft_op *op = &p->ops[i];
    const int forward = i < p->header->n_forward;
    if (forward && !is_forward(op->code)) return FT_E_OP;
    ft_status status = check_op(p, op, &work);
    if (status) return status;
    /* The moments of an output count its first samples. */
    if (forward && p->tensors[op->t[ft_output_operand(op->code)]].dims[0] != p->header->batch)
      return FT_E_SHAPE;
    losses += (uint32_t)is_loss(op->code);
  }
  return losses == 1 ? FT_OK : FT_E_OP;
}

ft_status ft_check(const void *image, size_t bytes, ft_program *program) {
  const uint8_t *start = image;
  ft_status status = check_envelope(start, bytes);
  if (status) return status;
  const ft_header *h = image;
  status = check_header(h);
  if (status) return status;
  program->header = h;
  program->tensors = (const ft_tensor *)(const void *)(start + h->tensors_at);
  program->params = (const ft_param *)(const void *)(start + h->params_at);
  program->ops = (const ft_op *)(const void *)(start + h->ops_at);
  status = check_tensors(program);
  if (!status) status = check_params(program);
  if (!status) status = check_ops(program);
  return status;
}
