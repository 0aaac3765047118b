/* fuzz_image.c: damaged images that the checker lets through must run without harm.
 *
 *     fuzz_image SEED COUNT IMAGE...
 *
 * Mutates copies of the images with a counter-based generator, repairs their checksum, and runs
 * each one that passes in exactly the memory that it states. The sanitizers judge. Prints how many
 * were tried, passed and ran.
 */
#define _POSIX_C_SOURCE 200112L

#include "ft_runtime.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_IMAGE 16384
#define MAX_MEMORY (1u << 20)

/* ---- randomness (splitmix64) ---- */

static uint64_t counter;

static uint32_t word(void) {
  uint64_t z = counter += 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return (uint32_t)(z >> 32);
}

static uint32_t below(uint32_t n) { return (uint32_t)(((uint64_t)word() * n) >> 32); }
static float number(void) { return (float)(int32_t)word() * 0x1p-31f; }

/* ---- the image as its tables ---- */

typedef struct {
  union { uint8_t bytes[MAX_IMAGE]; ft_header header; } image;
  uint32_t bytes;
  uint32_t n_tensors, n_params, n_ops; /* of the undamaged image, as are the tables below */
  ft_tensor *tensors;
  ft_param *params;
  ft_op *ops;
} subject;

static subject opened(const char *path) {
  static subject s;
  memset(&s, 0, sizeof s);
  FILE *file = fopen(path, "rb");
  if (!file) exit(2);
  s.bytes = (uint32_t)fread(s.image.bytes, 1, MAX_IMAGE, file);
  fclose(file);
  return s;
}

static void find_tables(subject *s) {
  const ft_header *h = &s->image.header;
  s->n_tensors = h->n_tensors, s->n_params = h->n_params, s->n_ops = h->n_ops;
  s->tensors = (ft_tensor *)(void *)(s->image.bytes + h->tensors_at);
  s->params = (ft_param *)(void *)(s->image.bytes + h->params_at);
  s->ops = (ft_op *)(void *)(s->image.bytes + h->ops_at);
}

static uint32_t crc_table[256];

static void fill_crc_table(void) {
  for (uint32_t n = 0; n < 256; n++) {
    crc_table[n] = n;
    for (int bit = 0; bit < 8; bit++)
      crc_table[n] = (crc_table[n] >> 1) ^ (crc_table[n] & 1 ? 0xedb88320u : 0);
  }
}

static void repair_checksum(subject *s) {
  uint32_t crc = 0xffffffffu;
  uint32_t end = s->image.header.image_bytes < s->bytes ? s->image.header.image_bytes : s->bytes;
  for (uint32_t i = 16; i < end; i++)
    crc = (crc >> 8) ^ crc_table[(crc ^ s->image.bytes[i]) & 0xff];
  s->image.header.crc32 = ~crc;
}

static uint32_t floats_of(const ft_tensor *t) {
  return t->dims[0] * t->dims[1] * t->dims[2] * t->dims[3];
}

static uint32_t bytes_of(const ft_tensor *t) {
  return t->dtype == FT_I8 ? (floats_of(t) + 3) / 4 * 4 : 4 * floats_of(t);
}

/* ---- mutations ---- */

static uint32_t odd_value(uint32_t old) {
  static const uint32_t edges[] = {0,       1,        2,          0xff,      0xffff,
                                   0x10000, 1u << 28, 0x7fffffff, 0xffffffff};
  switch (below(4)) {
    case 0: return edges[below(sizeof edges / sizeof *edges)];
    case 1: return old + 1 - 2 * below(2);
    case 2: return old + 4 - 8 * below(2);
    default: return below(64);
  }
}

static void change_byte(subject *s) { s->image.bytes[below(s->bytes)] = (uint8_t)word(); }

static void change_word(subject *s) {
  uint32_t *at = (uint32_t *)(void *)(s->image.bytes + 4 * below(s->bytes / 4));
  *at = odd_value(*at);
}

static void change_half(subject *s) {
  uint16_t *at = (uint16_t *)(void *)(s->image.bytes + 2 * below(s->bytes / 2));
  *at = (uint16_t)odd_value(*at);
}

static void change_harmless(subject *s) { s->image.header.layout[below(32)] = (uint8_t)word(); }

static void move_tensor(subject *s) {
  ft_tensor *t = &s->tensors[below(s->n_tensors)];
  t->offset = 4 * below(s->image.header.arena_bytes / 4 + 2);
}

static void change_extent(subject *s) {
  s->tensors[below(s->n_tensors)].dims[below(4)] = odd_value(below(40));
}

static void copy_tensor(subject *s) {
  s->tensors[below(s->n_tensors)] = s->tensors[below(s->n_tensors)];
}

static void change_scale(subject *s) {
  s->tensors[below(s->n_tensors)].scale = (uint16_t)below(s->n_tensors + 1);
}

/* Of a list of channels. */
static void change_constant(subject *s) {
  const ft_header *h = &s->image.header;
  const uint64_t end = h->consts_at + 4 * (uint64_t)h->const_words;
  if (!h->const_words || h->consts_at % 4 || end > MAX_IMAGE) return;
  uint32_t *at = (uint32_t *)(void *)(s->image.bytes + h->consts_at);
  at[below(h->const_words)] = below(4) ? below(6) : word();
}

static void change_operand(subject *s) {
  s->ops[below(s->n_ops)].t[below(5)] = (uint16_t)below(s->n_tensors + 1);
}

static void change_code(subject *s) {
  static const struct { uint8_t first, last; } ranges[] = {
      {FT_OP_LINEAR, FT_OP_RESHAPE}, {FT_OP_CONV, FT_OP_SPARSE_CONV},
      {FT_OP_AFFINE, FT_OP_TRACKED_NORMALIZE}, {FT_OP_CONV8, FT_OP_PASTE}, {FT_OP_MSE, FT_OP_WEIGHTED_CROSS_ENTROPY},
      {FT_OP_LINEAR_DX, FT_OP_SLICE}, {FT_OP_CONV_DX, FT_OP_SPARSE_CONV_DX},
      {FT_OP_AFFINE_DX, FT_OP_FROZEN_NORMALIZE_DX}, {FT_OP_ZERO, FT_OP_NORM_SCALE},
      {FT_OP_LINEAR_UPDATE, FT_OP_SPARSE_CONV_UPDATE}, {FT_OP_LINEAR_NORM, FT_OP_SPARSE_CONV_NORM},
      {FT_OP_LINEAR_GRADIENT, FT_OP_AFFINE_GRADIENT}};
  const uint32_t range = below(sizeof ranges / sizeof *ranges);
  const uint32_t codes = ranges[range].last - ranges[range].first + 1u;
  s->ops[below(s->n_ops)].code = (uint8_t)(ranges[range].first + below(codes));
}

/* Of an op that has some. */
static void change_attribute(subject *s) {
  for (int tries = 0; tries < 8; tries++) {
    ft_op *op = &s->ops[below(s->n_ops)];
    uint16_t *at = &op->attr[1 + below(9)];
    if (op->attr[1] | op->attr[3]) {
      *at = (uint16_t)(below(4) ? below(6) : odd_value(*at));
      return;
    }
  }
}

/* A window of an image, and the tensor that it makes. */
static void change_window(subject *s) {
  change_attribute(s);
  change_extent(s);
}

static void copy_op(subject *s) { s->ops[below(s->n_ops)] = s->ops[below(s->n_ops)]; }

static void swap_ops(subject *s) {
  ft_op *a = &s->ops[below(s->n_ops)], *b = &s->ops[below(s->n_ops)], kept = *a;
  *a = *b;
  *b = kept;
}

static void change_param(subject *s) {
  ft_param *p = &s->params[below(s->n_params)];
  uint32_t *figures[] = {&p->vector_at, &p->count, &p->state_at, &p->pruned};
  uint32_t *at = figures[below(4)];
  switch (below(6)) {
    case 0: p->index = (uint16_t)below(s->n_tensors + 1); break;
    case 1: p->axis = (uint8_t)below(4); break;
    case 2: p->form = (uint8_t)below(3); break;
    default: *at = odd_value(*at);
  }
}

static void change_group(subject *s) {
  ft_param *p = &s->params[below(s->n_params)];
  p->group = (uint8_t)below(32);
  for (uint32_t i = 0; i < s->n_ops; i++)
    if (s->ops[i].code >= FT_OP_LINEAR_UPDATE && s->ops[i].code <= FT_OP_SPARSE_CONV_UPDATE)
      if (&s->params[s->ops[i].attr[0] % s->n_params] == p) s->ops[i].group = p->group;
}

/* The words of the pool, of which the first ones are the values. */
static uint32_t pool_words(const subject *s) {
  const ft_header *h = &s->image.header;
  uint32_t escapes = 0, bits = 0;
  for (uint32_t i = 0; i < s->n_params; i++) {
    const ft_param *p = &s->params[i];
    if (p->pruned) escapes += p->count / 65535, bits += p->count / 32 + (p->count % 32 != 0);
  }
  const uint32_t starts = h->n_pruned + 1u;
  if (h->live_form == FT_BITMAP) return h->live_capacity + starts + bits;
  return h->live_capacity + 2 * starts + (h->live_capacity + escapes + 1) / 2;
}

/* Places it behind so many dense words, of whose parameters so many floats train. */
static void place_pool(subject *s, uint32_t floats, uint32_t trained) {
  ft_header *h = &s->image.header;
  const uint32_t slots = h->trained_floats ? h->state_floats / h->trained_floats : 0;
  if (h->live_form) h->live_at = floats;
  h->param_floats = floats + (h->live_form ? pool_words(s) : 0);
  h->trained_floats = trained + h->live_capacity;
  h->state_floats = slots * h->trained_floats;
}

static uint32_t pruned_floats(const subject *s) {
  uint32_t floats = 0;
  for (uint32_t i = 0; i < s->n_params; i++)
    if (s->params[i].pruned) floats += s->params[i].count;
  return floats;
}

static void change_pool(subject *s) {
  ft_header *h = &s->image.header;
  if (!h->live_form) return;
  const uint32_t floats = h->live_at, most = pruned_floats(s);
  const uint32_t trained = h->trained_floats - h->live_capacity;
  h->live_capacity = below(8) ? 1 + below(most) : odd_value(h->live_capacity) % (1u << 28);
  h->live_form = (uint16_t)(1 + below(2));
  h->bucket = below(most + 2);
  place_pool(s, floats, trained);
}

/* Every extent of one size becomes another, and everything is placed anew. */
static void resize(subject *s) {
  ft_header *h = &s->image.header;
  const uint32_t from = s->tensors[below(s->n_tensors)].dims[below(2)], to = 1 + below(40);
  uint32_t arena = 0, params = 0, frozen = 0, coordinates = 0, trained = 0;
  if (from == h->batch) h->batch = (uint16_t)to;
  for (uint32_t i = 0; i < s->n_tensors; i++) {
    ft_tensor *t = &s->tensors[i];
    for (uint32_t k = 0; k < t->ndim % 5u; k++)
      if (t->dims[k] == from && floats_of(t) != 1) t->dims[k] = to;
    if (t->region == FT_ARENA) t->offset = arena, arena += bytes_of(t);
    if (t->region == FT_PARAMS) t->offset = params, params += bytes_of(t);
    if (t->region == FT_FROZEN) t->offset = frozen, frozen += bytes_of(t);
  }
  for (uint32_t i = 0; i < s->n_params; i++) {
    ft_param *p = &s->params[i];
    const uint32_t size = floats_of(&s->tensors[p->tensor % s->n_tensors]);
    p->count = size;
    if (p->axis && i) p->vector_at = p[-1].vector_at;
    else p->vector_at = coordinates, coordinates += size;
    p->state_at = p->trained && !p->pruned ? trained : 0;
    if (p->trained && !p->pruned) trained += size;
  }
  h->arena_bytes = arena;
  h->frozen_words = frozen / 4;
  h->vector_floats = coordinates;
  const uint32_t most = pruned_floats(s);
  if (most) h->live_capacity = 1 + h->live_capacity % most;
  if (h->bucket > most) h->bucket = most;
  place_pool(s, params / 4, trained);
}

static void mutate(subject *s) {
  static void (*const mutations[])(subject *) = {
      change_byte, change_word, change_half, change_harmless, move_tensor, change_extent,
      copy_tensor, change_operand, change_code, change_attribute, change_window, copy_op, swap_ops,
      change_param, change_group, change_pool, change_scale, change_constant, resize};
  const uint32_t n = sizeof mutations / sizeof *mutations;
  for (uint32_t k = 1 + below(2) * below(8); k > 0; k--) mutations[below(n)](s);
}

/* ---- running ---- */

static void *block(uint64_t bytes) {
  uint8_t *memory = malloc(bytes ? bytes : 1);
  if (!memory) exit(3);
  for (uint64_t i = 0; i < bytes; i++) memory[i] = (uint8_t)(i * 37 + 11);
  return memory;
}

static float *numbers(uint32_t count) {
  float *values = block(4 * (uint64_t)count);
  for (uint32_t i = 0; i < count; i++) values[i] = number();
  return values;
}

/* As many as the input has, whose numbers are not padded to words. */
static void *input_for(const ft_program *p) {
  const ft_tensor *input = &p->tensors[p->header->input];
  const uint32_t count = floats_of(input);
  if (input->dtype == FT_F32) return numbers(count);
  float *x = numbers(count);
  int8_t *q = block(count);
  const float scale = below(8) ? 0.01f : number() / number(), zero = number() / number();
  if (below(8) == 0) x[below(count)] = number() / 0.0f;
  ft_quantise(x, count, scale, zero, q);
  free(x);
  return q;
}

static void *labels_for(const ft_program *p) {
  const ft_tensor *label = &p->tensors[p->header->label];
  if (label->dtype == FT_F32) return numbers(floats_of(label));
  const uint32_t classes = floats_of(&p->tensors[p->header->output]) / p->header->batch;
  const uint32_t range = classes + (below(8) == 0);
  int32_t *labels = block(4 * (uint64_t)floats_of(label));
  for (uint32_t i = 0; i < floats_of(label); i++) labels[i] = (int32_t)below(range);
  return labels;
}

static ft_hyper some_hyper(uint32_t features) {
  ft_hyper hyper = {0.1f, 0, 0, 0, 0, word() | word(), 0, word(), 7, 1, 2};
  if (below(2)) hyper.weight_decay = 0.01f;
  if (features & FT_MOMENTUM) hyper.momentum = 0.9f;
  if (features & FT_CLIP && below(2)) hyper.clip = 0.5f;
  if (features & FT_PROX && below(2)) hyper.prox = 0.1f;
  if (features & FT_CORRECTION && below(2)) hyper.flags = FT_USE_CORRECTION;
  if (below(2)) hyper.flags |= FT_KEEP_STATISTICS;
  if (below(64) == 0) hyper.momentum = hyper.prox = hyper.clip = 1.0f, hyper.flags = 1;
  return hyper;
}

static float read_all(const float *values, uint32_t count) {
  volatile float sum = 0.0f;
  for (uint32_t i = 0; i < count; i++) sum += values[i];
  return sum;
}

static void *scratch_for(const ft_program *p) {
  void *scratch = NULL;
  const size_t bytes = ft_scratch_bytes(p);
  if (bytes && posix_memalign(&scratch, 64, bytes)) exit(3);
  return scratch;
}

/* Any mask; one that the pool has no room for leaves it empty. */
static void load_mask(const ft_program *p, const ft_memory *memory) {
  const uint32_t bytes = p->header->vector_floats / 8 + 1, density = 1 + below(16);
  uint8_t *bits = block(bytes);
  for (uint32_t i = 0; i < bytes; i++) bits[i] = 0;
  for (uint32_t i = 0; i < 8 * bytes; i++) bits[i / 8] |= (uint8_t)(!below(density) << i % 8);
  if (ft_load_mask(p, memory, bits)) {
    for (uint32_t i = 0; i < bytes; i++) bits[i] = 0;
    if (ft_load_mask(p, memory, bits)) exit(5);
  }
  free(bits);
}

static void exercise_live(const ft_program *p, const ft_memory *memory) {
  float *values = numbers(ft_live_floats(p, memory));
  ft_load_live(p, memory, values);
  ft_store_live(p, memory, values);
  free(values);
}

static void grow(const ft_program *p, const ft_memory *memory, const void *x, const void *y) {
  const uint32_t n = p->header->n_pruned;
  uint32_t *most = block(4 * (uint64_t)n), *found = block(4 * (uint64_t)n);
  uint32_t left = p->header->bucket;
  for (uint32_t k = 0; k < n; k++) left -= most[k] = below(left + 1);
  ft_place *places = block((p->header->bucket - left) * sizeof *places);
  ft_grow(p, memory, x, y, most, places, found);
  free(most), free(found), free(places);
}

static void observe(const ft_program *p, const ft_memory *memory, const void *x) {
  uint32_t count = 0;
  for (uint32_t i = 0; i < p->header->n_forward; i++)
    if (p->ops[i].code == FT_OP_TRACKED_NORMALIZE)
      count += 2 * floats_of(&p->tensors[p->ops[i].t[1]]);
  double *sums = block(count * sizeof *sums);
  memset(sums, 0, count * sizeof *sums);
  ft_observe(p, memory, x, sums);
  free(sums);
}

static void exercise(const ft_program *p) {
  const ft_header *h = p->header;
  ft_memory memory = {block(4 * (uint64_t)h->param_floats), block(h->arena_bytes),
                      h->state_floats ? block(4 * (uint64_t)h->state_floats) : NULL,
                      scratch_for(p), block(4 * (uint64_t)h->frozen_words)};
  load_mask(p, &memory);
  float *vector = numbers(h->vector_floats), loss = 0.0f;
  void *x = input_for(p), *y = labels_for(p);
  ft_moments *moments = block(h->n_forward * sizeof *moments);
  memset(moments, 0, h->n_forward * sizeof *moments);
  ft_score score = {0, 0, 0};
  const ft_hyper hyper = some_hyper(h->features);
  ft_load(p, &memory, vector);
  ft_load_correction(p, &memory, vector);
  for (int step = 0; step < 2; step++) ft_step(p, &memory, x, y, &hyper, &loss);
  read_all(ft_predict(p, &memory, x), floats_of(&p->tensors[h->output]));
  ft_evaluate(p, &memory, x, y, below(h->batch + 2u), &score);
  ft_calibrate(p, &memory, x, below(h->batch + 2u), moments);
  ft_store(p, &memory, vector);
  ft_store_gradient(p, &memory, vector);
  grow(p, &memory, x, y);
  observe(p, &memory, x);
  load_mask(p, &memory);
  exercise_live(p, &memory);
  ft_step(p, &memory, x, y, &hyper, &loss);
  free(memory.params), free(memory.arena), free(memory.state), free(memory.scratch);
  free(memory.frozen);
  free(vector), free(x), free(y), free(moments);
}

static uint64_t memory_bytes(const ft_program *p) {
  const ft_header *h = p->header;
  return h->arena_bytes + ft_scratch_bytes(p) +
         4 * ((uint64_t)h->param_floats + h->frozen_words + h->state_floats + h->vector_floats +
                               floats_of(&p->tensors[h->input]) + floats_of(&p->tensors[h->label]));
}

static ft_status check_copy(const subject *s, uint8_t **image, ft_program *program) {
  *image = malloc(s->bytes); /* exact: a read behind its end is seen */
  if (!*image) exit(3);
  memcpy(*image, s->image.bytes, s->bytes);
  return ft_check(*image, s->bytes, program);
}

int main(int argc, char **argv) {
  const uint64_t seed = strtoull(argv[1], NULL, 10);
  const uint32_t count = (uint32_t)strtoul(argv[2], NULL, 10);
  uint32_t passed = 0, ran = 0;
  fill_crc_table();
  for (uint32_t i = 0; i < count; i++) {
    static subject s;
    if (i % 64 == 0) s = opened(argv[3 + (i / 64) % (uint32_t)(argc - 3)]);
    static subject mutant;
    mutant = s;
    find_tables(&mutant);
    counter = (seed << 32) + i;
    if (i % 64) mutate(&mutant);
    repair_checksum(&mutant);
    uint8_t *image;
    ft_program program;
    const ft_status status = check_copy(&mutant, &image, &program);
    if (i % 64 == 0 && status) return 4; /* an undamaged image is never refused */
    passed += !status && i % 64;
    if (!status && memory_bytes(&program) <= MAX_MEMORY) exercise(&program), ran++;
    free(image);
  }
  printf("%u %u %u\n", count, passed, ran);
  return 0;
}
