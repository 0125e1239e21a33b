/* Attention of device rows, the exchange, whole layers and the workers. */
#include "player.h"

static os_attend_args some_args(player *p, const os_segment *segments) {
  const bool appends = below(p, 2);
  return (os_attend_args){.arena = some_arena(p),
                          .workers = some_workers(p),
                          .layer = near_int(p, 0, LAYERS - 1),
                          .q_heads = near_int(p, KV_HEADS, KV_HEADS * GROUP),
                          .dtype = near_int(p, OS_F32, OS_F16),
                          .scale = (float)near(p, 1, 3),
                          .q = buffer(p, 0),
                          .k = appends ? buffer(p, 1) : NULL,
                          .v = appends ? buffer(p, 1) : NULL,
                          .q_stride = near_stride(p, WIDTH * GROUP),
                          .k_stride = near_stride(p, WIDTH),
                          .v_stride = near_stride(p, WIDTH),
                          .o = buffer(p, 2),
                          .o_stride = near_stride(p, WIDTH * GROUP),
                          .lse = buffer(p, 2),
                          .segments_count = near_int(p, 0, SEGMENTS),
                          .segments = below(p, 16) ? segments : NULL};
}

static void some_segments(player *p, os_segment segments[SEGMENTS + 1]) {
  for (int i = 0; i <= SEGMENTS; i++)
    segments[i] = (os_segment){some_seq(p), near_int(p, 1, TOKENS / 4), some_start(p)};
}

int64_t play_attend(player *p) {
  os_segment segments[SEGMENTS + 1];
  some_segments(p, segments);
  const os_attend_args args = some_args(p, segments);
  /* One more than there are segments is the caller's word too. */
  if (args.segments_count > SEGMENTS + 1 && args.segments_count <= 1 << 20) return OS_OK;
  return os_attend(below(p, 32) ? &args : NULL);
}

int64_t play_layer(player *p) {
  os_segment segments[SEGMENTS + 1];
  int32_t slots[SLOTS + 1];
  int64_t positions[ROWS], rows = 0;
  some_segments(p, segments);
  for (int i = 0; i <= SLOTS; i++) slots[i] = near_int(p, 0, SLOTS - 1);
  os_layer_args args = {.device = some_args(p, segments),
                        .residual = buffer(p, 2),
                        .residual_stride = near_stride(p, HIDDEN),
                        .positions = below(p, 16) ? positions : NULL,
                        .tail_slots = below(p, 16) ? slots : NULL,
                        .tail_count = near_int(p, 0, SLOTS),
                        .max_join_rows = near_int(p, 0, SLOTS * OS_MAX_Q_LEN),
                        .wait_ns = below(p, 16) ? below(p, 2) * 1000 : INT64_MIN,
                        .iteration = near(p, 0, 9)};
  const int32_t count = args.device.segments_count;
  if (count > SEGMENTS + 1 && count <= 1 << 20) return OS_OK;
  for (int i = 0; i < count && i <= SEGMENTS; i++) rows += segments[i].q_len;
  args.device_rows = below(p, 8) ? (int32_t)rows : near_int(p, 0, 9);
  if (rows > ROWS / 2) args.device_rows = -1; /* no room for the tail behind them */
  return os_layer(below(p, 16) ? p->exchange : NULL, below(p, 32) ? &args : NULL);
}

static int64_t create_exchange(player *p) {
  const os_exchange_config config = {.arena = some_arena(p),
                                     .workers = some_workers(p),
                                     .slots = near_int(p, 1, 4),
                                     .q_heads = near_int(p, KV_HEADS, KV_HEADS * OS_MAX_GROUP),
                                     .hidden_size = near_int(p, 1, 64),
                                     .dtype = near_int(p, OS_F32, OS_F16),
                                     .host_residual = below(p, 2),
                                     .split_tokens = near_int(p, 0, 64),
                                     .scale = (float)near(p, 1, 3)};
  const os_exchange_config *given = below(p, 32) ? &config : NULL;
  const int64_t bytes = os_exchange_bytes(given);
  if (bytes > 1 << 24) return bytes;
  os_exchange *made = os_exchange_create(given);
  CHECK(!made == (bytes < 0));
  const int64_t answer = answer_of(made);
  os_exchange_destroy(made);
  return answer;
}

static int64_t submit(player *p, os_exchange *x, int32_t layer, const int32_t *slots) {
  const void *q = buffer(p, 0), *k = buffer(p, 1), *v = buffer(p, 1), *residual = buffer(p, 2);
  const int64_t q_stride = near_stride(p, WIDTH * GROUP), k_stride = near_stride(p, WIDTH);
  const int64_t v_stride = near_stride(p, WIDTH), residual_stride = near_stride(p, HIDDEN);
  return os_exchange_submit(x, layer, near(p, 0, 9), near_int(p, 0, SLOTS), slots, q, q_stride, k,
                            k_stride, v, v_stride, residual, residual_stride);
}

static int64_t pick(player *p, os_exchange *x, int32_t layer, int32_t *slots) {
  int64_t positions[SLOTS * OS_MAX_Q_LEN];
  int32_t rows = 0;
  const int64_t waits[] = {0, 1000, -1, INT64_MIN, INT64_MAX};
  void *o = buffer(p, 2), *residual = buffer(p, 2);
  const int64_t o_stride = near_stride(p, WIDTH * GROUP), residual_stride = near_stride(p, HIDDEN);
  return os_exchange_pick(x, layer, near(p, 0, 9), near_int(p, 0, SLOTS * OS_MAX_Q_LEN),
                          waits[below(p, 5)], slots, o, o_stride, residual, residual_stride,
                          below(p, 16) ? positions : NULL, below(p, 16) ? &rows : NULL);
}

int64_t play_exchange(player *p) {
  os_exchange *x = below(p, 32) ? p->exchange : NULL;
  os_exchange_stats stats;
  int32_t slots[SLOTS + 1];
  for (int i = 0; i <= SLOTS; i++) slots[i] = near_int(p, 0, SLOTS - 1);
  int32_t *given = below(p, 16) ? slots : NULL;
  const int32_t layer = near_int(p, 0, LAYERS - 1);
  switch (below(p, 10)) {
    case 0: return os_slot_open(x, some_seq(p));
    case 1: return os_slot_begin(x, slots[0], some_start(p), near_int(p, 1, OS_MAX_Q_LEN));
    case 2: return os_slot_close(x, slots[0]);
    case 3: return os_exchange_reap(x, near_int(p, 0, SLOTS), given);
    case 4: return submit(p, x, layer, given);
    case 5: return pick(p, x, layer, given);
    case 6: return os_exchange_waiting(x, layer);
    case 7: return os_exchange_get_stats(x, below(p, 8) ? &stats : NULL);
    case 8: return os_slot_lse(x, slots[0], ROWS * MAX_STRIDE, buffer(p, 2));
    default: return create_exchange(p);
  }
}

static int64_t create_workers(player *p) {
  const int32_t cores[] = {near_int(p, 0, 1), near_int(p, 0, 1)};
  const int32_t nodes[] = {near_int(p, 0, OS_MAX_NODES - 1), 0};
  const os_workers_config config = {.count = near_int(p, 0, 2),
                                    .cores = below(p, 2) ? cores : NULL,
                                    .spin_ns = near_int(p, 0, 1000),
                                    .batch_priority = below(p, 2),
                                    .node_count = near_int(p, 0, 2),
                                    .nodes = below(p, 8) ? nodes : NULL};
  if (config.count > 2 && config.count <= 1024) return OS_OK; /* right, and slow */
  if (config.node_count > 2 && config.node_count <= OS_MAX_NODES) return OS_OK; /* there are two */
  os_workers *made = os_workers_create(below(p, 32) ? &config : NULL);
  const int64_t answer = answer_of(made);
  os_workers_destroy(made);
  return answer;
}

int64_t play_workers(player *p) {
  os_workers *workers = below(p, 16) ? p->workers : NULL;
  os_workers_stats stats;
  switch (below(p, 8)) {
    case 0: return create_workers(p);
    case 1: return os_workers_pause(workers);
    case 2: return os_workers_resume(workers);
    default: return os_workers_get_stats(workers, below(p, 8) ? &stats : NULL);
  }
}
