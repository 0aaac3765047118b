#undef FT_SMALL /* a host always has lanes */
#include "ft_task.h"

#include "../ft_kernels.h"
#include "../ft_rng.h"

static ft_status check_rows_task(const ft_task *task, uint32_t n_visits, int is_labelled) {
  if (!task->x || !task->rows || !task->starts) return FT_E_FLEET;
  if (is_labelled ? !task->labels : !task->y) return FT_E_FLEET;
  for (uint32_t i = 0; i < 2 * n_visits; i++) {
    if (task->starts[i] > task->starts[i + 1]) return FT_E_FLEET;
  }
  return task->starts[2 * n_visits] <= task->n_positions ? FT_OK : FT_E_FLEET;
}

ft_status ft_task_check(const ft_fleet *fleet, const ft_program *program) {
  const ft_task *task = &fleet->task;
  const ft_tensor *x = program->tensors + program->header->input;
  const ft_tensor *y = program->tensors + program->header->label;
  if (task->features != ft_row_floats(x) || task->outputs != ft_row_floats(y)) return FT_E_FLEET;
  if (task->kind == FT_TASK_ROWS) return check_rows_task(task, fleet->n_visits, y->dtype == FT_I32);
  int is_sine = task->kind == FT_TASK_SINE && task->features == 1 && task->outputs == 1 &&
                y->dtype == FT_F32 && !task->labels && task->support <= FT_MAX_FLOATS &&
                task->query <= FT_MAX_FLOATS;
  return is_sine ? FT_OK : FT_E_FLEET;
}

size_t ft_sine_room(uint32_t n) { return ((size_t)n + 31) / 32 * 32; }

static ft_status open_rows(const ft_task *task, uint32_t begin, uint32_t end, ft_part *part) {
  for (uint32_t i = begin; i < end; i++) {
    if (task->rows[i] >= task->n_rows) return FT_E_FLEET;
  }
  part->x = task->x;
  part->y = task->labels ? (const ft_word *)task->labels + begin : (const ft_word *)task->y;
  part->rows = task->rows + begin;
  part->n = end - begin;
  return FT_OK;
}

static void open_sine(ft_samples *samples, uint32_t part, uint32_t n) {
  const float *y = samples->sine[part] + ft_sine_room(n);
  samples->parts[part] = (ft_part){samples->sine[part], (const ft_word *)y, NULL, n, 0};
}

ft_status ft_open_visit(ft_samples *samples, uint32_t visit) {
  const ft_task *task = &samples->fleet->task;
  samples->device = samples->fleet->device[visit];
  if (task->kind == FT_TASK_SINE) {
    open_sine(samples, FT_SUPPORT, task->support);
    open_sine(samples, FT_QUERY, task->query);
    return FT_OK;
  }
  const uint32_t *starts = task->starts + 2 * (size_t)visit;
  ft_status status = open_rows(task, starts[0], starts[1], samples->parts);
  return status ? status : open_rows(task, starts[1], starts[2], samples->parts + 1);
}

void ft_make_samples(ft_samples *samples, uint32_t part, uint32_t need) {
  const ft_fleet *fleet = samples->fleet;
  const ft_task *task = &fleet->task;
  ft_part *p = samples->parts + part;
  if (task->kind != FT_TASK_SINE || p->made >= need) return;
  ft_stream device = {fleet->run, 0, samples->device, FT_PURPOSE_TASK};
  ft_stream stream = {fleet->run, fleet->round, samples->device, FT_PURPOSE_SUPPORT + part};
  uint32_t drawn[4];
  ft_words(&device, 0, drawn);
  float amplitude = ft_uniform_in(drawn[0], task->amplitude[0], task->amplitude[1]);
  float phase = ft_uniform_in(drawn[1], task->phase[0], task->phase[1]);
  float *x = samples->sine[part], *y = x + ft_sine_room(p->n);
  for (; p->made < need; p->made += 32) {
    v8u words[4];
    ft_words8(&stream, p->made / 4, words);
    for (uint32_t k = 0; k < 4; k++) {
      v8 drawn_x = ft_uniform_in8(words[k], task->domain[0], task->domain[1]);
      ft_store8(x + p->made + 8 * k, drawn_x);
      ft_store8(y + p->made + 8 * k, amplitude * ft_sin8(drawn_x + phase));
    }
  }
}

static uint32_t row_of(const ft_part *part, uint32_t sample) {
  return part->rows ? part->rows[sample] : sample;
}

/* Do the samples of the batch lie one behind the other, in x and in y? */
static int is_contiguous(const ft_samples *samples, const ft_part *part) {
  const uint32_t *index = samples->index;
  uint32_t apart = 0, row = row_of(part, index[0]);
  for (uint32_t i = 1; i < samples->batch; i++) {
    apart |= (index[i] - index[0]) ^ i;
    apart |= (row_of(part, index[i]) - row) ^ i;
  }
  return !apart;
}

static void gather(ft_word *to, const ft_word *from, size_t row, uint32_t width) {
  for (uint32_t i = 0; i < width; i++) to[i] = from[row * width + i];
}

static void quantise(const ft_samples *samples, uint32_t i, const float *row) {
  int8_t *to = (int8_t *)samples->batch_x + (size_t)i * samples->features;
  ft_quantise(row, samples->features, samples->scale[0], samples->scale[1], to);
}

ft_batch ft_take_batch(const ft_samples *samples, const ft_part *part) {
  uint32_t features = samples->features, outputs = samples->outputs;
  int y_of_sample = samples->fleet->task.labels != NULL;
  if (!samples->scale && is_contiguous(samples, part)) {
    uint32_t first = samples->index[0];
    size_t row = row_of(part, first), target = y_of_sample ? first : row;
    return (ft_batch){part->x + row * features, part->y + target * outputs};
  }
  for (uint32_t i = 0; i < samples->batch; i++) {
    uint32_t sample = samples->index[i], row = row_of(part, sample);
    if (samples->scale)
      quantise(samples, i, part->x + (size_t)row * features);
    else
      gather((ft_word *)samples->batch_x + (size_t)i * features, (const ft_word *)part->x, row,
             features);
    gather(samples->batch_y + (size_t)i * outputs, part->y, y_of_sample ? sample : row, outputs);
  }
  return (ft_batch){samples->batch_x, samples->batch_y};
}
