/* The read roof: plain vector loads over a buffer far beyond the last cache. */
#include <stddef.h>
#include <stdint.h>

typedef uint64_t word_vector __attribute__((vector_size(64)));

/* Reads every byte once; the answer keeps the loads alive. `bytes` is a multiple of 512. */
uint64_t roof_read(const void *buffer, size_t bytes) {
  const word_vector *at = buffer, *end = at + bytes / sizeof *at;
  word_vector sums[8] = {{0}};
  for (; at < end; at += 8)
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) sums[i] ^= at[i];
  uint64_t all = 0;
  for (int i = 0; i < 8; i++)
    for (size_t lane = 0; lane < sizeof *sums / sizeof(uint64_t); lane++) all ^= sums[i][lane];
  return all;
}
