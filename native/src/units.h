/* One token's K and V, and four tokens' at once, between rows and a tile. A unit is four bytes: a float,
 * two bf16 dims or four bytes. K's units lie 16 lanes apart; V's values of the tokens that fill a unit
 * alternate, as the dot products want them. fp16, of which no path has dot products, lies by its own two
 * bytes instead, so that what lies side by side fills a vector. */
#ifndef OS_UNITS_H
#define OS_UNITS_H

#include <stdint.h>
#include <string.h>

#include "convert.h"

/* ---- one token ------------------------------------------------------------------------------ */

static inline uint8_t *unit_at(uint8_t *half, int32_t unit, int32_t lane) {
  return half + (unit * OS_BLOCK_TOKENS + lane) * 4;
}

/* `mask` is put on every unit. */
static inline void put_units(uint8_t *half, int32_t first, int32_t units, int32_t lane, const uint8_t *k,
                      uint32_t mask) {
  for (int32_t u = first; u < units; u++) {
    uint32_t unit;
    memcpy(&unit, k + u * 4, 4);
    unit ^= mask;
    memcpy(unit_at(half, u, lane), &unit, 4);
  }
}

static inline void get_units(uint8_t *half, int32_t first, int32_t units, int32_t lane, uint8_t *k,
                      uint32_t mask) {
  for (int32_t u = first; u < units; u++) {
    uint32_t unit;
    memcpy(&unit, unit_at(half, u, lane), 4);
    unit ^= mask;
    memcpy(k + u * 4, &unit, 4);
  }
}

/* fp16's K: dims, not units, lie 16 lanes apart. */
static inline uint8_t *word_at(uint8_t *half, int32_t dim, int32_t lane) {
  return half + (dim * OS_BLOCK_TOKENS + lane) * 2;
}

static inline void put_words(uint8_t *half, int32_t head_size, int32_t lane, const uint8_t *k) {
  for (int32_t d = 0; d < head_size; d++) memcpy(word_at(half, d, lane), k + 2 * d, 2);
}

static inline void get_words(uint8_t *half, int32_t head_size, int32_t lane, uint8_t *k) {
  for (int32_t d = 0; d < head_size; d++) memcpy(k + 2 * d, word_at(half, d, lane), 2);
}

/* Whether a token's values of V lie side by side, and not those of several tokens. */
static inline int is_plain(int32_t dtype) { return dtype == OS_F32 || dtype == OS_F16; }

static inline uint8_t *first_value(uint8_t *half, int32_t head_size, int32_t lane, int32_t dtype) {
  const int32_t bytes = (int32_t)os_dtype_bytes(dtype), tokens = is_plain(dtype) ? 1 : 4 / bytes;
  return half + lane / tokens * tokens * head_size * bytes + lane % tokens * bytes;
}

static inline void put_values(uint8_t *to, int32_t head_size, int32_t dtype, const uint8_t *v) {
  if (is_plain(dtype))
    memcpy(to, v, (size_t)head_size * os_dtype_bytes(dtype));
  else if (dtype == OS_BF16)
    for (int32_t d = 0; d < head_size; d++) memcpy(to + 4 * d, v + 2 * d, 2);
  else
    for (int32_t d = 0; d < head_size; d++) to[4 * d] = v[d];
}

static inline void get_values(const uint8_t *from, int32_t head_size, int32_t dtype, uint8_t *v) {
  if (is_plain(dtype))
    memcpy(v, from, (size_t)head_size * os_dtype_bytes(dtype));
  else if (dtype == OS_BF16)
    for (int32_t d = 0; d < head_size; d++) memcpy(v + 2 * d, from + 4 * d, 2);
  else
    for (int32_t d = 0; d < head_size; d++) v[d] = from[4 * d];
}

/* ---- four tokens: transposes and interleavings in vectors of 16 bytes -------------------------- */

enum { QUAD = 4 };

typedef uint32_t four __attribute__((vector_size(16)));
typedef uint16_t eight __attribute__((vector_size(16)));
typedef uint8_t sixteen __attribute__((vector_size(16)));
typedef uint64_t two __attribute__((vector_size(16)));

#define SHUFFLE __builtin_shufflevector
/* Of little-endian words of two bytes: the first bytes of a and b alternating, and each word's first. */
#define FIRST_HALVES(a, b) \
  SHUFFLE((sixteen)(a), (sixteen)(b), 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23)
#define LOW_WORDS(a, b) SHUFFLE(a, b, 0, 8, 1, 9, 2, 10, 3, 11)
#define HIGH_WORDS(a, b) SHUFFLE(a, b, 4, 12, 5, 13, 6, 14, 7, 15)
#define EVEN_BYTES(a, b) \
  SHUFFLE((sixteen)(a), (sixteen)(b), 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30)

static inline void transpose(four rows[QUAD]) {
  const four a = SHUFFLE(rows[0], rows[1], 0, 4, 1, 5), b = SHUFFLE(rows[2], rows[3], 0, 4, 1, 5);
  const four c = SHUFFLE(rows[0], rows[1], 2, 6, 3, 7), d = SHUFFLE(rows[2], rows[3], 2, 6, 3, 7);
  rows[0] = SHUFFLE(a, b, 0, 1, 4, 5);
  rows[1] = SHUFFLE(a, b, 2, 3, 6, 7);
  rows[2] = SHUFFLE(c, d, 0, 1, 4, 5);
  rows[3] = SHUFFLE(c, d, 2, 3, 6, 7);
}

static inline void put_unit_quad(uint8_t *half, int32_t units, int32_t lane, const uint8_t *k,
                          size_t stride, uint32_t mask) {
  four x[QUAD];
  int32_t u = 0;
  for (; u + QUAD <= units; u += QUAD) {
    for (int i = 0; i < QUAD; i++) memcpy(&x[i], k + (size_t)i * stride + u * 4, sizeof *x);
    transpose(x);
    for (int i = 0; i < QUAD; i++) {
      x[i] ^= mask;
      memcpy(unit_at(half, u + i, lane), &x[i], sizeof *x);
    }
  }
  for (int i = 0; i < QUAD && u < units; i++)
    put_units(half, u, units, lane + i, k + (size_t)i * stride, mask);
}

static inline void get_unit_quad(uint8_t *half, int32_t units, int32_t lane, uint8_t *k, size_t stride,
                          uint32_t mask) {
  four x[QUAD];
  int32_t u = 0;
  for (; u + QUAD <= units; u += QUAD) {
    for (int i = 0; i < QUAD; i++) memcpy(&x[i], unit_at(half, u + i, lane), sizeof *x);
    transpose(x);
    for (int i = 0; i < QUAD; i++) {
      x[i] ^= mask;
      memcpy(k + (size_t)i * stride + u * 4, &x[i], sizeof *x);
    }
  }
  for (int i = 0; i < QUAD && u < units; i++)
    get_units(half, u, units, lane + i, k + (size_t)i * stride, mask);
}

static inline uint64_t load_8(const uint8_t *from) {
  uint64_t value;
  memcpy(&value, from, sizeof value);
  return value;
}

/* Four rows of four words of two bytes. */
static inline void transpose_words(uint64_t rows[QUAD]) {
  const eight a = (eight)(two){rows[0], rows[1]}, b = (eight)(two){rows[2], rows[3]};
  const eight even = LOW_WORDS(a, b), odd = HIGH_WORDS(a, b); /* columns of rows 0, 2 and of 1, 3 */
  const two low = (two)LOW_WORDS(even, odd), high = (two)HIGH_WORDS(even, odd);
  rows[0] = low[0];
  rows[1] = low[1];
  rows[2] = high[0];
  rows[3] = high[1];
}

static inline void put_word_quad(uint8_t *half, int32_t head_size, int32_t lane, const uint8_t *k,
                          size_t stride) {
  uint64_t x[QUAD];
  for (int32_t d = 0; d < head_size; d += QUAD) {
    for (int i = 0; i < QUAD; i++) x[i] = load_8(k + (size_t)i * stride + 2 * d);
    transpose_words(x);
    for (int i = 0; i < QUAD; i++) memcpy(word_at(half, d + i, lane), &x[i], sizeof *x);
  }
}

static inline void get_word_quad(uint8_t *half, int32_t head_size, int32_t lane, uint8_t *k,
                          size_t stride) {
  uint64_t x[QUAD];
  for (int32_t d = 0; d < head_size; d += QUAD) {
    for (int i = 0; i < QUAD; i++) x[i] = load_8(word_at(half, d + i, lane));
    transpose_words(x);
    for (int i = 0; i < QUAD; i++) memcpy(k + (size_t)i * stride + 2 * d, &x[i], sizeof *x);
  }
}

static inline void put_pairs(uint8_t *to, int32_t head_size, const uint8_t *even, const uint8_t *odd) {
  eight a, b;
  for (int32_t d = 0; d < head_size; d += 8) {
    memcpy(&a, even + 2 * d, sizeof a);
    memcpy(&b, odd + 2 * d, sizeof b);
    const eight low = LOW_WORDS(a, b), high = HIGH_WORDS(a, b);
    memcpy(to + 4 * d, &low, sizeof low);
    memcpy(to + 4 * d + 16, &high, sizeof high);
  }
}

static inline void get_pairs(const uint8_t *from, int32_t head_size, uint8_t *even, uint8_t *odd) {
  four low, high;
  for (int32_t d = 0; d < head_size; d += 8) {
    memcpy(&low, from + 4 * d, sizeof low);
    memcpy(&high, from + 4 * d + 16, sizeof high);
    const eight a = SHUFFLE((eight)low, (eight)high, 0, 2, 4, 6, 8, 10, 12, 14);
    const eight b = SHUFFLE((eight)low, (eight)high, 1, 3, 5, 7, 9, 11, 13, 15);
    memcpy(even + 2 * d, &a, sizeof a);
    memcpy(odd + 2 * d, &b, sizeof b);
  }
}

/* Eight dims at a time of four tokens' bytes. */
static inline void put_bytes(uint8_t *to, int32_t head_size, const uint8_t *v, size_t stride) {
  two x[QUAD] = {0};
  for (int32_t d = 0; d < head_size; d += 8) {
    for (int i = 0; i < QUAD; i++) x[i][0] = load_8(v + (size_t)i * stride + d);
    const eight a = (eight)FIRST_HALVES(x[0], x[1]), b = (eight)FIRST_HALVES(x[2], x[3]);
    const eight low = LOW_WORDS(a, b), high = HIGH_WORDS(a, b);
    memcpy(to + 4 * d, &low, sizeof low);
    memcpy(to + 4 * d + 16, &high, sizeof high);
  }
}

static inline void get_bytes(const uint8_t *from, int32_t head_size, uint8_t *v, size_t stride) {
  eight low, high;
  for (int32_t d = 0; d < head_size; d += 8) {
    memcpy(&low, from + 4 * d, sizeof low);
    memcpy(&high, from + 4 * d + 16, sizeof high);
    const sixteen a = (sixteen)SHUFFLE(low, high, 0, 2, 4, 6, 8, 10, 12, 14);
    const sixteen b = (sixteen)SHUFFLE(low, high, 1, 3, 5, 7, 9, 11, 13, 15);
    const two even = (two)EVEN_BYTES(a, b), odd = (two)EVEN_BYTES((eight)a >> 8, (eight)b >> 8);
    const uint64_t tokens[QUAD] = {even[0], odd[0], even[1], odd[1]};
    for (int i = 0; i < QUAD; i++) memcpy(v + (size_t)i * stride + d, &tokens[i], 8);
  }
}

static inline void put_value_quad(uint8_t *half, int32_t head_size, int32_t lane, int32_t dtype,
                           const uint8_t *v, size_t stride) {
  const size_t row = (size_t)head_size * os_dtype_bytes(dtype);
  uint8_t *to = first_value(half, head_size, lane, dtype);
  if (is_plain(dtype)) {
    for (size_t i = 0; i < QUAD; i++) memcpy(to + i * row, v + i * stride, row);
  } else if (dtype == OS_BF16) {
    put_pairs(to, head_size, v, v + stride);
    put_pairs(to + head_size * 4, head_size, v + 2 * stride, v + 3 * stride);
  } else {
    put_bytes(to, head_size, v, stride);
  }
}

static inline void get_value_quad(uint8_t *half, int32_t head_size, int32_t lane, int32_t dtype,
                           uint8_t *v, size_t stride) {
  const size_t row = (size_t)head_size * os_dtype_bytes(dtype);
  const uint8_t *from = first_value(half, head_size, lane, dtype);
  if (is_plain(dtype)) {
    for (size_t i = 0; i < QUAD; i++) memcpy(v + i * stride, from + i * row, row);
  } else if (dtype == OS_BF16) {
    get_pairs(from, head_size, v, v + stride);
    get_pairs(from + head_size * 4, head_size, v + 2 * stride, v + 3 * stride);
  } else {
    get_bytes(from, head_size, v, stride);
  }
}

#endif
