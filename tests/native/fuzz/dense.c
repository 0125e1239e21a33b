/* Dense modules. */
#include <stdlib.h>

#include "player.h"

enum { MAX_HIDDEN = 20, MAX_HEADS = 3, MAX_HEAD_SIZE = 8, MAX_ROWS = 130, ALIGNMENT = 64 };

static os_weight some_weight(player *p) {
  return (os_weight){buffer(p, 0), below(p, 2) ? p->rows[1] : NULL};
}

int64_t play_linear(player *p) {
  const os_weight weight = some_weight(p);
  const int32_t outputs = near_int(p, 1, 40), inputs = near_int(p, 2, 40);
  const bool held = (int64_t)outputs * inputs <= ROWS * MAX_STRIDE;
  if (!held && outputs > 0 && inputs > 0 && outputs <= 1 << 24 && inputs <= 1 << 24) return OS_OK;
  os_linear *made = os_linear_create(below(p, 32) ? &weight : NULL, outputs, inputs);
  const int64_t answer = answer_of(made);
  const os_linear *given = below(p, 16) ? made : NULL;
  os_workers *workers = some_workers(p);
  const int32_t rows = near_int(p, 1, MAX_ROWS);
  const void *x = buffer(p, 0);
  const int64_t x_stride = near_stride(p, inputs), y_stride = near_stride(p, outputs);
  void *y = buffer(p, 2);
  const bool too_many = rows > ROWS && rows <= 1 << 20;
  const int64_t ran = too_many ? OS_OK : os_linear_run(given, workers, rows, x, x_stride, y, y_stride);
  os_linear_destroy(made);
  return made ? ran : answer;
}

static os_dense_config some_sizes(player *p) {
  const float eps[] = {1e-5f, 0, -1, (float)near(p, 0, 1), 0.0f / (float)below(p, 2)};
  return (os_dense_config){.hidden = near_int(p, 2, MAX_HIDDEN),
                           .intermediate = near_int(p, 2, MAX_HIDDEN),
                           .q_heads = near_int(p, 1, MAX_HEADS),
                           .kv_heads = near_int(p, 1, MAX_HEADS),
                           .head_size = near_int(p, 2, MAX_HEAD_SIZE),
                           .rms_eps = eps[below(p, 16) ? 0 : below(p, 5)]};
}

static void *make_scratch(int64_t bytes) {
  const size_t whole = (size_t)(bytes > 0 ? bytes + ALIGNMENT : ALIGNMENT) / ALIGNMENT * ALIGNMENT;
  void *scratch = aligned_alloc(ALIGNMENT, whole);
  CHECK(scratch);
  return scratch;
}

/* Sizes that are right and whose weights the buffers hold; those that are wrong are held as well. */
static bool are_held(const os_dense_config *c) {
  const int64_t heads = (int64_t)c->q_heads + 2 * (int64_t)c->kv_heads;
  const __int128 outputs = (__int128)heads * c->head_size, most = ROWS * MAX_STRIDE;
  if (outputs > 1 << 24) return true; /* to be refused */
  return outputs * c->hidden <= most && outputs <= MAX_STRIDE &&
         2 * (__int128)c->intermediate * c->hidden <= most && c->hidden <= MAX_STRIDE;
}

static int64_t run(player *p, const os_dense *dense, const os_dense_config *c) {
  const int32_t rows = near_int(p, 1, MAX_ROWS);
  if (rows > ROWS && rows <= 1 << 20) return OS_OK;
  const int64_t q_size = (int64_t)c->q_heads * c->head_size;
  const int64_t x_stride = near_stride(p, c->hidden);
  os_workers *workers = some_workers(p);
  void *x = buffer(p, 2), *other = buffer(p, 1), *out = buffer(p, 2);
  if (below(p, 2))
    return os_dense_after(dense, workers, rows, other, near_stride(p, q_size), x, x_stride);
  const int64_t rope_stride = near_stride(p, 2 * c->head_size);
  const int64_t qkv_stride = near_stride(p, q_size + 2 * (int64_t)c->kv_heads * c->head_size);
  return os_dense_before(dense, workers, rows, x, x_stride, other, rope_stride, out, qkv_stride);
}

int64_t play_dense(player *p) {
  os_dense_config config = some_sizes(p);
  config.qkv = some_weight(p);
  config.o = some_weight(p);
  config.gate_up = some_weight(p);
  config.down = some_weight(p);
  config.input_norm = buffer(p, 1);
  config.mlp_norm = buffer(p, 1);
  config.qk_norm = below(p, 2) ? p->rows[1] : NULL;
  const os_dense_config *given = below(p, 32) ? &config : NULL;
  const int64_t bytes = os_dense_scratch_bytes(given);
  if (bytes > 1 << 24 || (given && !are_held(given))) return bytes;
  void *scratch = make_scratch(bytes);
  os_dense *made = os_dense_create(given, below(p, 16) ? scratch : NULL);
  const int64_t answer = answer_of(made);
  const int64_t ran = made ? run(p, below(p, 16) ? made : NULL, &config) : answer;
  os_dense_destroy(made);
  free(scratch);
  return ran;
}
