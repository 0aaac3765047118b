/* ft_fleet.h: whole visits of a range of simulated devices in one call (hosts only).
 *
 * Each visit: load the model, (evaluate on the query), run the phases, (evaluate again), check the
 * result, fold or store it. A caller makes one call per thread, each over its own range of visits
 * with its own memory and its own fold; int64 folds are then added, so the number of threads
 * changes no bit. The stochastic rounding of a visit draws from (run, round, device), and counts its
 * steps over all phases.
 */
#ifndef FT_FLEET_H
#define FT_FLEET_H

#include "../ft_runtime.h"

enum { FT_SUPPORT = 0, FT_QUERY = 1 };
enum { FT_TASK_ROWS = 0, FT_TASK_SINE = 1 };
enum { FT_SHUFFLED = 1, FT_RETURN_GRADIENT = 2 };
enum { FT_EVALUATE_BEFORE = 1, FT_EVALUATE_AFTER = 2 };

typedef struct {
  ft_hyper hyper;
  uint32_t part;       /* FT_SUPPORT or FT_QUERY: which samples */
  uint32_t steps;      /* each on the Program's batch; 0 = one pass, rounded up to whole batches */
  uint32_t flags;      /* FT_SHUFFLED: a new order each epoch (ft_rng.h: key of epoch j / n for
                          position j of the phase). FT_RETURN_GRADIENT: the last phase, with one
                          step, which runs with lr = 0 and momentum = 0 */
} ft_phase;

typedef struct {
  uint32_t kind;
  /* Samples are floats; those of a Program with an int8 input are quantised by the visit's range.
   * FT_TASK_ROWS: samples are rows of x (and of y, unless relabelled) named by index lists. Part p
   * of visit v owns positions [starts[2 v + p], starts[2 v + p + 1]) of rows (and labels). */
  const float *x;            /* [n_rows, features] */
  const float *y;            /* [n_rows, outputs] float targets, or NULL if labels are given */
  const int32_t *labels;     /* one a position, or NULL */
  const uint32_t *rows;      /* one a position */
  const uint32_t *starts;    /* [2 n_visits + 1] */
  uint32_t features, outputs, n_rows, n_positions;
  /* FT_TASK_SINE: y = A sin(x + phi). A and phi of a device: uniform, words 0 and 1 of
   * (run, 0, device, FT_PURPOSE_TASK). x of sample i of part p: word i of
   * (run, round, device, FT_PURPOSE_SUPPORT + p). */
  float amplitude[2], phase[2], domain[2];
  uint32_t support, query;   /* samples a part */
} ft_task;

typedef struct {             /* one row a visit */
  uint32_t status;           /* ft_status */
  uint32_t steps;            /* in all phases */
  double loss_sum;           /* of the steps */
  /* Over the folded coordinates, in float64; delta = trained - base, or the gradient. */
  double moved;              /* largest |delta| */
  double squared_norm;       /* sum of delta^2: eight lanes, then the tree */
  ft_score before, after;    /* on the query, if asked for */
} ft_outcome;

typedef struct {
  const void *image; size_t image_bytes;
  const float *base;               /* [vector_floats] the model sent out */
  const float *correction;         /* [vector_floats] or NULL */
  const ft_phase *phases; uint32_t n_phases;
  uint32_t evaluate;               /* FT_EVALUATE_BEFORE | FT_EVALUATE_AFTER the phases */
  ft_task task;
  uint64_t run; uint32_t round;    /* of the counter generator */
  const uint32_t *device;          /* [n_visits] */
  uint32_t n_visits;
  const uint8_t *local;            /* [vector_floats] 1 = stays on the device, or NULL */
  float *personal;                 /* [n_visits, vector_floats] or NULL: local coordinates are read
                                      from it at the start and written back at the end */
  const uint8_t *fold_mask;        /* [vector_floats] 1 = folded (trained and shared), or NULL = all */
  const double *weight;            /* [n_visits], for the fold */
  double scale;                    /* 2^shift of the fold */
  double bound;                    /* |delta| above is FT_E_BOUND */
  double norm_bound;               /* norm of the delta above is FT_E_BOUND; 0 = none */
  const uint8_t *mask;             /* which weights live, as for ft_load_mask: given if, and only if,
                                      the Program has a pool */
  float *vectors;                  /* [n_visits, vector_floats] or NULL; the row of a visit that
                                      failed its check holds nothing of use. A trained value of an
                                      int8 tensor is start + (value - held start), in float32,
                                      where a load holds of the start what a store gives */
  ft_outcome *outcomes;            /* [n_visits] */
} ft_fleet;

/* Bytes of 16-byte aligned memory that one ft_fleet_run needs; 0 if the image is refused. */
size_t ft_fleet_memory_bytes(const ft_fleet *fleet);

/* Visits [first, last). sum: int64[vector_floats], added to, or NULL. A visit that fails its check
 * is not folded, leaves its personal row alone, and its outcome says why; the others go on. A phase
 * over a part without samples is FT_E_EMPTY; a query without samples scores nothing. Returns FT_OK,
 * or why nothing ran: FT_E_FLEET if the tables do not fit the Program or each other, FT_E_MASK if the
 * mask does not fit the pool.
 * Folding: sum[i] += rint(weight * ((double)v[i] - (double)base[i]) * scale), each operation in
 * float64, rint to nearest even, the product known to be below 2^51 in magnitude.
 * FT_RETURN_GRADIENT: the delta is the gradient itself (base plays no part). */
ft_status ft_fleet_run(const ft_fleet *fleet, uint32_t first, uint32_t last, void *memory,
                       size_t memory_bytes, int64_t *sum);

/* rint(weight * ((double)v - (double)base) * scale) for a stored vector: the fold of one update. */
void ft_fold(const float *vector, const float *base, const uint8_t *mask, uint32_t n, double weight,
             double scale, int64_t *sum);

#endif
