/* Into how many ranges a row's KV is split, by what else waits. */
#include "../../native/src/arena.h"
#include "check.h"

enum { MOST_ROWS = 40, LOADS = 2000 };

typedef struct {
  int64_t tokens[MOST_ROWS];
  int32_t rows, kv_heads;
  os_load load;
} batch;

static void add(batch *b, int32_t rows, int64_t tokens) {
  for (int32_t i = 0; i < rows; i++) b->tokens[b->rows++] = tokens;
  b->load.items += rows * b->kv_heads;
  b->load.tokens += rows * b->kv_heads * tokens;
}

static batch batch_of(int32_t kv_heads, int32_t threads) {
  return (batch){.kv_heads = kv_heads, .load = {.threads = threads}};
}

static void equal_rows_are_split_where_items_are_few(void) {
  batch b = batch_of(2, 8);
  add(&b, 1, 1000);
  CHECK(os_wanted_ranges(1000, &b.load) == 8);
  add(&b, 1, 1000);
  CHECK(os_wanted_ranges(1000, &b.load) == 4);
  add(&b, 6, 1000); /* 16 items */
  CHECK(os_wanted_ranges(1000, &b.load) == 1);
}

static void a_long_row_among_short_ones_is_split(void) {
  batch b = batch_of(2, 16);
  add(&b, 1, 32768);
  add(&b, 15, 512); /* 32 items; a thread's share is 5,056 tokens */
  CHECK(os_wanted_ranges(32768, &b.load) == 13);
  CHECK(os_wanted_ranges(512, &b.load) == 1);
}

static void heads_that_keep_all_threads_busy_are_not_split(void) {
  batch b = batch_of(8, 8);
  add(&b, 1, 32768);
  add(&b, 15, 512);
  CHECK(os_wanted_ranges(32768, &b.load) == 1);
  b = batch_of(1, 1);
  add(&b, 1, 32768);
  add(&b, 1, 16);
  CHECK(os_wanted_ranges(32768, &b.load) == 1);
}

/* No part is more than a thread's share, and there are partials for all of them: four a thread. */
static void no_part_is_more_than_a_share(void) {
  uint64_t random = 1;
  for (int i = 0; i < LOADS; i++) {
    batch b = batch_of(1 + random_below(&random, 8), 2 + random_below(&random, 60));
    for (int32_t rows = 1 + random_below(&random, MOST_ROWS); rows > 0; rows--)
      add(&b, 1, 1 + random_below(&random, random_below(&random, 8) ? 500 : 40000));
    int64_t parts = 0;
    for (int32_t row = 0; row < b.rows; row++) {
      const int64_t wanted = os_wanted_ranges(b.tokens[row], &b.load);
      CHECK(wanted >= 1 && b.tokens[row] * b.load.threads <= wanted * b.load.tokens);
      if (wanted > 1) parts += wanted * b.kv_heads;
    }
    CHECK(parts <= 4 * (int64_t)b.load.threads);
  }
}

int main(void) {
  equal_rows_are_split_where_items_are_few();
  a_long_row_among_short_ones_is_split();
  heads_that_keep_all_threads_busy_are_not_split();
  no_part_is_more_than_a_share();
  return 0;
}
