/* The path for any machine: four-lane vectors, lowered by the compiler to what there is. */
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "convert.h"

typedef float part __attribute__((vector_size(16)));
typedef uint32_t part_words __attribute__((vector_size(16)));
typedef uint64_t part_longs __attribute__((vector_size(16)));
typedef uint16_t half_words __attribute__((vector_size(16)));

enum { PART_LANES = 4, SCORE_ROWS = 2, WEIGH_ROWS = 3, FEW_QUERIES = 0, SHARED_QUERIES = 12 };
enum { WHOLE_PARTS = 0, REST_PARTS = 1, SPREAD_FETCHES = 0 };

static inline int score_parts(int few, int rows) {
  (void)few, (void)rows;
  return 4;
}

static inline int weigh_parts(int few, int rows) {
  (void)few, (void)rows;
  return 3;
}

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

static inline int part_above(part x, float limit) {
  for (int i = 0; i < PART_LANES; i++)
    if (x[i] > limit) return 1;
  return 0;
}

static inline part side_bf16(const uint16_t *pairs, const int odd) {
  part_words words;
  memcpy(&words, pairs, sizeof words);
  return (part)(odd ? words & 0xffff0000u : words << 16);
}

/* Exponents move by 112; where they are all ones they stay so. */
static inline part part_f16(const uint16_t *values) {
  uint64_t four;
  memcpy(&four, values, sizeof four);
  const half_words halves = (half_words)(part_longs){four, 0}, none = {0};
  const part_words half =
      (part_words)__builtin_shufflevector(halves, none, 0, 8, 1, 9, 2, 10, 3, 11);
  const part_words magnitude = (half & 0x7fff) << 13;
  const part_words special = (part_words)(magnitude >= 0x7c00u << 13) & 0x7f800000u;
  const part_words value = (part_words)((part)magnitude * 0x1p112f) | special;
  return (part)(value | (half & 0x8000) << 16);
}

/* Head sizes are multiples of 8, so four-lane parts never have a half left over. */
#define half_bf16(pairs, odd) ((part){0})
#define half_f16(row) ((part){0})
#define half_f32(row) ((part){0})

#define KERNEL os_kernel_portable
#define KERNEL_NAME "portable"
#include "kernel.inc"
