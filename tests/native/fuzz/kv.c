/* Arenas, sequences, and tokens in and out. */
#include "player.h"

int64_t play_arena(player *p) {
  const os_arena_config config = {near_int(p, 1, 4), near_int(p, 1, 4), near_int(p, 16, 256),
                                  near_int(p, 1, 8), near_int(p, 1, 4), near_int(p, 1, 8),
                                  near_int(p, OS_F32, OS_I8)};
  const os_arena_config *given = below(p, 32) ? &config : NULL;
  const int64_t bytes = os_arena_bytes(given);
  if (bytes > 1 << 24) return bytes;
  os_arena *made = os_arena_create(given);
  CHECK(!made == (bytes < 0));
  const int64_t answer = answer_of(made);
  os_arena_destroy(made);
  return answer;
}

static int64_t set_blocks(player *p, os_arena *arena, int32_t seq) {
  int32_t blocks[BLOCKS + 1];
  for (int i = 0; i <= BLOCKS; i++) blocks[i] = near_int(p, 0, BLOCKS - 1);
  const int32_t first = near_int(p, 0, BLOCKS), count = near_int(p, 0, BLOCKS);
  return os_seq_set_blocks(arena, seq, first, count, below(p, 16) ? blocks : NULL);
}

static int64_t describe(os_arena *arena, bool given) {
  os_layout layout;
  os_arena_memory memory;
  const int answer = os_arena_layout(arena, given ? &layout : NULL);
  CHECK(os_arena_get_memory(arena, given ? &memory : NULL) == answer);
  return answer;
}

int64_t play_sequence(player *p) {
  os_arena *arena = some_arena(p);
  const int32_t seq = some_seq(p);
  switch (below(p, 8)) {
    case 0: return os_seq_open(arena);
    case 1: return os_seq_retain(arena, seq);
    case 2: return seq == 0 ? 0 : os_seq_release(arena, seq); /* 0 stays open */
    case 3: return set_blocks(p, arena, seq);
    case 4: return os_seq_truncate(arena, seq, near(p, 0, TOKENS));
    case 5: return os_seq_length(arena, seq);
    case 6: return os_arena_prefault(arena, some_workers(p));
    default: return describe(arena, below(p, 8));
  }
}

/* Mostly whole blocks, which chance alone would seldom give. */
static int64_t import_tiles(player *p, os_arena *arena, int32_t seq, int32_t layer, int64_t start,
                            int32_t count) {
  if (below(p, 8)) {
    start -= start % OS_BLOCK_TOKENS;
    count -= count % OS_BLOCK_TOKENS;
  }
  return os_arena_import_tiles(arena, seq, layer, start, count, buffer(p, 0));
}

int64_t play_tokens(player *p) {
  os_arena *arena = some_arena(p);
  const int32_t seq = some_seq(p), layer = near_int(p, 0, LAYERS - 1);
  const int64_t start = some_start(p), stride = near_stride(p, WIDTH);
  const int32_t count = near_int(p, 0, TOKENS / 2), dtype = near_int(p, OS_F32, OS_I8);
  const void *k = buffer(p, 0), *v = buffer(p, 1);
  void *k_out = buffer(p, 2), *v_out = buffer(p, 2);
  switch (below(p, 6)) {
    case 0: return os_arena_append(arena, seq, layer, start, count, k, v, stride, dtype);
    case 1: return os_arena_import(arena, seq, layer, start, count, k, v);
    case 2: return os_arena_export(arena, seq, layer, start, count, k_out, v_out);
    case 3:
      return os_arena_read(arena, seq, layer, start, count, k_out, v_out, stride, dtype);
    case 4: return import_tiles(p, arena, seq, layer, start, count);
    default: return os_arena_copy(some_arena(p), some_seq(p), arena, seq, start, count);
  }
}
