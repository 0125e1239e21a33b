/* One input of the fuzzers is a game: its bytes choose calls and their arguments, right and wrong. Each
 * call either works or fails with a status and a line that says why, and never touches what it should
 * not (the sanitizers watch). */
#ifndef PLAYER_H
#define PLAYER_H

#include <stdbool.h>

#include "../check.h"

enum {
  LAYERS = 2, KV_HEADS = 2, SIZE = 24, BLOCKS = 6, SEQUENCES = 3, TOKENS = BLOCKS * 16,
  WIDTH = KV_HEADS * SIZE, GROUP = 3, MAX_STRIDE = WIDTH * GROUP + 5, SLOTS = 3, HIDDEN = 10,
  SEGMENTS = 3, ROWS = 136, /* of every buffer: more than any call that is right names */
  PLAYS = 9
};

typedef struct {
  const uint8_t *at, *end; /* what is left of the input */
  os_arena *arenas[2];
  os_workers *workers;
  os_exchange *exchange;
  /* ROWS of MAX_STRIDE floats, each its own allocation. Two are only read and stay finite numbers: of
   * queries that are not, the int8 kernels' sums wrap before the result becomes NaN. */
  uint8_t *rows[3];
} player;

/* ---- numbers from the input; zeros once it is used up --------------------------------------- */

static inline uint64_t take_bytes(player *p, int count) {
  uint64_t value = 0;
  for (int i = 0; i < count && p->at < p->end; i++) value = value << 8 | *p->at++;
  return value;
}

static inline int32_t below(player *p, int32_t limit) {
  return (int32_t)(take_bytes(p, limit > 256 ? 2 : 1) % (uint64_t)limit);
}

/* Mostly within [low, high]; else beside a border, or as far outside as the type allows. */
static inline int64_t near(player *p, int64_t low, int64_t high) {
  static const int64_t far[] = {INT32_MIN, INT32_MAX, INT64_MIN, INT64_MAX, 1 << 24, 1 << 16};
  switch (below(p, 48)) {
    case 0: return low - 1;
    case 1: return high + 1;
    case 2: return far[below(p, sizeof far / sizeof *far)];
    case 3: return (int64_t)take_bytes(p, 8);
    case 4: return low;
    case 5: return high;
    default: return low + below(p, (int32_t)(high - low + 1));
  }
}

static inline int32_t near_int(player *p, int32_t low, int32_t high) {
  return (int32_t)near(p, low, high);
}

/* One that is right is no longer than the buffers are: what they hold is the caller's word. */
static inline int64_t near_stride(player *p, int64_t width) {
  const int64_t stride = near(p, width, MAX_STRIDE - 1);
  return stride > MAX_STRIDE && stride <= INT32_MAX ? MAX_STRIDE : stride;
}

static inline void *buffer(player *p, int i) { return below(p, 32) ? p->rows[i] : NULL; }

static inline os_arena *some_arena(player *p) {
  return below(p, 32) ? p->arenas[below(p, 2)] : NULL;
}

static inline os_workers *some_workers(player *p) { return below(p, 2) ? p->workers : NULL; }

/* Sequence 0 is always open, and a start of 0 is right whatever its length is. */
static inline int32_t some_seq(player *p) {
  return below(p, 4) ? 0 : near_int(p, 0, SEQUENCES - 1);
}

static inline int64_t some_start(player *p) { return below(p, 2) ? 0 : near(p, 0, TOKENS); }

/* What a call that makes an object says. */
static inline int64_t answer_of(const void *made) { return made ? OS_OK : os_last_status(); }

/* ---- plays ---------------------------------------------------------------------------------- */

int64_t play_arena(player *p);
int64_t play_sequence(player *p);
int64_t play_tokens(player *p);
int64_t play_attend(player *p);
int64_t play_exchange(player *p);
int64_t play_layer(player *p);
int64_t play_workers(player *p);
int64_t play_linear(player *p);
int64_t play_dense(player *p);

/* How many calls of each play have failed and have worked. */
extern int64_t fuzz_answers[PLAYS][2];
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#endif
