/* The path for any machine: four-lane vectors, lowered by the compiler to what there is. */
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "convert.h"

typedef float part __attribute__((vector_size(16)));
typedef uint32_t part_words __attribute__((vector_size(16)));

enum { PART_LANES = 4, SCORE_ROWS = 2, SCORE_BLOCKS = 1, WEIGH_ROWS = 3, WEIGH_PARTS = 3 };
enum { FEW_QUERIES = 0, FEW_BLOCKS = 1, FEW_PARTS = 3 };

/* As x86 does it: b where either is NaN. */
static inline part part_max(part a, part b) {
  part_words from_a = (part_words)(a > b);
  return (part)((from_a & (part_words)a) | (~from_a & (part_words)b));
}

static inline float part_peak(part a) {
  float high = a[0];
  for (int i = 1; i < PART_LANES; i++)
    if (a[i] > high) high = a[i];
  return high;
}

static inline void pair_bf16(const uint16_t *row, part *even, part *odd) {
  part_words words;
  memcpy(&words, row, sizeof words);
  *even = (part)(words << 16);
  *odd = (part)(words & 0xffff0000u);
}

static inline void pair_f16(const uint16_t *row, part *even, part *odd) {
  for (int i = 0; i < PART_LANES; i++) {
    (*even)[i] = os_f16_to_f32(row[2 * i]);
    (*odd)[i] = os_f16_to_f32(row[2 * i + 1]);
  }
}

/* Head sizes are multiples of 8, so four-lane parts never have a half left over. */
#define half_pair(kind, row, even, odd) (*(even) = *(odd) = (part){0})
#define half_f32(row) ((part){0})

#define KERNEL os_kernel_portable
#define KERNEL_NAME "portable"
#include "kernel.inc"
