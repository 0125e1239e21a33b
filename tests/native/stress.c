/* Slots opened, submitted, picked, cancelled and used again in random order, while other device
 * rows attend on the same workers and the gate closes now and then. Most sequences begin with the same
 * blocks. */
#include <stdbool.h>
#include <string.h>

#include "check.h"

enum { LAYERS = 2, KV_HEADS = 2, GROUP = 2, SIZE = 16, HIDDEN = 8, SLOTS = 6, SEQUENCES = 7 };
enum { SHARED_BLOCKS = 34, SHARING = 5 /* sequences */, BLOCKS_EACH = 46 };
enum { ROWS = 24, WIDTH = KV_HEADS * SIZE, Q_WIDTH = WIDTH * GROUP };
enum { STEPS = 6000, FORBIDDEN = -100 };

typedef enum { FREE, IDLE, OUT, CLOSING } life;

typedef struct {
  os_workers *workers;
  os_arena *arena;
  os_exchange *exchange;
  int32_t sequences[SEQUENCES];
  int32_t slots[SLOTS]; /* by sequence i: its slot */
  life lives[SLOTS];
  int64_t lengths[SLOTS];
  float q[ROWS * Q_WIDTH], k[ROWS * WIDTH], v[ROWS * WIDTH], o[ROWS * Q_WIDTH];
  float residual[ROWS * HIDDEN];
  bool paused;
  uint64_t random;
} world;

static void make(world *w) {
  memset(w, 0, sizeof *w);
  w->random = 7;
  w->workers = os_workers_create(&(os_workers_config){.count = 3, .spin_ns = 2000});
  CHECK(w->workers);
  w->arena = os_arena_create(&(os_arena_config){.layers = LAYERS,
                                                .kv_heads = KV_HEADS,
                                                .head_size = SIZE,
                                                .blocks = SEQUENCES * BLOCKS_EACH,
                                                .max_sequences = SEQUENCES,
                                                .max_blocks_per_sequence = BLOCKS_EACH,
                                                .dtype = OS_F32});
  CHECK(w->arena);
  for (int32_t i = 0; i < SEQUENCES; i++) {
    int32_t blocks[BLOCKS_EACH];
    for (int32_t b = 0; b < BLOCKS_EACH; b++)
      blocks[b] = b * SEQUENCES + (b < SHARED_BLOCKS && i < SHARING ? 0 : i);
    w->sequences[i] = os_seq_open(w->arena);
    CHECK(os_seq_set_blocks(w->arena, w->sequences[i], 0, BLOCKS_EACH, blocks) == OS_OK);
    if (i < SLOTS) w->lengths[i] = SHARED_BLOCKS * 16;
    CHECK(os_seq_truncate(w->arena, w->sequences[i], SHARED_BLOCKS * 16) == OS_OK);
  }
  w->exchange = os_exchange_create(&(os_exchange_config){.arena = w->arena,
                                                         .workers = w->workers,
                                                         .slots = SLOTS,
                                                         .q_heads = KV_HEADS * GROUP,
                                                         .hidden_size = HIDDEN,
                                                         .dtype = OS_F32,
                                                         .host_residual = 1,
                                                         .split_tokens = 32,
                                                         .scale = 0.25f});
  CHECK(w->exchange);
  for (int i = 0; i < ROWS * Q_WIDTH; i++) w->q[i] = (float)random_below(&w->random, 100) / 50 - 1;
  for (int i = 0; i < ROWS * WIDTH; i++) w->k[i] = w->v[i] = w->q[i];
}

static void open_one(world *w, int32_t i) {
  w->slots[i] = os_slot_open(w->exchange, w->sequences[i]);
  CHECK(w->slots[i] >= 0 || w->slots[i] == OS_EFULL);
  if (w->slots[i] >= 0) w->lives[i] = IDLE;
}

static void submit_one(world *w, int32_t i) {
  const int32_t most = random_below(&w->random, 4) ? 2 : 8; /* many queries are not grouped */
  const int32_t q_len = 1 + random_below(&w->random, most);
  if (w->lengths[i] + q_len > BLOCKS_EACH * 16) w->lengths[i] = SHARED_BLOCKS * 16;
  CHECK(os_slot_begin(w->exchange, w->slots[i], w->lengths[i], q_len) == OS_OK);
  const int32_t layer = random_below(&w->random, LAYERS);
  CHECK(os_exchange_submit(w->exchange, layer, 0, 1, &w->slots[i], w->q, Q_WIDTH, w->k, WIDTH, w->v,
                           WIDTH, w->residual, HIDDEN) == OS_OK);
  w->lengths[i] += q_len;
  w->lives[i] = OUT;
}

static int32_t owner_of(const world *w, int32_t slot) {
  for (int32_t i = 0; i < SLOTS; i++)
    if (w->slots[i] == slot && w->lives[i] != FREE) return i;
  return FORBIDDEN;
}

static void pick_some(world *w) {
  int32_t slots[SLOTS], rows;
  int64_t positions[ROWS];
  const int32_t layer = random_below(&w->random, LAYERS);
  const int64_t wait_ns = random_below(&w->random, 2) * 100000;
  const int count = os_exchange_pick(w->exchange, layer, 0, ROWS, wait_ns, slots, w->o, Q_WIDTH,
                                     w->residual, HIDDEN, positions, &rows);
  CHECK(count >= 0);
  for (int i = 0; i < count; i++) {
    const int32_t owner = owner_of(w, slots[i]);
    CHECK(owner >= 0 && w->lives[owner] == OUT);
    w->lives[owner] = IDLE;
  }
}

static void close_one(world *w, int32_t i) {
  const int later = os_slot_close(w->exchange, w->slots[i]);
  CHECK(later == 0 || later == 1);
  CHECK(later == 0 || w->lives[i] == OUT);
  w->lives[i] = later ? CLOSING : FREE;
}

static void reap(world *w) {
  int32_t slots[SLOTS];
  const int count = os_exchange_reap(w->exchange, SLOTS, slots);
  CHECK(count >= 0);
  for (int i = 0; i < count; i++) {
    const int32_t owner = owner_of(w, slots[i]);
    CHECK(owner >= 0 && w->lives[owner] == CLOSING);
    w->lives[owner] = FREE;
  }
}

/* Device rows on the same workers: the last sequence belongs to no slot. */
static void attend(world *w) {
  const os_segment segment = {w->sequences[SEQUENCES - 1], 1 + random_below(&w->random, ROWS), 0};
  const os_attend_args args = {.arena = w->arena,
                               .workers = w->workers,
                               .layer = random_below(&w->random, LAYERS),
                               .q_heads = KV_HEADS * GROUP,
                               .dtype = OS_F32,
                               .scale = 0.25f,
                               .q = w->q,
                               .k = w->k,
                               .v = w->v,
                               .q_stride = Q_WIDTH,
                               .k_stride = WIDTH,
                               .v_stride = WIDTH,
                               .o = w->o,
                               .o_stride = Q_WIDTH,
                               .segments_count = 1,
                               .segments = &segment};
  CHECK(os_attend(&args) == OS_OK);
}

static void toggle(world *w) {
  CHECK((w->paused ? os_workers_resume(w->workers) : os_workers_pause(w->workers)) == OS_OK);
  w->paused = !w->paused;
}

static void step(world *w) {
  const int32_t i = random_below(&w->random, SLOTS), what = random_below(&w->random, 100);
  if (what < 4)
    toggle(w);
  else if (what < 10)
    attend(w);
  else if (what < 35)
    pick_some(w);
  else if (what < 45)
    reap(w);
  else if (w->lives[i] == FREE)
    open_one(w, i);
  else if (w->lives[i] == IDLE && what < 90)
    submit_one(w, i);
  else if (w->lives[i] == IDLE || (w->lives[i] == OUT && what >= 90))
    close_one(w, i);
}

static void finish(world *w) {
  if (w->paused) toggle(w);
  os_exchange_stats stats;
  for (int32_t i = 0; i < SLOTS; i++)
    if (w->lives[i] == IDLE || w->lives[i] == OUT) close_one(w, i);
  do {
    reap(w);
    CHECK(os_exchange_get_stats(w->exchange, &stats) == OS_OK);
  } while (stats.open > 0);
  CHECK(stats.in_flight == 0 && stats.ready == 0);
  CHECK(stats.submitted == stats.completed + stats.stale);
  CHECK(stats.picked <= stats.completed && stats.picked > 0 && stats.stale > 0);
  for (int32_t i = 0; i < SEQUENCES; i++) /* the slots have let go of them */
    CHECK(os_seq_release(w->arena, w->sequences[i]) == 0);
}

int main(void) {
  world *w = malloc(sizeof *w);
  CHECK(w);
  make(w);
  for (int i = 0; i < STEPS; i++) step(w);
  finish(w);
  os_exchange_destroy(w->exchange);
  os_workers_destroy(w->workers);
  os_arena_destroy(w->arena);
  free(w);
  return 0;
}
