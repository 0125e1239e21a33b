/* Attention of device rows: query tiles shared out over the caller and idle workers. */
#include <stdlib.h>
#include <string.h>

#include "arena.h"
#include "convert.h"
#include "error.h"

enum { MAX_RANGES = 64, DEFAULT_SPLIT_TOKENS = 256, LEAST_SPLIT_TOKENS = 2 * OS_BLOCK_TOKENS };

/* ---- items --------------------------------------------------------------------------------- */

int32_t os_wanted_ranges(int64_t tokens, const os_load *load) {
  const int64_t parts = 2 * (int64_t)load->threads;
  if (load->items >= parts && tokens * load->threads <= load->tokens) return 1;
  return (int32_t)((parts * tokens + load->tokens - 1) / load->tokens);
}

/* A range of two blocks at least: the last one must hold all of a row's own tokens. */
int32_t os_ranges(int64_t tokens, int32_t split_tokens, int32_t wanted) {
  if (split_tokens == 0) split_tokens = DEFAULT_SPLIT_TOKENS;
  if (split_tokens < LEAST_SPLIT_TOKENS) split_tokens = LEAST_SPLIT_TOKENS;
  int64_t ranges = tokens / split_tokens;
  if (ranges > wanted) ranges = wanted;
  if (ranges > MAX_RANGES) ranges = MAX_RANGES;
  return ranges < 1 ? 1 : (int32_t)ranges;
}

/* Bytes before kv head `head`'s queries in a row of q. */
static size_t query_offset(const os_attention *a, int32_t head) {
  const int32_t width = a->group * a->arena->config.head_size;
  return (size_t)head * (size_t)width * os_dtype_bytes(a->dtype);
}

static os_range range_of(const os_attention *a, const os_row *row, int32_t head, int64_t first,
                         int64_t end) {
  const os_arena *arena = a->arena;
  const os_arena_config *c = &arena->config;
  return (os_range){
      .tiles = arena->tiles + (size_t)a->layer * arena->layer_bytes +
               (size_t)head * arena->head_bytes,
      .block_stride = (int64_t)arena->tile_bytes,
      .blocks = row->blocks,
      .start = row->start,
      .first = first,
      .end = end,
      .q_len = row->q_len,
      .group = a->group,
      .head_size = c->head_size,
      .kv_dtype = c->dtype,
      .dtype = a->dtype,
      .scale = a->scale,
      .q = row->q + query_offset(a, head),
      .q_stride = row->q_stride,
  };
}

/* Blocks from `first` to `end` of the head that this thread probably takes next. */
static os_next next_head(const os_attention *a, int32_t head, int64_t first, int64_t end) {
  if (head + a->threads >= a->arena->config.kv_heads) return (os_next){0};
  return (os_next){first / OS_BLOCK_TOKENS, (end - first + OS_BLOCK_TOKENS - 1) / OS_BLOCK_TOKENS,
                   a->threads * (int64_t)a->arena->head_bytes};
}

static void store(const os_attention *a, const os_row *row, int32_t head, const os_range *x,
                  os_partial *partials, int32_t count) {
  os_result to = row->result;
  const size_t first_query = (size_t)head * (size_t)a->group;
  to.o = (uint8_t *)to.o +
         first_query * (size_t)a->arena->config.head_size * os_dtype_bytes(a->dtype);
  if (to.lse) to.lse += first_query;
  a->arena->kernel->finish(x, partials, count, to);
}

/* The part's KV is read here and nowhere else. */
static void attend_range(const os_attention *a, const os_range *x, os_partial out, os_hand *hand) {
  a->arena->kernel->attend(x, out, hand->scratch);
  const int64_t bytes = (x->end - x->first) * (int64_t)a->arena->tile_bytes / OS_BLOCK_TOKENS;
  atomic_fetch_add_explicit(&hand->kv_bytes, bytes, memory_order_relaxed);
}

void os_attend_item(const os_attention *a, const os_row *row, int32_t head, int32_t range,
                    const os_split *split, os_hand *hand) {
  const os_arena_config *c = &a->arena->config;
  const int32_t ranges = row->ranges;
  const int64_t tokens = row->start + row->q_len;
  const int64_t blocks = (tokens + OS_BLOCK_TOKENS - 1) / OS_BLOCK_TOKENS;
  const int64_t end = blocks * (range + 1) / ranges * OS_BLOCK_TOKENS;
  os_range x = range_of(a, row, head, blocks * range / ranges * OS_BLOCK_TOKENS,
                        end < tokens ? end : tokens);
  if (!split) x.next = next_head(a, head, x.first, x.end);
  const int32_t queries = row->q_len * a->group;
  const size_t floats = os_partial_floats(queries, c->head_size);
  float *memory = split ? split->partials + (size_t)range * floats : hand->partial;
  os_partial partials[MAX_RANGES] = {os_partial_at(memory, queries, c->head_size)};
  if (row->append && range == ranges - 1) os_append_head(a, row, head);
  attend_range(a, &x, partials[0], hand);
  if (split) { /* the last finisher merges: it sees the others' partials through this counter */
    if (atomic_fetch_sub_explicit(split->left, 1, memory_order_acq_rel) > 1) return;
    for (int32_t i = 0; i < ranges; i++)
      partials[i] = os_partial_at(split->partials + (size_t)i * floats, queries, c->head_size);
  }
  store(a, row, head, &x, partials, split ? ranges : 1);
}

/* ---- shared prefixes ----------------------------------------------------------------------- */

static void gather_queries(const os_attention *a, const os_row *row, int32_t head, uint8_t *to) {
  const size_t element = os_dtype_bytes(a->dtype);
  const size_t bytes = (size_t)(a->group * a->arena->config.head_size) * element;
  const uint8_t *from = row->q + query_offset(a, head);
  for (int32_t i = 0; i < row->q_len; i++)
    memcpy(to + (size_t)i * bytes, from + (size_t)(i * row->q_stride) * element, bytes);
}

os_partial os_attend_prefix(const os_attention *a, const os_row *const *rows, int32_t count,
                            int32_t head, int32_t blocks, os_hand *hand) {
  const int32_t size = a->arena->config.head_size, width = a->group * size;
  const int64_t end = (int64_t)blocks * OS_BLOCK_TOKENS;
  os_row together = {
      .blocks = rows[0]->blocks, .start = end, .q = rows[0]->q, .q_stride = width};
  for (int32_t i = 0; i < count; i++) {
    const size_t at = (size_t)(together.q_len * width) * os_dtype_bytes(a->dtype);
    gather_queries(a, rows[i], head, (uint8_t *)hand->shared + at);
    together.q_len += rows[i]->q_len;
  }
  os_range x = range_of(a, &together, head, 0, end);
  x.q = hand->shared; /* of one head already */
  x.next = (os_next){blocks, (rows[0]->start - end) / OS_BLOCK_TOKENS, 0}; /* the lead's rest */
  const os_partial all = os_partial_at(hand->shared + OS_SHARED_QUERIES * OS_MAX_HEAD_SIZE,
                                       together.q_len * a->group, size);
  attend_range(a, &x, all, hand);
  return all;
}

void os_attend_rest(const os_attention *a, const os_row *row, int32_t head, int32_t blocks,
                    os_partial out, os_hand *hand) {
  const int64_t first = (int64_t)blocks * OS_BLOCK_TOKENS;
  os_range x = range_of(a, row, head, first, row->start + row->q_len);
  x.next = next_head(a, head, first, x.end);
  os_append_head(a, row, head);
  attend_range(a, &x, out, hand);
}

void os_attend_merge(const os_attention *a, const os_row *row, int32_t head, os_partial *partials,
                     int32_t count) {
  const os_range x = range_of(a, row, head, 0, row->start + row->q_len);
  store(a, row, head, &x, partials, count);
}

/* ---- one call over all device rows --------------------------------------------------------- */

typedef struct {
  os_attention attention;
  os_row *rows; /* first those whose KV is split, the longest */
  os_workers *workers;
  int32_t kv_heads, split_rows, items;
} attend_call;

static void append_item(void *context, int32_t i, os_hand *hand) {
  (void)hand;
  const attend_call *call = context;
  os_append_head(&call->attention, &call->rows[i / call->kv_heads], i % call->kv_heads);
}

static void attend_item(void *context, int32_t i, os_hand *hand) {
  const attend_call *call = context;
  const os_row *row = call->rows, *whole = call->rows + call->split_rows;
  int32_t item = i; /* of this row and those behind it */
  for (; row < whole && item >= call->kv_heads * row->ranges; row++)
    item -= call->kv_heads * row->ranges;
  if (row == whole) row += item / call->kv_heads;
  item %= call->kv_heads * row->ranges;
  const int32_t ranges = row->ranges, head = item / ranges, range = item % ranges;
  os_split split = {0};
  if (ranges > 1) { /* its ranges meet at the place of the first one */
    const size_t room = os_partial_floats(OS_MAX_QUERIES, OS_MAX_HEAD_SIZE);
    split.partials = os_workers_partials(call->workers) + (size_t)(i - range) * room;
    split.left = os_workers_counters(call->workers) + (i - range);
  }
  os_attend_item(&call->attention, row, head, range, ranges > 1 ? &split : NULL, hand);
  atomic_fetch_add_explicit(&hand->items, 1, memory_order_relaxed);
}

static int64_t tokens_of(const os_row *row) { return row->start + row->q_len; }

/* Moves the row to those that are split, with its items from `first` on. */
static void split_row(attend_call *call, os_row *row, int32_t ranges, int32_t first) {
  os_row *to = &call->rows[call->split_rows++];
  const os_row other = *to;
  *to = *row;
  *row = other;
  to->ranges = ranges;
  call->items += call->kv_heads * (ranges - 1);
  for (int32_t head = 0; head < call->kv_heads; head++)
    atomic_store(os_workers_counters(call->workers) + first + head * ranges, ranges);
}

static void plan_splits(attend_call *call, int32_t rows) {
  os_load load = {.items = (int64_t)rows * call->kv_heads, .threads = call->attention.threads};
  call->items = (int32_t)load.items;
  if (load.threads == 1) return;
  for (int32_t i = 0; i < rows; i++) load.tokens += tokens_of(&call->rows[i]) * call->kv_heads;
  for (int32_t i = 0, parts = 0; i < rows; i++) {
    const int64_t tokens = tokens_of(&call->rows[i]);
    const int32_t ranges = os_ranges(tokens, 0, os_wanted_ranges(tokens, &load));
    const int32_t end = parts + ranges * call->kv_heads;
    if (ranges == 1 || end > os_workers_splits(call->workers)) continue;
    split_row(call, &call->rows[i], ranges, parts);
    parts = end;
  }
}

/* ---- arguments ----------------------------------------------------------------------------- */

int os_check_queries(const os_arena *arena, int32_t q_heads, int32_t dtype, float scale) {
  const int32_t kv_heads = arena->config.kv_heads;
  if (os_check_range("q_heads", q_heads, kv_heads, (int64_t)kv_heads * OS_MAX_GROUP))
    return OS_EINVAL;
  if (q_heads % kv_heads)
    return os_fail(OS_EINVAL, "q_heads is %d; it must be a multiple of the %d kv heads", q_heads,
                   kv_heads);
  if (!(scale > 0 && scale <= 1e30f))
    return os_fail(OS_EINVAL, "scale is %g; it must be positive and finite", (double)scale);
  return os_check_range("dtype", dtype, OS_F32, OS_F16);
}

static int check_segment(const os_attend_args *args, int32_t i) {
  const os_segment *segment = &args->segments[i];
  const os_sequence *sequence = os_seq_get(args->arena, segment->seq);
  if (!sequence) return OS_EINVAL;
  const int64_t capacity = (int64_t)sequence->block_count * OS_BLOCK_TOKENS;
  const int64_t limit = args->k ? capacity : sequence->length;
  if (segment->q_len >= 1 && segment->start >= 0 && segment->start <= sequence->length &&
      segment->start + segment->q_len <= limit)
    return OS_OK;
  return os_fail(OS_EINVAL,
                 "segments[%d] is seq %d, start %lld, q_len %d; start must lie between 0 and the "
                 "length %lld, q_len must be at least 1 and end by token %lld",
                 i, segment->seq, (long long)segment->start, segment->q_len,
                 (long long)sequence->length, (long long)limit);
}

static int check_strides(const os_attend_args *args) {
  const os_arena_config *c = &args->arena->config;
  const int64_t q_width = (int64_t)args->q_heads * c->head_size;
  const int64_t kv_width = (int64_t)c->kv_heads * c->head_size;
  if (os_check_range("q_stride", args->q_stride, q_width, INT32_MAX)) return OS_EINVAL;
  if (os_check_range("o_stride", args->o_stride, q_width, INT32_MAX)) return OS_EINVAL;
  if (!args->k) return OS_OK;
  if (os_check_range("k_stride", args->k_stride, kv_width, INT32_MAX)) return OS_EINVAL;
  return os_check_range("v_stride", args->v_stride, kv_width, INT32_MAX);
}

static int check_args(const os_attend_args *args) {
  if (!args) return os_fail(OS_EINVAL, "args is NULL; it must point at an os_attend_args");
  if (!args->arena) return os_fail(OS_EINVAL, "arena is NULL; it must be an os_arena");
  if (os_check_layer(args->arena, args->layer)) return OS_EINVAL;
  if (os_check_queries(args->arena, args->q_heads, args->dtype, args->scale)) return OS_EINVAL;
  if (os_check_range("segments_count", args->segments_count, 0, 1 << 20)) return OS_EINVAL;
  if (args->segments_count == 0) return OS_OK;
  if (!args->q || !args->o || !args->segments)
    return os_fail(OS_EINVAL, "%s is NULL; it must hold the rows of %d segments",
                   !args->q ? "q" : !args->o ? "o" : "segments", args->segments_count);
  if (!args->k != !args->v)
    return os_fail(OS_EINVAL, "one of k and v is NULL; both must be given, or neither");
  if (check_strides(args)) return OS_EINVAL;
  for (int32_t i = 0; i < args->segments_count; i++)
    if (check_segment(args, i)) return OS_EINVAL;
  return OS_OK;
}

/* ---- work list ----------------------------------------------------------------------------- */

static int reserve_rows(os_arena *arena, int64_t count) {
  if (count <= arena->rows_capacity) return OS_OK;
  os_row *rows = realloc(arena->rows, (size_t)(2 * count) * sizeof *rows);
  if (!rows) return os_fail(OS_ENOMEM, "could not allocate %lld rows", (long long)(2 * count));
  arena->rows = rows;
  arena->rows_capacity = (int32_t)(2 * count);
  return OS_OK;
}

static os_row row_of(const os_attend_args *args, const os_segment *segment, int32_t done,
                     int64_t first_row) {
  const size_t element = os_dtype_bytes(args->dtype);
  const size_t at = (size_t)(first_row + done) * element;
  const int32_t left = segment->q_len - done;
  os_row row = {
      .blocks = args->arena->sequences[segment->seq].blocks,
      .start = segment->start + done,
      .q_len = left < OS_MAX_Q_LEN ? left : OS_MAX_Q_LEN,
      .ranges = 1,
      .append = args->k != NULL,
      .q = (const uint8_t *)args->q + at * (size_t)args->q_stride,
      .q_stride = args->q_stride,
      .k_stride = args->k_stride,
      .v_stride = args->v_stride,
      .result = {.o = (uint8_t *)args->o + at * (size_t)args->o_stride,
                 .o_stride = args->o_stride,
                 .lse_stride = args->q_heads},
  };
  if (args->lse) row.result.lse = args->lse + (first_row + done) * args->q_heads;
  if (!args->k) return row;
  row.k = (const uint8_t *)args->k + at * (size_t)args->k_stride;
  row.v = (const uint8_t *)args->v + at * (size_t)args->v_stride;
  return row;
}

/* Query tiles of every segment in order; `long_segments`: some segment has more than one. */
static int32_t list_rows(const os_attend_args *args, bool *long_segments) {
  int32_t count = 0;
  int64_t first_row = 0;
  for (int32_t i = 0; i < args->segments_count; i++) {
    const os_segment *segment = &args->segments[i];
    os_sequence *sequence = &args->arena->sequences[segment->seq];
    if (segment->q_len > OS_MAX_Q_LEN) *long_segments = true;
    for (int32_t done = 0; done < segment->q_len; done += OS_MAX_Q_LEN)
      args->arena->rows[count++] = row_of(args, segment, done, first_row);
    first_row += segment->q_len;
    if (segment->start + segment->q_len > sequence->length)
      sequence->length = segment->start + segment->q_len;
  }
  return count;
}

static int64_t count_tiles(const os_attend_args *args) {
  int64_t tiles = 0;
  for (int32_t i = 0; i < args->segments_count; i++)
    tiles += (args->segments[i].q_len + OS_MAX_Q_LEN - 1) / OS_MAX_Q_LEN;
  return tiles;
}

int os_attend_check(const os_attend_args *args) {
  if (check_args(args)) return OS_EINVAL;
  const int64_t tiles = count_tiles(args);
  if (tiles == 0) return OS_OK;
  if (os_check_range("rows", tiles * args->arena->config.kv_heads, 0, INT32_MAX / 4))
    return OS_EINVAL;
  return reserve_rows(args->arena, tiles);
}

int os_attend_run(const os_attend_args *args) {
  os_arena *arena = args->arena;
  const int32_t kv_heads = arena->config.kv_heads;
  if (count_tiles(args) == 0) return OS_OK;
  bool long_segments = false;
  const int32_t rows = list_rows(args, &long_segments);
  attend_call call = {.attention = {.arena = arena,
                                    .layer = args->layer,
                                    .group = args->q_heads / kv_heads,
                                    .dtype = args->dtype,
                                    .threads = os_workers_count(args->workers) + 1,
                                    .scale = args->scale},
                      .rows = arena->rows,
                      .workers = args->workers,
                      .kv_heads = kv_heads};
  if (long_segments && args->k) { /* a tile reads what its segment's other tiles append */
    os_parallel_for(args->workers, rows * kv_heads, append_item, &call, &arena->hand);
    for (int32_t i = 0; i < rows; i++) arena->rows[i].append = false;
  }
  plan_splits(&call, rows);
  return os_parallel_for(args->workers, call.items, attend_item, &call, &arena->hand);
}

int os_attend(const os_attend_args *args) {
  const int status = os_attend_check(args);
  return status == OS_OK ? os_attend_run(args) : status;
}
