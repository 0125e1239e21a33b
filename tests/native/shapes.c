/* Every head size class and dtype, written, read, attended and copied: for out-of-bounds accesses
 * at the arena's very end, where the last block is only partly written. */
#include <string.h>

#include "check.h"

enum { KV_HEADS = 2, GROUP = 5, MAX_SIZE = 256, TOKENS = 70, BLOCKS = 5, Q_LEN = 11 };

static os_arena *make_arena(int32_t head_size, int32_t dtype) {
  os_arena *arena = os_arena_create(&(os_arena_config){.layers = 2,
                                                       .kv_heads = KV_HEADS,
                                                       .head_size = head_size,
                                                       .blocks = BLOCKS,
                                                       .max_sequences = 1,
                                                       .max_blocks_per_sequence = BLOCKS,
                                                       .dtype = dtype});
  CHECK(arena && os_seq_open(arena) == 0);
  const int32_t blocks[BLOCKS] = {3, 1, 0, 2, 4};
  CHECK(os_seq_set_blocks(arena, 0, 0, BLOCKS, blocks) == OS_OK);
  return arena;
}

static void attend(os_arena *arena, int32_t head_size, int32_t dtype, int32_t tokens,
                   const void *rows, void *o) {
  const os_segment segment = {0, Q_LEN, tokens - Q_LEN};
  float lse[Q_LEN * KV_HEADS * GROUP];
  const int64_t width = KV_HEADS * head_size;
  const os_attend_args args = {.arena = arena,
                               .layer = 1,
                               .q_heads = KV_HEADS * GROUP,
                               .dtype = dtype,
                               .scale = 0.125f,
                               .q = rows,
                               .k = rows,
                               .v = rows,
                               .q_stride = width * GROUP,
                               .k_stride = width,
                               .v_stride = width,
                               .o = o,
                               .o_stride = width * GROUP,
                               .lse = lse,
                               .segments_count = 1,
                               .segments = &segment};
  CHECK(os_attend(&args) == OS_OK);
}

static void try_shape(int32_t head_size, int32_t kv_dtype, int32_t dtype) {
  os_arena *arena = make_arena(head_size, kv_dtype), *other = make_arena(head_size, kv_dtype);
  const size_t record = kv_dtype == OS_I8    ? (size_t)head_size + 2
                        : kv_dtype == OS_F32 ? 4 * (size_t)head_size
                                             : 2 * (size_t)head_size;
  const size_t row = KV_HEADS * record;
  uint8_t *k = calloc(TOKENS, row), *v = calloc(TOKENS, row);
  uint8_t *k_back = malloc(TOKENS * row), *v_back = malloc(TOKENS * row);
  void *rows = calloc(Q_LEN * GROUP, (size_t)KV_HEADS * MAX_SIZE * 4);
  void *o = calloc(Q_LEN * GROUP, (size_t)KV_HEADS * MAX_SIZE * 4);
  CHECK(k && v && k_back && v_back && rows && o);
  for (size_t i = 0; i < TOKENS * row; i++) k[i] = v[i] = (uint8_t)(i % 60);
  for (int32_t layer = 0; layer < 2; layer++)
    CHECK(os_arena_import(arena, 0, layer, 0, TOKENS, k, v) == OS_OK);
  CHECK(os_arena_copy(other, 0, arena, 0, 0, TOKENS) == OS_OK);
  CHECK(os_arena_export(other, 0, 1, 0, TOKENS, k_back, v_back) == OS_OK);
  CHECK(memcmp(k, k_back, TOKENS * row) == 0 && memcmp(v, v_back, TOKENS * row) == 0);
  attend(arena, head_size, dtype, TOKENS, rows, o);
  attend(arena, head_size, dtype, BLOCKS * 16 - 3, rows, o);
  free(k);
  free(v);
  free(k_back);
  free(v_back);
  free(rows);
  free(o);
  os_arena_destroy(arena);
  os_arena_destroy(other);
}

int main(void) {
  const int32_t sizes[] = {16, 24, 64, 80, 96, 128, 256};
  for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
    for (int32_t kv_dtype = OS_F32; kv_dtype <= OS_I8; kv_dtype++)
      for (int32_t dtype = OS_F32; dtype <= OS_F16; dtype++) try_shape(sizes[i], kv_dtype, dtype);
  return 0;
}
