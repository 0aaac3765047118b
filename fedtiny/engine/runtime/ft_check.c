/* ft_check.c: every byte of an image, before anything trusts it.
 *
 * The order matters: sizes before the bytes they count, the tensors before the parameters and the
 * ops that name them (ft_check_ops.c); the pool (ft_check_live.c) in between. All sums are made in
 * 64 bits from 32-bit fields, so none can wrap.
 */
#include "ft_kernels.h"

typedef char ft_sizes_are_those_of_the_image[
    sizeof(ft_header) == FT_HEADER_BYTES && sizeof(ft_tensor) == 28 && sizeof(ft_param) == 24 &&
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

int ft_is_zero(const void *bytes, size_t count) {
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
             is_inside(h, h->card_at, h->card_bytes) &&
             h->arena_bytes <= 4 * FT_MAX_FLOATS && h->param_floats <= FT_MAX_FLOATS &&
             h->vector_floats <= FT_MAX_FLOATS && h->state_floats <= FT_MAX_FLOATS &&
             h->trained_floats <= 4ull * h->param_floats && h->frozen_words <= FT_MAX_FLOATS &&
             (h->const_words ? is_table(h, h->consts_at, h->const_words, 4) : !h->consts_at) &&
             h->batch >= 1 && h->n_forward <= h->n_ops &&
             !(h->features & ~all) &&
             h->state_floats == (uint64_t)slots(h->features) * h->trained_floats;
  return good ? ft_check_pool_header(h) : FT_E_HEADER;
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

/* Where a tensor ends in its region. No word is rounded up in the caller's buffer. */
static uint64_t end_of(const ft_tensor *t) {
  const int is_exact = t->dtype == FT_I8 && t->region == FT_INPUT;
  return (uint64_t)t->offset + (is_exact ? ft_floats(t) : ft_bytes(t));
}

/* The bytes of a region; the input and the labels are as large as the tensors that name them, and
 * dense parameters end where the pool starts. */
static uint64_t region_bytes(const ft_program *p, uint32_t region) {
  const ft_header *h = p->header;
  switch (region) {
    case FT_ARENA: return h->arena_bytes;
    case FT_PARAMS: return (uint64_t)4 * (h->live_form ? h->live_at : h->param_floats);
    case FT_FROZEN: return (uint64_t)4 * h->frozen_words;
    case FT_CONST: return (uint64_t)4 * h->const_words;
    default: return end_of(&p->tensors[region == FT_INPUT ? h->input : h->label]);
  }
}

/* Weights in the pool: their offset is an ordinal. */
static int is_live(const ft_program *p, const ft_tensor *t) {
  return t->dtype == FT_F32 && t->ndim >= 2 && t->offset < p->header->n_pruned;
}

static int is_dtype(const ft_program *p, const ft_tensor *t) {
  switch (t->region) {
    case FT_LABELS: return t->dtype == p->tensors[p->header->label].dtype;
    case FT_INPUT: return t->dtype == p->tensors[p->header->input].dtype;
    case FT_CONST: return t->dtype == FT_I32;
    case FT_ARENA: return t->dtype <= FT_I8;
    default: return t->dtype == FT_F32 || t->dtype == FT_I8;
  }
}

/* What an op makes of the scale says what size it must have. */
static int is_scaled(const ft_program *p, const ft_tensor *t) {
  if (t->dtype != FT_I8) return t->scale == FT_NONE;
  if (t->scale >= p->header->n_tensors || !ft_is_int8(p)) return 0;
  const ft_tensor *scale = &p->tensors[t->scale];
  const int fits = scale->dims[0] == 2 || scale->dims[0] == ft_channels(t);
  return fits && scale->dtype == FT_F32 && scale->region == FT_FROZEN && scale->ndim == 1;
}

static ft_status check_tensor(const ft_program *p, const ft_tensor *t) {
  if (t->region >= FT_REGIONS || t->reserved || t->reserved2 || !is_shape(t)) return FT_E_TENSOR;
  if (!is_scaled(p, t)) return FT_E_TENSOR;
  if (t->region == FT_LIVE) return is_live(p, t) ? FT_OK : FT_E_TENSOR;
  if (t->offset % 4 || !is_dtype(p, t)) return FT_E_TENSOR;
  return end_of(t) <= region_bytes(p, t->region) ? FT_OK : FT_E_TENSOR;
}

/* The input and the label fill their regions, which the caller's buffers are; of two dtypes
 * each. */
static int is_buffer(const ft_program *p, uint32_t index, uint32_t region, uint32_t other) {
  if (index >= p->header->n_tensors) return 0;
  const ft_tensor *t = &p->tensors[index];
  return is_shape(t) && t->region == region && t->offset == 0 &&
         (t->dtype == FT_F32 || t->dtype == other) && t->dims[0] == p->header->batch;
}

static ft_status check_tensors(const ft_program *p) {
  const ft_header *h = p->header;
  if (!is_buffer(p, h->input, FT_INPUT, FT_I8) || !is_buffer(p, h->label, FT_LABELS, FT_I32))
    return FT_E_TENSOR;
  if (ft_is_int8(p) && p->header->n_pruned) return FT_E_TENSOR;
  if (h->output >= h->n_tensors || h->loss >= h->n_tensors) return FT_E_TENSOR;
  for (uint32_t i = 0; i < h->n_tensors; i++) {
    ft_status status = check_tensor(p, &p->tensors[i]);
    if (status) return status;
  }
  const ft_tensor *output = &p->tensors[h->output], *loss = &p->tensors[h->loss];
  int good = output->region == FT_ARENA && output->dims[0] == h->batch &&
             output->dtype == FT_F32 && loss->region == FT_ARENA && loss->dtype == FT_F32 &&
             ft_floats(loss) == 1;
  return good ? FT_OK : FT_E_TENSOR;
}

/* ---- parameters ---------------------------------------------------------------------------- */

/* Where the records before this one end, and how many of them are pruned. */
typedef struct { uint64_t vector, params, frozen, state; uint32_t pruned; } ends;

/* Weights of FT_I8 get their steps by a load, ranges stand in two floats. */
static int is_formed(const ft_program *p, const ft_param *a, const ft_tensor *t) {
  if (a->form == FT_RANGE) return t->dtype == FT_F32 && a->count == 2 && !a->trained && !a->axis;
  if (a->form != FT_PLAIN) return 0;
  return t->dtype == FT_F32 || ft_scale_floats(p, t) == ft_channels(t);
}

/* What trains stands in FT_PARAMS, and nothing else has a state. */
static int is_dense(const ft_program *p, const ft_param *a, const ft_tensor *t, ends *before) {
  uint64_t *memory = t->region == FT_PARAMS ? &before->params : &before->frozen;
  if (t->region != FT_PARAMS && (t->region != FT_FROZEN || a->trained)) return 0;
  if (t->offset < *memory || !is_formed(p, a, t)) return 0;
  if (a->trained && a->state_at < before->state) return 0;
  if (a->trained) before->state = (uint64_t)a->state_at + a->count;
  *memory = (uint64_t)t->offset + ft_bytes(t);
  return 1;
}

uint32_t ft_axis_channels(const ft_tensor *whole, uint32_t axis) {
  if (axis == FT_OUT) return whole->ndim ? ft_channels(whole) : 0;
  return axis == FT_IN && whole->ndim >= 2 ? whole->dims[whole->ndim - 2] : 0;
}

int ft_is_part(const ft_tensor *part, const ft_tensor *whole, uint32_t axis, uint32_t channels) {
  const uint32_t shortened = whole->ndim + axis - 3;
  if (part->ndim != whole->ndim || part->dtype != whole->dtype) return 0;
  for (uint32_t i = 0; i < whole->ndim; i++)
    if (part->dims[i] != (i == shortened ? channels : whole->dims[i])) return 0;
  return 1;
}

int ft_is_list(const ft_program *p, uint32_t tensor, uint32_t limit) {
  if (tensor >= p->header->n_tensors) return 0;
  const ft_tensor *t = &p->tensors[tensor];
  if (t->region != FT_CONST || t->ndim != 1) return 0;
  const int32_t *list = ft_list(p, t);
  int64_t before = -1;
  for (uint32_t i = 0; i < t->dims[0]; before = list[i++])
    if (list[i] <= before || (uint32_t)list[i] >= limit) return 0;
  return 1;
}

/* Some channels of the whole parameter, whose record stands before this one. */
static int is_overlay(const ft_program *p, const ft_param *a, const ft_tensor *t) {
  if (a == p->params || a[-1].axis || a[-1].trained || a->pruned || p->header->n_pruned) return 0;
  const ft_tensor *whole = &p->tensors[a[-1].tensor];
  if (!a->trained || a->group != a[-1].group || a->vector_at != a[-1].vector_at) return 0;
  if (!ft_is_list(p, a->index, ft_axis_channels(whole, a->axis)) || a[-1].form) return 0;
  if (!ft_is_part(t, whole, a->axis, p->tensors[a->index].dims[0])) return 0;
  return t->dtype != FT_I8 || (t->scale == whole->scale) == (a->axis == FT_IN);
}

static int is_pruned(const ft_param *a, const ft_tensor *t, ends *before) {
  return t->region == FT_LIVE && t->offset == before->pruned && a->pruned == ++before->pruned &&
         a->state_at == 0;
}

static int is_record(const ft_program *p, const ft_param *a, ends *before) {
  if (a->tensor >= p->header->n_tensors || a->group >= FT_MAX_GROUPS || a->trained > 1 ||
      a->axis > FT_OUT)
    return 0;
  const ft_tensor *t = &p->tensors[a->tensor];
  if (a->count != ft_floats(t)) return 0;
  if (a->axis) return is_overlay(p, a, t) && is_dense(p, a, t, before);
  if (a->index != FT_NONE || a->vector_at < before->vector) return 0;
  before->vector = (uint64_t)a->vector_at + a->count;
  return a->pruned ? !a->form && is_pruned(a, t, before) : is_dense(p, a, t, before);
}

/* The records stand in ascending order in the vector, in the memory and, if trained, in the state:
 * so a single pass shows that no two overlap. */
static ft_status check_params(const ft_program *p) {
  const ft_header *h = p->header;
  ends end = {0, 0, 0, 0, 0};
  for (uint32_t i = 0; i < h->n_params; i++)
    if (!is_record(p, &p->params[i], &end)) return FT_E_PARAM;
  const int good = end.vector <= h->vector_floats && end.pruned == h->n_pruned &&
                   end.state + h->live_capacity <= h->trained_floats;
  return good ? FT_OK : FT_E_PARAM;
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
  if (!status) status = ft_check_live(program);
  if (!status) status = ft_check_ops(program);
  return status;
}
