#include "exchange.h"

#include <stdlib.h>
#include <string.h>

#include "clock.h"
#include "convert.h"
#include "error.h"
#include "memory.h"

enum { MAX_SPLITS = 16, MAX_RANGES = 32, MAX_SHARES = 256 };

/* ---- sizes --------------------------------------------------------------------------------- */

/* Bytes of one token's parts in a slot, each rounded to cache lines. They lie side by side, since a hop
 * mostly has one token: what is written and read at a time then shares pages. */
typedef struct {
  size_t q, kv, lse, residual, token, total;
} slot_bytes;

static size_t whole_lines(size_t bytes) {
  return (bytes + OS_CACHE_LINE - 1) / OS_CACHE_LINE * OS_CACHE_LINE;
}

static slot_bytes measure_slot(const os_exchange_config *c) {
  const size_t element = os_dtype_bytes(c->dtype), head_size = (size_t)c->arena->config.head_size;
  slot_bytes b = {
      .q = whole_lines((size_t)c->q_heads * head_size * element),
      .kv = whole_lines((size_t)c->arena->config.kv_heads * head_size * element),
      .lse = whole_lines((size_t)c->q_heads * sizeof(float)),
      .residual = c->host_residual ? whole_lines((size_t)c->hidden_size * element) : 0};
  b.token = 2 * b.q + 2 * b.kv + b.lse + b.residual;
  b.total = OS_MAX_Q_LEN * b.token;
  return b;
}

static int32_t at_most(int32_t value, int32_t limit) { return value < limit ? value : limit; }

/* As many split slots at once as there can be while items are fewer than twice the workers. */
static os_areas measure_splits(const os_exchange_config *c) {
  const int32_t kv_heads = c->arena->config.kv_heads;
  const int32_t wanted = (2 * os_workers_count(c->workers) + kv_heads - 1) / kv_heads;
  return os_areas_shape(&c->arena->config, wanted < 2 ? 0 : at_most(wanted, MAX_SPLITS),
                        at_most(wanted, MAX_RANGES), OS_MAX_Q_LEN * (c->q_heads / kv_heads));
}

/* So many hops at once can have their prefix attended by others; none where two rows are too many. */
static os_areas measure_shares(const os_exchange_config *c) {
  const int32_t group = c->q_heads / c->arena->config.kv_heads;
  const int32_t most = c->arena->kernel->shared_queries;
  const int32_t count = 2 * group > most ? 0 : at_most(c->slots, MAX_SHARES);
  return os_areas_shape(&c->arena->config, count, 2, most - group);
}

static int check_config(const os_exchange_config *c) {
  if (!c) return os_fail(OS_EINVAL, "config is NULL; it must point at an os_exchange_config");
  if (!c->arena) return os_fail(OS_EINVAL, "arena is NULL; it must be an os_arena");
  if (os_workers_count(c->workers) < 1)
    return os_fail(OS_EINVAL, "workers has no thread; host attention needs at least 1");
  if (os_check_range("slots", c->slots, 1, OS_RING_ENTRIES)) return OS_EINVAL;
  if (os_check_queries(c->arena, c->q_heads, c->dtype, c->scale)) return OS_EINVAL;
  if (os_check_range("hidden_size", c->hidden_size, 1, 1 << 20)) return OS_EINVAL;
  return os_check_range("split_tokens", c->split_tokens, 0, INT32_MAX);
}

int64_t os_exchange_bytes(const os_exchange_config *config) {
  if (check_config(config)) return OS_EINVAL;
  const size_t per_layer = sizeof(line) + OS_KIN_KEYS * sizeof(int32_t);
  const size_t per_slot = measure_slot(config).total + sizeof(slot);
  return (int64_t)((size_t)config->slots * per_slot +
                   (size_t)config->arena->config.layers * per_layer +
                   measure_splits(config).bytes + measure_shares(config).bytes);
}

/* ---- create and destroy -------------------------------------------------------------------- */

static void place_slot(os_exchange *x, int32_t index, const slot_bytes *bytes) {
  slot *s = &x->slots[index];
  uint8_t *at = x->memory + (size_t)index * bytes->total;
  s->task.run = os_run_slot;
  s->exchange = x;
  s->attention = (os_attention){.arena = x->arena,
                                .group = x->group,
                                .dtype = x->config.dtype,
                                .threads = os_workers_count(x->config.workers),
                                .scale = x->config.scale};
  s->area = s->previous = s->next = OS_NONE;
  s->residual = x->config.host_residual ? at : NULL;
  s->q = at + bytes->residual;
  s->k = s->q + bytes->q;
  s->v = s->k + bytes->kv;
  s->o = s->v + bytes->kv; /* from here on the workers write */
  s->lse = (float *)(s->o + bytes->q);
  const int64_t stride = (int64_t)(bytes->token / os_dtype_bytes(x->config.dtype));
  s->row = (os_row){.append = true,
                    .q = s->q,
                    .k = s->k,
                    .v = s->v,
                    .q_stride = stride,
                    .k_stride = stride,
                    .v_stride = stride,
                    .result = {s->o, stride, s->lse, (int64_t)(bytes->token / sizeof *s->lse)}};
  x->free_slots[x->config.slots - 1 - index] = index; /* slot 0 is opened first */
}

static int allocate(os_exchange *x) {
  const size_t slots = (size_t)x->config.slots, layers = (size_t)x->arena->config.layers;
  x->slots = aligned_alloc(OS_CACHE_LINE, slots * sizeof *x->slots);
  x->lines = calloc(layers, sizeof *x->lines);
  x->free_slots = calloc(slots, sizeof *x->free_slots);
  x->freed = calloc(slots, sizeof *x->freed);
  x->plans = calloc(MAX_SHARES * (size_t)x->kv_heads, sizeof *x->plans);
  x->youngest = calloc(layers * OS_KIN_KEYS, sizeof *x->youngest);
  if (!x->slots || !x->lines || !x->free_slots || !x->freed || !x->plans || !x->youngest)
    return os_fail(OS_ENOMEM, "could not allocate %zu slots", slots);
  memset(x->slots, 0, slots * sizeof *x->slots);
  x->memory = os_map(x->memory_bytes);
  if (!x->memory) return OS_ENOMEM;
  os_touch(x->memory, x->memory_bytes); /* here, by the device's thread: it and the device write it */
  const os_nodes *nodes = os_workers_nodes(x->config.workers);
  if (os_areas_create(&x->splits, nodes) != OS_OK) return OS_ENOMEM;
  return os_areas_create(&x->shares, nodes);
}

static void arrange(os_exchange *x, const slot_bytes *bytes) {
  for (int32_t i = 0; i < x->config.slots; i++) place_slot(x, i, bytes);
  x->free_count = x->config.slots;
  for (int32_t i = 0; i < x->arena->config.layers; i++)
    x->lines[i] = (line){.first = OS_NONE, .last = OS_NONE};
  for (int32_t i = 0; i < x->arena->config.layers * OS_KIN_KEYS; i++) x->youngest[i] = OS_NONE;
}

static void release_memory(os_exchange *x) {
  os_unmap(x->memory, x->memory_bytes);
  os_areas_destroy(&x->splits);
  os_areas_destroy(&x->shares);
  free(x->slots);
  free(x->lines);
  free(x->free_slots);
  free(x->freed);
  free(x->plans);
  free(x->youngest);
  free(x);
}

os_exchange *os_exchange_create(const os_exchange_config *config) {
  if (check_config(config)) return NULL;
  os_exchange *x = aligned_alloc(128, (sizeof *x + 127) / 128 * 128);
  if (!x) {
    os_fail(OS_ENOMEM, "could not allocate an exchange");
    return NULL;
  }
  const slot_bytes bytes = measure_slot(config);
  memset(x, 0, sizeof *x);
  x->config = *config;
  x->arena = config->arena;
  x->kv_heads = config->arena->config.kv_heads;
  x->head_size = config->arena->config.head_size;
  x->group = config->q_heads / x->kv_heads;
  x->token_bytes = bytes.token;
  x->memory_bytes = (size_t)config->slots * bytes.total;
  x->splits = measure_splits(config);
  x->shares = measure_shares(config);
  if (allocate(x) == OS_OK) {
    arrange(x, &bytes);
    return x;
  }
  release_memory(x);
  return NULL;
}

/* Works on the ring itself, so that hops behind a closed gate come to an end too. After a minute
 * without an end the memory is left as it is: a worker may still use it. */
void os_exchange_destroy(os_exchange *x) {
  if (!x) return;
  const int64_t until = os_now_ns() + 60000000000;
  while (x->stats.in_flight > 0 || atomic_load_explicit(&x->leaving, memory_order_acquire) > 0) {
    if (!os_workers_run_one(x->config.workers, &x->arena->hand)) os_sleep_ns(20000);
    os_drain(x);
    if (os_now_ns() > until) return;
  }
  for (int32_t i = 0; i < x->config.slots; i++)
    if (x->slots[i].state != SLOT_FREE && x->slots[i].state != SLOT_FREED)
      os_seq_release(x->arena, x->slots[i].seq);
  release_memory(x);
}

/* ---- figures ------------------------------------------------------------------------------- */

int os_exchange_waiting(const os_exchange *x, int32_t layer) {
  if (!x) return os_fail(OS_EINVAL, "exchange is NULL; it must be an os_exchange");
  if (os_check_layer(x->arena, layer)) return OS_EINVAL;
  return x->lines[layer].waiting;
}

int os_exchange_get_stats(os_exchange *x, os_exchange_stats *out) {
  if (!x) return os_fail(OS_EINVAL, "exchange is NULL; it must be an os_exchange");
  if (!out) return os_fail(OS_EINVAL, "out is NULL; it must point at an os_exchange_stats");
  os_drain(x);
  *out = x->stats;
  return OS_OK;
}
