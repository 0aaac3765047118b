/* main.c: trains a Program on a board, and counts the instructions of every op.
 *
 * The file "in" is a task, the image (whole words), the averaged vector, the samples and their
 * labels; "out" are the figures, the ticks of each op in the last step, and the vector after all.
 */
#include "board.h"
#include "ft_int8.h"

typedef struct {
  uint32_t image_bytes, steps, x_bytes, y_bytes;
  ft_hyper hyper;
} task;

typedef struct {
  uint32_t status, stack_bytes;
  float loss;
  uint32_t n_ops;
} figures;

enum { ROOM = 16 << 20 };

__attribute__((section(".more"), aligned(64))) static uint8_t more[ROOM];

static void *taken(uint8_t **at, uint32_t bytes) {
  void *start = *at;
  *at += (bytes + 63) / 64 * 64;
  return start;
}

static ft_memory memory_of(const ft_header *h, uint8_t **at) {
  ft_memory m;
  m.params = taken(at, h->param_floats * 4);
  m.arena = taken(at, h->arena_bytes);
  m.state = taken(at, h->state_floats * 4);
  m.frozen = taken(at, h->frozen_words * 4);
  m.scratch = NULL;
  return m;
}

/* As ft_step, op by op. */
static float counted_step(const ft_program *program, const ft_memory *memory, const void *x,
                          const void *y, const ft_hyper *hyper, uint32_t *ticks) {
  ft_frame f = ft_frame_of(program, memory, x, y);
  float loss = 0.0f;
  f.hyper = hyper;
  f.by_batch = 1;
  f.velocity = ft_slot(program, memory, FT_MOMENTUM);
  for (uint32_t k = 0; k < program->header->n_ops; k++) {
    const ft_op *op = program->ops + k;
    const uint32_t before = board_ticks();
    const float result = ft_run_ops(&f, op, op + 1);
    ticks[k] = (board_ticks() - before) & 0xFFFFFF;
    if (op->code >= FT_OP_MSE && op->code < FT_OP_LINEAR_DX) loss = result;
  }
  return loss;
}

/* The samples in the dtype of the input, in place. */
static void quantise_input(const ft_program *program, const ft_memory *memory, uint8_t *x,
                           uint32_t bytes) {
  const ft_tensor *in = &program->tensors[program->header->input];
  if (in->dtype != FT_I8) return;
  const ft_tensor *scale = &program->tensors[in->scale];
  const float *grid = memory->frozen + scale->offset / 4;
  ft_quantise((const float *)(const void *)x, bytes / 4, grid[0], grid[1], (int8_t *)x);
}

int main(void) {
  uint8_t *at = more;
  task *t = (task *)(void *)more;
  board_read("in", more, ROOM);
  at += sizeof *t;
  const uint8_t *image = at;
  ft_program program;
  figures found = {(uint32_t)ft_check(image, t->image_bytes, &program), 0, 0.0f, 0};
  if (found.status) return 1;
  float *vector = (float *)(void *)(at += (t->image_bytes + 3) / 4 * 4);
  uint8_t *x = at += program.header->vector_floats * 4, *y = x + t->x_bytes;
  at = more + ((uint32_t)(y + t->y_bytes - more) + 63) / 64 * 64;
  const ft_memory memory = memory_of(program.header, &at);
  uint32_t *ticks = taken(&at, program.header->n_ops * 4);
  ft_load(&program, &memory, vector);
  quantise_input(&program, &memory, x, t->x_bytes);
  for (; t->hyper.step + 1 < t->steps; t->hyper.step++)
    if (ft_step(&program, &memory, x, y, &t->hyper, &found.loss)) return 2;
  found.loss = counted_step(&program, &memory, x, y, &t->hyper, ticks);
  ft_store(&program, &memory, vector);
  found.n_ops = program.header->n_ops;
  found.stack_bytes = board_stack_bytes();
  uint8_t *out = at;
  memcpy(taken(&at, sizeof found), &found, sizeof found);
  at = out + sizeof found;
  memcpy(at, ticks, found.n_ops * 4);
  memcpy(at + found.n_ops * 4, vector, program.header->vector_floats * 4);
  board_write("out", out, (uint32_t)(at - out) + (found.n_ops + program.header->vector_floats) * 4);
  return 0;
}
