/* Plays one input: fresh arenas, an exchange and a worker, then calls until the input is used up. */
#include <string.h>

#include "player.h"

int64_t fuzz_answers[PLAYS][2];

static void open_all(player *p) {
  const int32_t dtypes[2] = {OS_BF16, OS_I8};
  for (int i = 0; i < 3; i++) {
    p->rows[i] = malloc(ROWS * MAX_STRIDE * sizeof(float));
    CHECK(p->rows[i]);
    memset(p->rows[i], 60, ROWS * MAX_STRIDE * sizeof(float)); /* small numbers in every dtype */
  }
  for (int i = 0; i < 2; i++) {
    p->arenas[i] = os_arena_create(&(os_arena_config){LAYERS, KV_HEADS, SIZE, BLOCKS, SEQUENCES,
                                                      BLOCKS, dtypes[i]});
    CHECK(p->arenas[i] && os_seq_open(p->arenas[i]) == 0);
    CHECK(os_seq_set_blocks(p->arenas[i], 0, 0, BLOCKS, (int32_t[]){5, 4, 3, 2, 1, 0}) == OS_OK);
  }
  p->workers = os_workers_create(&(os_workers_config){.count = 1, .node_count = 1, .nodes = (int32_t[]){0}});
  CHECK(p->workers);
  p->exchange = os_exchange_create(&(os_exchange_config){.arena = p->arenas[1],
                                                         .workers = p->workers,
                                                         .slots = SLOTS,
                                                         .q_heads = KV_HEADS * GROUP,
                                                         .hidden_size = HIDDEN,
                                                         .dtype = OS_BF16,
                                                         .host_residual = 1,
                                                         .scale = 0.2f});
  CHECK(p->exchange);
}

static void close_all(player *p) {
  os_exchange_destroy(p->exchange);
  os_workers_destroy(p->workers);
  for (int i = 0; i < 2; i++) os_arena_destroy(p->arenas[i]);
  for (int i = 0; i < 3; i++) free(p->rows[i]);
}

static void expect_reason(int64_t answer) {
  if (answer >= 0) return;
  CHECK(answer >= OS_ESTATE);
  CHECK(os_last_status() == answer);
  CHECK(strlen(os_last_error()) > 10);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  static int64_t (*const plays[PLAYS])(player *) = {
      play_arena, play_sequence, play_tokens, play_attend, play_exchange,
      play_layer, play_workers,  play_linear, play_dense};
  player p = {.at = data, .end = data + size};
  open_all(&p);
  while (p.at < p.end) {
    const int32_t play = below(&p, PLAYS);
    const int64_t answer = plays[play](&p);
    expect_reason(answer);
    fuzz_answers[play][answer >= 0]++;
  }
  close_all(&p);
  return 0;
}
