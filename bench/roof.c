/* The read roof: vector loads over buffers far beyond the last cache, in one or several streams, with
 * and without fetching ahead. Which of them is fastest depends on the machine's own prefetchers. */
#include <stdint.h>

#include "together.h"

typedef uint64_t word_vector __attribute__((vector_size(64)));

enum { LINE = 64, LINES = 8, SUMS = 4, CHUNK_BYTES = 2 << 20 }; /* LINES: of all streams, a step */

#define INLINE static inline __attribute__((always_inline))

/* `sums` keep the loads alive. */
INLINE void read_chunk(const uint8_t *chunk, const int streams, const int fetching, int64_t ahead,
                       word_vector sums[SUMS]) {
  const int64_t stream = CHUNK_BYTES / streams, step = LINES / streams * LINE;
  for (const uint8_t *at = chunk; at < chunk + stream; at += step)
#pragma GCC unroll 8
    for (int i = 0; i < LINES; i++) {
      const uint8_t *line = at + i % streams * stream + i / streams * LINE;
      if (fetching) __builtin_prefetch(line + ahead, 0, 2);
      sums[i % SUMS] ^= *(const word_vector *)line;
    }
}

static void read_any(const uint8_t *chunk, int streams, int64_t ahead, word_vector sums[SUMS]) {
  if (streams == 1 && ahead) read_chunk(chunk, 1, 1, ahead, sums);
  if (streams == 1 && !ahead) read_chunk(chunk, 1, 0, 0, sums);
  if (streams == 2 && ahead) read_chunk(chunk, 2, 1, ahead, sums);
  if (streams == 2 && !ahead) read_chunk(chunk, 2, 0, 0, sums);
  if (streams == 4 && ahead) read_chunk(chunk, 4, 1, ahead, sums);
  if (streams == 4 && !ahead) read_chunk(chunk, 4, 0, 0, sums);
}

/* One thread's share of chunks that lie in `threads` parts; its begin and end in `times`. */
uint64_t roof_read(together *t, int64_t *times, const uint8_t *const *parts, int64_t streams,
                   int64_t ahead) {
  word_vector sums[SUMS] = {{0}};
  times[0] = together_begin(t);
  for (int64_t c; (c = together_take(t)) >= 0;)
    read_any(parts[c % t->threads] + c / t->threads * CHUNK_BYTES, (int)streams, ahead, sums);
  times[1] = now_ns();
  sums[0] ^= sums[1] ^ sums[2] ^ sums[3];
  uint64_t all = 0;
  for (int i = 0; i < 8; i++) all ^= sums[0][i];
  return all;
}
