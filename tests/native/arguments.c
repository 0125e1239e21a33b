/* Random arguments, right and wrong, to every function that checks them: each call either works or
 * fails with a status and a line that says why, and never touches what it should not (the sanitizers
 * watch). Deterministic. */
#include <string.h>

#include "check.h"

enum {
  LAYERS = 2, KV_HEADS = 2, SIZE = 24, BLOCKS = 6, SEQUENCES = 3, TOKENS = BLOCKS * 16,
  WIDTH = KV_HEADS * SIZE, GROUP = 3, MAX_STRIDE = WIDTH * GROUP + 5, SLOTS = 3, HIDDEN = 10,
  STEPS = 300000, PLAYS = 5
};

typedef struct {
  uint64_t state;
  os_arena *arenas[2];
  os_exchange *exchange;
  uint8_t rows[3][TOKENS * MAX_STRIDE * 4];
} player;

/* Strides as for `near`, but no longer than the buffers are: more would be the caller's word. */
static int64_t near(player *p, int64_t low, int64_t high);

static int64_t near_stride(player *p, int64_t low) {
  const int64_t stride = near(p, low, MAX_STRIDE - 1);
  return stride <= MAX_STRIDE ? stride : MAX_STRIDE;
}

/* A number near a border of [low, high], or far outside. */
static int64_t near(player *p, int64_t low, int64_t high) {
  switch (random_below(&p->state, 12)) {
    case 0: return low - 1;
    case 1: return high + 1;
    case 2: return random_below(&p->state, 2) ? INT32_MAX : INT32_MIN;
    case 3: return low;
    case 4: return high;
    default: return low + random_below(&p->state, (int32_t)(high - low + 1));
  }
}

static void *buffer(player *p, int i) { return random_below(&p->state, 16) ? p->rows[i] : NULL; }

static os_arena *arena(player *p) {
  return random_below(&p->state, 32) ? p->arenas[random_below(&p->state, 2)] : NULL;
}

static void expect_reason(int64_t answer) {
  if (answer >= 0) return;
  CHECK(answer >= OS_ESTATE);
  CHECK(os_last_status() == answer);
  CHECK(strlen(os_last_error()) > 10);
}

static int64_t play_create(player *p) {
  const os_arena_config config = {(int32_t)near(p, 1, 4),  (int32_t)near(p, 1, 4),
                                  (int32_t)near(p, 16, 256), (int32_t)near(p, 1, 8),
                                  (int32_t)near(p, 1, 4),  (int32_t)near(p, 1, 8),
                                  (int32_t)near(p, 0, 3)};
  const int64_t bytes = os_arena_bytes(&config);
  if (bytes > 1 << 24) return bytes;
  os_arena *made = os_arena_create(&config);
  CHECK(!made == (bytes < 0));
  os_arena_destroy(made);
  return bytes;
}

static int64_t play_sequence(player *p) {
  os_arena *a = arena(p);
  const int32_t seq = (int32_t)near(p, 0, SEQUENCES - 1);
  int32_t blocks[BLOCKS + 1];
  for (int i = 0; i <= BLOCKS; i++) blocks[i] = (int32_t)near(p, 0, BLOCKS - 1);
  switch (random_below(&p->state, 6)) {
    case 0: return os_seq_open(a);
    case 1: return seq > 0 ? os_seq_release(a, seq) : 0; /* 0 stays open */
    case 2: {
      const int64_t count = near(p, 0, BLOCKS);
      return os_seq_set_blocks(a, seq, (int32_t)near(p, 0, BLOCKS), (int32_t)count,
                               count <= BLOCKS + 1 ? blocks : NULL);
    }
    case 3: return os_seq_truncate(a, seq, near(p, 0, TOKENS));
    case 4: return os_seq_length(a, seq);
    default: return os_arena_layout(a, random_below(&p->state, 8) ? &(os_layout){0} : NULL);
  }
}

static int64_t play_tokens(player *p) {
  os_arena *a = arena(p);
  const int32_t seq = (int32_t)near(p, 0, SEQUENCES - 1), layer = (int32_t)near(p, 0, LAYERS - 1);
  const int64_t start = near(p, 0, TOKENS), stride = near_stride(p, WIDTH);
  const int32_t count = (int32_t)near(p, 0, TOKENS), dtype = (int32_t)near(p, OS_F32, OS_I8);
  void *k = buffer(p, 0), *v = buffer(p, 1);
  switch (random_below(&p->state, 5)) {
    case 0: return os_arena_append(a, seq, layer, start, count, k, v, stride, dtype);
    case 1: return os_arena_import(a, seq, layer, start, count, k, v);
    case 2: return os_arena_export(a, seq, layer, start, count, k, v);
    case 3: return os_arena_read(a, seq, layer, start, count, k, v, stride, dtype);
    default: return os_arena_copy(arena(p), (int32_t)near(p, 0, 2), a, seq, start, count);
  }
}

static int64_t play_attend(player *p) {
  os_segment segments[3];
  for (int i = 0; i < 3; i++)
    segments[i] = (os_segment){(int32_t)near(p, 0, SEQUENCES - 1), (int32_t)near(p, 1, TOKENS / 3),
                               near(p, 0, TOKENS)};
  os_attend_args args = {.arena = arena(p),
                         .layer = (int32_t)near(p, 0, LAYERS - 1),
                         .q_heads = (int32_t)near(p, KV_HEADS, KV_HEADS * GROUP),
                         .dtype = (int32_t)near(p, OS_F32, OS_F16),
                         .scale = (float)near(p, 1, 3),
                         .q = buffer(p, 0),
                         .k = random_below(&p->state, 2) ? NULL : p->rows[1],
                         .v = random_below(&p->state, 2) ? NULL : p->rows[1],
                         .q_stride = MAX_STRIDE,
                         .k_stride = near_stride(p, WIDTH),
                         .v_stride = WIDTH,
                         .o = buffer(p, 2),
                         .o_stride = MAX_STRIDE - random_below(&p->state, 8),
                         .segments_count = random_below(&p->state, 4),
                         .segments = random_below(&p->state, 16) ? segments : NULL};
  return os_attend(random_below(&p->state, 32) ? &args : NULL);
}

static int64_t play_exchange(player *p) {
  os_exchange *x = p->exchange;
  int32_t slots[SLOTS + 1], rows = 0;
  int64_t positions[TOKENS];
  for (int i = 0; i <= SLOTS; i++) slots[i] = (int32_t)near(p, 0, SLOTS - 1);
  const int32_t layer = (int32_t)near(p, 0, LAYERS - 1), count = random_below(&p->state, SLOTS + 2);
  switch (random_below(&p->state, 7)) {
    case 0: return os_slot_open(x, (int32_t)near(p, 0, SEQUENCES - 1));
    case 1: return os_slot_begin(x, slots[0], near(p, 0, TOKENS), (int32_t)near(p, 1, 8));
    case 2: return os_slot_close(x, slots[0]);
    case 3: return os_exchange_reap(x, SLOTS, slots);
    case 4:
      return os_exchange_submit(x, layer, 0, count, slots, buffer(p, 0), near_stride(p, WIDTH * GROUP),
                                p->rows[1], WIDTH, p->rows[1], WIDTH, buffer(p, 2), HIDDEN);
    case 5:
      return os_exchange_pick(x, layer, 0, (int32_t)near(p, 0, TOKENS), 0, slots, p->rows[0],
                              MAX_STRIDE, p->rows[2], HIDDEN, positions, &rows);
    default: return os_slot_lse(x, slots[0], (float *)(void *)p->rows[2]);
  }
}

static void open_all(player *p, os_workers *workers) {
  const int32_t dtypes[2] = {OS_BF16, OS_I8};
  for (int i = 0; i < 2; i++) {
    p->arenas[i] = os_arena_create(&(os_arena_config){LAYERS, KV_HEADS, SIZE, BLOCKS, SEQUENCES,
                                                      BLOCKS, dtypes[i]});
    CHECK(p->arenas[i] && os_seq_open(p->arenas[i]) == 0);
    CHECK(os_seq_set_blocks(p->arenas[i], 0, 0, BLOCKS, (int32_t[]){5, 4, 3, 2, 1, 0}) == OS_OK);
  }
  p->exchange = os_exchange_create(&(os_exchange_config){.arena = p->arenas[1],
                                                         .workers = workers,
                                                         .slots = SLOTS,
                                                         .q_heads = KV_HEADS * GROUP,
                                                         .hidden_size = HIDDEN,
                                                         .dtype = OS_BF16,
                                                         .host_residual = 1,
                                                         .scale = 0.2f});
  CHECK(p->exchange);
}

int main(void) {
  static player p = {.state = 20261124};
  os_workers *workers = os_workers_create(&(os_workers_config){.count = 1, .spin_ns = 1000});
  CHECK(workers);
  open_all(&p, workers);
  int64_t (*const plays[PLAYS])(player *) = {play_create, play_sequence, play_tokens, play_attend,
                                        play_exchange};
  int32_t worked[PLAYS] = {0};
  for (int step = 0; step < STEPS; step++) {
    const int32_t play = random_below(&p.state, PLAYS);
    const int64_t answer = plays[play](&p);
    expect_reason(answer);
    worked[play] += answer >= 0;
  }
  for (int i = 0; i < PLAYS; i++) CHECK(worked[i] > STEPS / 500 && worked[i] < STEPS / PLAYS);
  os_exchange_destroy(p.exchange);
  os_workers_destroy(workers);
  for (int i = 0; i < 2; i++) os_arena_destroy(p.arenas[i]);
  return 0;
}
