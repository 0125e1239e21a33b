#include "arena.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "convert.h"
#include "error.h"
#include "memory.h"
#include "tile.h"

enum { PREFAULT_CHUNK = 2 << 20 };

/* ---- shape --------------------------------------------------------------------------------- */

static int check_config(const os_arena_config *c) {
  if (!c) return os_fail(OS_EINVAL, "config is NULL; it must point at an os_arena_config");
  if (os_check_range("layers", c->layers, 1, 1024)) return OS_EINVAL;
  if (os_check_range("kv_heads", c->kv_heads, 1, 1024)) return OS_EINVAL;
  if (os_check_range("head_size", c->head_size, 16, OS_MAX_HEAD_SIZE)) return OS_EINVAL;
  if (c->head_size % 8)
    return os_fail(OS_EINVAL, "head_size is %d; it must be a multiple of 8", c->head_size);
  if (os_check_range("blocks", c->blocks, 1, INT32_MAX)) return OS_EINVAL;
  if (os_check_range("max_sequences", c->max_sequences, 1, 1 << 24)) return OS_EINVAL;
  if (os_check_range("max_blocks_per_sequence", c->max_blocks_per_sequence, 1, 1 << 24))
    return OS_EINVAL;
  const double tiles = (double)c->layers * c->kv_heads * c->blocks;
  if (tiles * c->head_size > 1e15)
    return os_fail(OS_EINVAL, "blocks is %d; that many of %d layers can never be mapped", c->blocks,
                   c->layers);
  return os_check_range("dtype", c->dtype, OS_F32, OS_I8);
}

static size_t tile_bytes(const os_arena_config *c) {
  return os_tile_bytes(c->dtype, c->head_size);
}

static size_t tiles_bytes(const os_arena_config *c) {
  return tile_bytes(c) * (size_t)c->layers * (size_t)c->blocks * (size_t)c->kv_heads;
}

static size_t tables_bytes(const os_arena_config *c) {
  return (size_t)c->max_sequences * (size_t)c->max_blocks_per_sequence * sizeof(int32_t);
}

int64_t os_arena_bytes(const os_arena_config *config) {
  if (check_config(config)) return OS_EINVAL;
  return (int64_t)(tiles_bytes(config) + tables_bytes(config) +
                   (size_t)config->max_sequences * sizeof(os_sequence));
}

/* ---- create and destroy -------------------------------------------------------------------- */

static int allocate(os_arena *arena) {
  const os_arena_config *c = &arena->config;
  arena->tiles = os_map(arena->bytes);
  arena->tables = os_map(tables_bytes(c));
  arena->sequences = calloc((size_t)c->max_sequences, sizeof *arena->sequences);
  if (!arena->tiles || !arena->tables || os_hand_create(&arena->hand)) return OS_ENOMEM;
  if (!arena->sequences)
    return os_fail(OS_ENOMEM, "could not allocate %d sequences", c->max_sequences);
  for (int32_t i = 0; i < c->max_sequences; i++)
    arena->sequences[i].blocks = arena->tables + (size_t)i * (size_t)c->max_blocks_per_sequence;
  return OS_OK;
}

os_arena *os_arena_create(const os_arena_config *config) {
  if (check_config(config)) return NULL;
  const os_kernel *kernel = os_kernel_get();
  if (!kernel) return NULL;
  os_arena *arena = calloc(1, sizeof *arena);
  if (!arena) {
    os_fail(OS_ENOMEM, "could not allocate an arena");
    return NULL;
  }
  arena->config = *config;
  arena->kernel = kernel;
  arena->tile_bytes = tile_bytes(config);
  arena->head_bytes = arena->tile_bytes * (size_t)config->blocks;
  arena->layer_bytes = arena->head_bytes * (size_t)config->kv_heads;
  arena->bytes = tiles_bytes(config);
  if (allocate(arena) == OS_OK) return arena;
  os_arena_destroy(arena);
  return NULL;
}

void os_arena_destroy(os_arena *arena) {
  if (!arena) return;
  os_unmap(arena->tiles, arena->bytes);
  os_unmap(arena->tables, tables_bytes(&arena->config));
  if (arena->hand.scratch) os_hand_destroy(&arena->hand);
  free(arena->sequences);
  free(arena->rows);
  free(arena);
}

static void touch_chunk(void *context, int32_t i, os_hand *hand) {
  (void)hand;
  os_arena *arena = context;
  const size_t at = (size_t)i * PREFAULT_CHUNK, left = arena->bytes - at;
  os_touch(arena->tiles + at, left < PREFAULT_CHUNK ? left : PREFAULT_CHUNK);
}

int os_arena_prefault(os_arena *arena, os_workers *workers) {
  if (!arena) return os_fail(OS_EINVAL, "arena is NULL; it must be an os_arena");
  int32_t chunks = (int32_t)((arena->bytes + PREFAULT_CHUNK - 1) / PREFAULT_CHUNK);
  os_hand *caller = os_workers_count(workers) > 0 ? NULL : &arena->hand;
  const os_nodes *nodes = os_workers_nodes(workers);
  if (nodes && nodes->count > 0) arena->placement = os_place(arena->tiles, arena->bytes, nodes);
  return os_parallel_for(workers, chunks, touch_chunk, arena, caller);
}

int os_arena_get_memory(const os_arena *arena, os_arena_memory *out) {
  if (!arena) return os_fail(OS_EINVAL, "arena is NULL; it must be an os_arena");
  if (!out) return os_fail(OS_EINVAL, "out is NULL; it must point at an os_arena_memory");
  *out = (os_arena_memory){.tiles = arena->tiles,
                           .bytes = (int64_t)arena->bytes,
                           .policy = arena->placement.policy,
                           .refused = arena->placement.refused};
  return OS_OK;
}

int os_arena_layout(const os_arena *arena, os_layout *out) {
  if (!arena) return os_fail(OS_EINVAL, "arena is NULL; it must be an os_arena");
  if (!out) return os_fail(OS_EINVAL, "out is NULL; it must point at an os_layout");
  const os_arena_config *c = &arena->config;
  *out = (os_layout){.version = OS_LAYOUT_VERSION,
                     .dtype = c->dtype,
                     .block_tokens = OS_BLOCK_TOKENS,
                     .kv_heads = c->kv_heads,
                     .head_size = c->head_size,
                     .tile_bytes = (int64_t)arena->tile_bytes};
  snprintf(out->isa, sizeof out->isa, "any");
  static const char *const k_orders[] = {"dim,token", "dim/2,token,2", "dim,token",
                                         "dim/4,token,4 +128"};
  static const char *const v_orders[] = {"token,dim", "token/2,dim,2", "token,dim",
                                         "token/4,dim,4 k,v scales"};
  snprintf(out->k_order, sizeof out->k_order, "%s", k_orders[c->dtype]);
  snprintf(out->v_order, sizeof out->v_order, "%s", v_orders[c->dtype]);
  return OS_OK;
}

/* ---- sequences ----------------------------------------------------------------------------- */

os_sequence *os_seq_get(const os_arena *arena, int32_t seq) {
  if (!arena) {
    os_fail(OS_EINVAL, "arena is NULL; it must be an os_arena");
    return NULL;
  }
  if (seq >= 0 && seq < arena->config.max_sequences && arena->sequences[seq].references > 0)
    return &arena->sequences[seq];
  os_fail(OS_EINVAL, "seq is %d; it must be an open sequence", seq);
  return NULL;
}

int32_t os_seq_open(os_arena *arena) {
  if (!arena) return os_fail(OS_EINVAL, "arena is NULL; it must be an os_arena");
  for (int32_t i = 0; i < arena->config.max_sequences; i++) {
    os_sequence *sequence = &arena->sequences[i];
    if (sequence->references > 0) continue;
    sequence->references = 1;
    sequence->length = 0;
    sequence->block_count = 0;
    return i;
  }
  return os_fail(OS_EFULL, "all %d sequences are open; release one", arena->config.max_sequences);
}

int os_seq_retain(os_arena *arena, int32_t seq) {
  os_sequence *sequence = os_seq_get(arena, seq);
  if (!sequence) return OS_EINVAL;
  sequence->references++;
  return OS_OK;
}

int os_seq_release(os_arena *arena, int32_t seq) {
  os_sequence *sequence = os_seq_get(arena, seq);
  if (!sequence) return OS_EINVAL;
  return --sequence->references;
}

static bool in_flight(const os_sequence *sequence) {
  return atomic_load_explicit(&sequence->finished, memory_order_acquire) != sequence->submitted;
}

int os_seq_set_blocks(os_arena *arena, int32_t seq, int32_t first, int32_t count,
                      const int32_t *blocks) {
  os_sequence *sequence = os_seq_get(arena, seq);
  if (!sequence) return OS_EINVAL;
  const os_arena_config *c = &arena->config;
  if (os_check_range("first", first, 0, sequence->block_count)) return OS_EINVAL;
  if (os_check_range("count", count, 0, c->max_blocks_per_sequence - first)) return OS_EINVAL;
  if (count > 0 && !blocks) return os_fail(OS_EINVAL, "blocks is NULL; it must hold %d ids", count);
  for (int32_t i = 0; i < count; i++)
    if (blocks[i] < 0 || blocks[i] >= c->blocks)
      return os_fail(OS_EINVAL, "blocks[%d] is %d; it must lie between 0 and %d", i, blocks[i],
                     c->blocks - 1);
  if ((int64_t)first * OS_BLOCK_TOKENS < sequence->length && count > 0 && in_flight(sequence))
    return os_fail(OS_EBUSY, "seq %d has items in flight that read blocks from %d on", seq, first);
  if (count > 0) memcpy(sequence->blocks + first, blocks, (size_t)count * sizeof *blocks);
  if (first + count > sequence->block_count) sequence->block_count = first + count;
  return OS_OK;
}

int64_t os_seq_length(const os_arena *arena, int32_t seq) {
  const os_sequence *sequence = os_seq_get(arena, seq);
  return sequence ? sequence->length : OS_EINVAL;
}

int os_seq_truncate(os_arena *arena, int32_t seq, int64_t tokens) {
  os_sequence *sequence = os_seq_get(arena, seq);
  if (!sequence) return OS_EINVAL;
  int64_t capacity = (int64_t)sequence->block_count * OS_BLOCK_TOKENS;
  if (os_check_range("tokens", tokens, 0, capacity)) return OS_EINVAL;
  if (in_flight(sequence)) return os_fail(OS_EBUSY, "seq %d has items in flight", seq);
  sequence->length = tokens;
  return OS_OK;
}

/* ---- tokens in and out --------------------------------------------------------------------- */

static uint8_t *tile_of(const os_arena *arena, int32_t layer, int32_t block, int32_t head) {
  return arena->tiles + (size_t)layer * arena->layer_bytes + (size_t)head * arena->head_bytes +
         (size_t)block * arena->tile_bytes;
}

static uint8_t *token_tile(const os_arena *arena, const os_sequence *sequence, int32_t layer,
                           int64_t token, int32_t head) {
  return tile_of(arena, layer, sequence->blocks[token / OS_BLOCK_TOKENS], head);
}

/* Tokens of one block from `token` on, at most `left`. */
static int32_t run_at(int64_t token, int64_t left) {
  const int64_t room = OS_BLOCK_TOKENS - token % OS_BLOCK_TOKENS;
  return (int32_t)(left < room ? left : room);
}

enum { CONVERTED = 4 }; /* records at a time: what a tile takes at once */

/* `count` tokens of another dtype than the arena's. */
static void put_converted(const os_arena *arena, uint8_t *tile, int32_t lane, int32_t count,
                          const uint8_t *k, size_t k_stride, const uint8_t *v, size_t v_stride,
                          int32_t dtype) {
  const int32_t own = arena->config.dtype, size = arena->config.head_size;
  uint8_t rooms[2][CONVERTED][OS_RECORD_BYTES_MAX];
  while (count > 0) {
    const int32_t aligned = CONVERTED - lane % CONVERTED, some = count < aligned ? count : aligned;
    for (int32_t i = 0; i < some; i++, k += k_stride, v += v_stride) {
      os_record_from(arena->kernel, own, size, rooms[0][i], k, dtype);
      os_record_from(arena->kernel, own, size, rooms[1][i], v, dtype);
    }
    os_tile_put(own, size, tile, lane, some, rooms[0], sizeof rooms[0][0], rooms[1],
                sizeof rooms[1][0]);
    lane += some;
    count -= some;
  }
}

void os_append_head(const os_attention *a, const os_row *row, int32_t head) {
  const os_arena *arena = a->arena;
  const int32_t dtype = arena->config.dtype, size = arena->config.head_size;
  const size_t element = os_dtype_bytes(a->dtype), column = (size_t)head * (size_t)size * element;
  const size_t k_stride = (size_t)row->k_stride * element, v_stride = (size_t)row->v_stride * element;
  for (int32_t i = 0, count; i < row->q_len; i += count) {
    const int64_t token = row->start + i;
    const uint8_t *k = row->k + (size_t)i * k_stride + column;
    const uint8_t *v = row->v + (size_t)i * v_stride + column;
    const int32_t lane = (int32_t)(token % OS_BLOCK_TOKENS);
    uint8_t *tile = tile_of(arena, a->layer, row->blocks[token / OS_BLOCK_TOKENS], head);
    count = run_at(token, row->q_len - i);
    if (a->dtype == dtype)
      os_tile_put(dtype, size, tile, lane, count, k, k_stride, v, v_stride);
    else
      put_converted(arena, tile, lane, count, k, k_stride, v, v_stride, a->dtype);
  }
}

int os_check_layer(const os_arena *arena, int32_t layer) {
  return os_check_range("layer", layer, 0, arena->config.layers - 1);
}

/* [start, start + count) lies within `limit` tokens. */
static int check_tokens(int64_t start, int64_t count, int64_t limit) {
  if (os_check_range("start", start, 0, limit)) return OS_EINVAL;
  return os_check_range("count", count, 0, limit - start);
}

static int check_write(const os_sequence *sequence, int64_t start, int64_t count) {
  if (os_check_range("start", start, 0, sequence->length)) return OS_EINVAL; /* no holes */
  return check_tokens(start, count, (int64_t)sequence->block_count * OS_BLOCK_TOKENS);
}

static int check_rows(const void *k, const void *v, int32_t count) {
  if (k && v) return OS_OK;
  return os_fail(OS_EINVAL, "%s is NULL; it must hold %d rows", k ? "v" : "k", count);
}

int os_arena_append(os_arena *arena, int32_t seq, int32_t layer, int64_t start, int32_t count,
                    const void *k, const void *v, int64_t stride, int32_t source_dtype) {
  os_sequence *sequence = os_seq_get(arena, seq);
  if (!sequence || os_check_layer(arena, layer)) return OS_EINVAL;
  if (check_write(sequence, start, count)) return OS_EINVAL;
  if (os_check_range("source_dtype", source_dtype, OS_F32, OS_F16)) return OS_EINVAL;
  const int64_t width = (int64_t)arena->config.kv_heads * arena->config.head_size;
  if (os_check_range("stride", stride, width, INT32_MAX)) return OS_EINVAL;
  if (check_rows(k, v, count)) return OS_EINVAL;
  os_attention attention = {.arena = arena, .layer = layer, .dtype = source_dtype};
  os_row row = {.blocks = sequence->blocks, .start = start, .k = k, .v = v};
  row.k_stride = row.v_stride = stride;
  const size_t row_bytes = (size_t)stride * os_dtype_bytes(source_dtype);
  for (int32_t left = count; left > 0; left -= row.q_len) { /* all heads of the rows in the cache */
    row.q_len = run_at(row.start, left);
    for (int32_t head = 0; head < arena->config.kv_heads; head++)
      os_append_head(&attention, &row, head);
    row.start += row.q_len;
    row.k += (size_t)row.q_len * row_bytes;
    row.v += (size_t)row.q_len * row_bytes;
  }
  if (start + count > sequence->length) sequence->length = start + count;
  return OS_OK;
}

/* Bytes of one token's K (or V) of all kv heads as import and export hold it. */
static size_t row_bytes(const os_arena_config *c) {
  return (size_t)c->kv_heads * os_record_bytes(c->dtype, c->head_size);
}

int os_arena_import(os_arena *arena, int32_t seq, int32_t layer, int64_t start, int32_t count,
                    const void *k, const void *v) {
  os_sequence *sequence = os_seq_get(arena, seq);
  if (!sequence || os_check_layer(arena, layer)) return OS_EINVAL;
  if (check_write(sequence, start, count) || check_rows(k, v, count)) return OS_EINVAL;
  const os_arena_config *c = &arena->config;
  const size_t record = os_record_bytes(c->dtype, c->head_size), row = row_bytes(c);
  for (int32_t i = 0, some; i < count; i += some) {
    const int64_t token = start + i;
    some = run_at(token, count - i);
    for (int32_t head = 0; head < c->kv_heads; head++) {
      const size_t at = (size_t)i * row + (size_t)head * record;
      os_tile_put(c->dtype, c->head_size, token_tile(arena, sequence, layer, token, head),
                  (int32_t)(token % OS_BLOCK_TOKENS), some, (const uint8_t *)k + at, row,
                  (const uint8_t *)v + at, row);
    }
  }
  if (start + count > sequence->length) sequence->length = start + count;
  return OS_OK;
}

static int check_whole_blocks(const char *name, int64_t tokens) {
  if (tokens % OS_BLOCK_TOKENS == 0) return OS_OK;
  return os_fail(OS_EINVAL, "%s is %lld; it must be a multiple of %d", name, (long long)tokens,
                 OS_BLOCK_TOKENS);
}

int os_arena_import_tiles(os_arena *arena, int32_t seq, int32_t layer, int64_t start, int32_t count,
                          const void *tiles) {
  os_sequence *sequence = os_seq_get(arena, seq);
  if (!sequence || os_check_layer(arena, layer) || check_write(sequence, start, count))
    return OS_EINVAL;
  if (check_whole_blocks("start", start) || check_whole_blocks("count", count)) return OS_EINVAL;
  if (!tiles)
    return os_fail(OS_EINVAL, "tiles is NULL; it must hold %d blocks", count / OS_BLOCK_TOKENS);
  const uint8_t *from = tiles;
  for (int32_t i = 0; i < count; i += OS_BLOCK_TOKENS)
    for (int32_t head = 0; head < arena->config.kv_heads; head++, from += arena->tile_bytes)
      memcpy(token_tile(arena, sequence, layer, start + i, head), from, arena->tile_bytes);
  if (start + count > sequence->length) sequence->length = start + count;
  return OS_OK;
}

int os_arena_export(const os_arena *arena, int32_t seq, int32_t layer, int64_t start,
                    int32_t count, void *k, void *v) {
  const os_sequence *sequence = os_seq_get(arena, seq);
  if (!sequence || os_check_layer(arena, layer)) return OS_EINVAL;
  if (check_tokens(start, count, sequence->length) || check_rows(k, v, count)) return OS_EINVAL;
  const os_arena_config *c = &arena->config;
  const size_t record = os_record_bytes(c->dtype, c->head_size), row = row_bytes(c);
  for (int32_t i = 0, some; i < count; i += some) {
    const int64_t token = start + i;
    some = run_at(token, count - i);
    for (int32_t head = 0; head < c->kv_heads; head++) {
      const size_t at = (size_t)i * row + (size_t)head * record;
      os_tile_get(c->dtype, c->head_size, token_tile(arena, sequence, layer, token, head),
                  (int32_t)(token % OS_BLOCK_TOKENS), some, (uint8_t *)k + at, row,
                  (uint8_t *)v + at, row);
    }
  }
  return OS_OK;
}

static void read_token(const os_arena *arena, const uint8_t *tile, int64_t token, void *k, void *v,
                       int32_t dtype) {
  const os_arena_config *c = &arena->config;
  uint8_t k_room[OS_RECORD_BYTES_MAX], v_room[OS_RECORD_BYTES_MAX];
  os_tile_get(c->dtype, c->head_size, tile, (int32_t)(token % OS_BLOCK_TOKENS), 1, k_room, 0,
              v_room, 0);
  os_record_to(arena->kernel, c->dtype, c->head_size, k_room, k, dtype);
  os_record_to(arena->kernel, c->dtype, c->head_size, v_room, v, dtype);
}

int os_arena_read(const os_arena *arena, int32_t seq, int32_t layer, int64_t start, int32_t count,
                  void *k, void *v, int64_t stride, int32_t dtype) {
  const os_sequence *sequence = os_seq_get(arena, seq);
  if (!sequence || os_check_layer(arena, layer)) return OS_EINVAL;
  if (check_tokens(start, count, sequence->length) || check_rows(k, v, count)) return OS_EINVAL;
  if (os_check_range("dtype", dtype, OS_F32, OS_F16)) return OS_EINVAL;
  const os_arena_config *c = &arena->config;
  const int64_t width = (int64_t)c->kv_heads * c->head_size;
  if (os_check_range("stride", stride, width, INT32_MAX)) return OS_EINVAL;
  for (int32_t i = 0; i < count; i++)
    for (int32_t head = 0; head < c->kv_heads; head++) {
      const size_t at =
          (size_t)(i * stride + (int64_t)head * c->head_size) * os_dtype_bytes(dtype);
      read_token(arena, token_tile(arena, sequence, layer, start + i, head), start + i,
                 (uint8_t *)k + at, (uint8_t *)v + at, dtype);
    }
  return OS_OK;
}

/* ---- copies between arenas ----------------------------------------------------------------- */

static int check_same_shape(const os_arena *to, const os_arena *from) {
  const os_arena_config *a = &to->config, *b = &from->config;
  if (a->layers == b->layers && a->kv_heads == b->kv_heads && a->head_size == b->head_size)
    return OS_OK;
  return os_fail(OS_EINVAL,
                 "to is an arena of %d layers, %d kv heads, head size %d; it must have the shape "
                 "of from: %d, %d, %d",
                 a->layers, a->kv_heads, a->head_size, b->layers, b->kv_heads, b->head_size);
}

static void copy_token(os_arena *to, uint8_t *to_tile, const os_arena *from,
                       const uint8_t *from_tile, int32_t lane) {
  const int32_t size = to->config.head_size, from_dtype = from->config.dtype;
  float wide[OS_MAX_HEAD_SIZE];
  uint8_t rows[2][OS_RECORD_BYTES_MAX], records[2][OS_RECORD_BYTES_MAX];
  os_tile_get(from_dtype, size, from_tile, lane, 1, rows[0], 0, rows[1], 0);
  if (from_dtype == to->config.dtype) {
    os_tile_put(from_dtype, size, to_tile, lane, 1, rows[0], 0, rows[1], 0);
    return;
  }
  for (int side = 0; side < 2; side++) {
    os_record_to(from->kernel, from_dtype, size, rows[side], wide, OS_F32);
    os_record_from(to->kernel, to->config.dtype, size, records[side], wide, OS_F32);
  }
  os_tile_put(to->config.dtype, size, to_tile, lane, 1, records[0], 0, records[1], 0);
}

/* Lanes [first, end) of one block, all layers and heads. */
static void copy_block(os_arena *to, int32_t to_block, const os_arena *from, int32_t from_block,
                       int32_t first, int32_t end) {
  const bool whole =
      first == 0 && end == OS_BLOCK_TOKENS && to->config.dtype == from->config.dtype;
  for (int32_t layer = 0; layer < to->config.layers; layer++)
    for (int32_t head = 0; head < to->config.kv_heads; head++) {
      uint8_t *to_tile = tile_of(to, layer, to_block, head);
      const uint8_t *from_tile = tile_of(from, layer, from_block, head);
      if (whole)
        memcpy(to_tile, from_tile, to->tile_bytes);
      else
        for (int32_t lane = first; lane < end; lane++) copy_token(to, to_tile, from, from_tile, lane);
    }
}

int os_arena_copy(os_arena *to, int32_t to_seq, const os_arena *from, int32_t from_seq,
                  int64_t start, int64_t count) {
  os_sequence *target = os_seq_get(to, to_seq);
  const os_sequence *source = target ? os_seq_get(from, from_seq) : NULL;
  if (!source || check_same_shape(to, from)) return OS_EINVAL;
  if (check_tokens(start, count, source->length)) return OS_EINVAL;
  if (check_write(target, start, count)) return OS_EINVAL;
  for (int64_t t = start; t < start + count;) {
    int64_t block = t / OS_BLOCK_TOKENS, base = block * OS_BLOCK_TOKENS;
    int64_t end = base + OS_BLOCK_TOKENS < start + count ? base + OS_BLOCK_TOKENS : start + count;
    copy_block(to, target->blocks[block], from, source->blocks[block], (int32_t)(t - base),
               (int32_t)(end - base));
    t = end;
  }
  if (start + count > target->length) target->length = start + count;
  return OS_OK;
}
