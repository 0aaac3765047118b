/* main.c: loads the model, predicts one batch, trains on it once, and prints the bits.
 *
 * On a device, put samples where fill_sample is, and your own code where printf is.
 */
#include "model.h"
#include "runtime/ft_runtime.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LEARNING_RATE 0.01f

/* All the memory that the runtime works in. A size of zero is no array in C. What is frozen is
 * written when a model is loaded, and never else: it may stand in flash. */
static float params[MODEL_PARAM_FLOATS + 1];
static float frozen[MODEL_FROZEN_FLOATS + 1];
static float arena[MODEL_ARENA_FLOATS];
static float state[MODEL_STATE_FLOATS + 1];

static float x[MODEL_BATCH * MODEL_INPUTS];
#if MODEL_IS_INT8
static int8_t quantised[MODEL_BATCH * MODEL_INPUTS];
#endif
#if MODEL_HAS_CLASSES
static int32_t y[MODEL_BATCH];
#else
static float y[MODEL_BATCH * MODEL_OUTPUTS];
#endif

static void fill_sample(void) {
  for (uint32_t i = 0; i < sizeof x / sizeof *x; i++) x[i] = (float)(i % 8) / 8.0f;
#if MODEL_HAS_CLASSES
  for (uint32_t i = 0; i < sizeof y / sizeof *y; i++) y[i] = (int32_t)(i % MODEL_OUTPUTS);
#else
  for (uint32_t i = 0; i < sizeof y / sizeof *y; i++) y[i] = (float)(i % 4) / 4.0f;
#endif
}

/* The samples as the model takes them. */
static const void *inputs(void) {
#if MODEL_IS_INT8
  const float *range = frozen + MODEL_INPUT_SCALE_AT;
  ft_quantise(x, sizeof x / sizeof *x, range[0], range[1], quantised);
  return quantised;
#else
  return x;
#endif
}

/* Where a pruned model meets whole batches, but on no microcontroller: 64-byte aligned. */
static void *scratch_for(const ft_program *program) {
#ifdef FT_SMALL
  (void)program;
  return NULL;
#else
  const size_t bytes = ft_scratch_bytes(program);
  uint8_t *room = bytes ? malloc(bytes + 64) : NULL;
  return room ? room + 64 - (uintptr_t)room % 64 : NULL;
#endif
}

static void print_bits(const char *name, const float *values, uint32_t count) {
  for (uint32_t i = 0; i < count; i++) {
    uint32_t bits;
    memcpy(&bits, values + i, sizeof bits);
    printf("%s %08" PRIx32 "\n", name, bits);
  }
}

int main(void) {
  static float trained[MODEL_VECTOR_FLOATS];
  ft_memory memory = {params, (uint8_t *)arena, state, NULL, frozen};
  const ft_hyper hyper = {.lr = LEARNING_RATE, .groups = 0xFFFFFFFFu};
  ft_program program;
  float loss;

  ft_status status = ft_check(model_image, MODEL_IMAGE_BYTES, &program);
  if (status != FT_OK) {
    fprintf(stderr, "the image is refused: status %d\n", (int)status);
    return 1;
  }
  memory.scratch = scratch_for(&program);
#if MODEL_IS_PRUNED
  ft_load_mask(&program, &memory, model_mask);
#endif
  ft_load(&program, &memory, model_vector);
  fill_sample();
  print_bits("prediction", ft_predict(&program, &memory, inputs()), MODEL_BATCH * MODEL_OUTPUTS);
  status = ft_step(&program, &memory, inputs(), y, &hyper, &loss);
  if (status != FT_OK) {
    fprintf(stderr, "the step is refused: status %d\n", (int)status);
    return 1;
  }
  print_bits("loss", &loss, 1);
  ft_store(&program, &memory, trained);
  print_bits("trained", trained, MODEL_VECTOR_FLOATS);
  return 0;
}
