/* ft_task.h: the samples of simulated devices, batch by batch; private to the fleet call. */
#ifndef FT_TASK_H
#define FT_TASK_H

#include "ft_fleet.h"

typedef uint32_t ft_word __attribute__((may_alias)); /* a float or a label, to be copied */

typedef struct {            /* one part of a visit's samples */
  const float *x;           /* rows of `features` floats */
  const ft_word *y;         /* rows of `outputs` targets */
  const uint32_t *rows;     /* sample i is row rows[i]; NULL: row i */
  uint32_t n;
  uint32_t made;            /* FT_TASK_SINE: samples made so far */
} ft_part;

typedef struct {            /* the samples of the visit under way, and the batch under way */
  const ft_fleet *fleet;
  ft_part parts[2];
  uint32_t device;
  uint32_t features, outputs, batch;
  uint32_t *index;          /* [batch] which samples of the part the next batch takes */
  const float *scale;       /* of an int8 input, as the model has it; else NULL */
  void *batch_x;            /* [batch, features] where the numbers of samples are put, and samples
                               that do not lie together */
  ft_word *batch_y;         /* [batch, outputs] */
  float *sine[2];           /* FT_TASK_SINE: x, then y, of each part */
} ft_samples;

typedef struct { const void *x; const void *y; } ft_batch;

/* Room for one part of the sine task, in samples: whole groups of 32. */
size_t ft_sine_room(uint32_t n);

/* Do the task's shapes and tables fit the Program, and each other? */
ft_status ft_task_check(const ft_fleet *fleet, const ft_program *program);

/* Points `samples` at this visit's two parts. FT_E_FLEET if its rows lie outside. */
ft_status ft_open_visit(ft_samples *samples, uint32_t visit);

/* Makes sure that the first `need` samples of a part can be taken. */
void ft_make_samples(ft_samples *samples, uint32_t part, uint32_t need);

/* The samples of a part that `index` names. */
ft_batch ft_take_batch(const ft_samples *samples, const ft_part *part);

#endif
