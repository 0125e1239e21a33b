/* The arithmetic roof of an ISA path, compiled with its flags: multiply-adds on registers alone, in as
 * many sums as the registers hold, so that no latency shows. */
#include <stdint.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "together.h"

#if defined(__AVX512F__)
enum { LANES = 16, SUMS = 28 };
#elif defined(__AVX__)
enum { LANES = 8, SUMS = 14 };
#else
enum { LANES = 4, SUMS = 14 };
#endif
enum { STEPS = 4096 }; /* of a chunk */

typedef float floats __attribute__((vector_size(4 * LANES)));
typedef int32_t words __attribute__((vector_size(4 * LANES)));

#define INLINE static inline __attribute__((always_inline))
#define EVERY_SUM _Pragma("GCC unroll 28") for (int i = 0; i < SUMS; i++)

/* What one instruction or two do to a sum: float32 multiply-adds; products of 16-bit pairs, added;
 * dot products of four bytes; dot products of two bf16. */
INLINE floats times_floats(floats sum, floats x, floats y) { return sum * x + y; }

INLINE words times_pairs(words sum, words x, words y) {
#if defined(__AVX2__) && !defined(__AVX512F__)
  return (words)_mm256_add_epi32((__m256i)y, _mm256_madd_epi16((__m256i)sum, (__m256i)x));
#else
  return sum * x + y;
#endif
}

INLINE words times_bytes(words sum, words x, words y) {
#if defined(__AVX512VNNI__)
  return (words)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)x, (__m512i)y);
#else
  return sum * x + y;
#endif
}

INLINE floats times_bf16(floats sum, floats x, floats y) {
#if defined(__AVX512BF16__)
  return (floats)_mm512_dpbf16_ps((__m512)sum, (__m512bh)x, (__m512bh)y);
#else
  return sum * x + y;
#endif
}

/* One thread's share of the chunks, each STEPS instructions on every sum; begin and end in `times`.
 * x and y come from outside and leave the sums finite. */
#define ROOF(name, vector, times_some)                                            \
  double name(together *t, int64_t *times, const void *x_bytes, const void *y_bytes) { \
    vector x, y, sums[SUMS];                                                      \
    memcpy(&x, x_bytes, sizeof x), memcpy(&y, y_bytes, sizeof y);                 \
    EVERY_SUM sums[i] = y, sums[i][0] += i; /* not one sum, many times */         \
    times[0] = together_begin(t);                                                 \
    while (together_take(t) >= 0)                                                 \
      for (int step = 0; step < STEPS; step++) EVERY_SUM sums[i] = times_some(sums[i], x, y); \
    times[1] = now_ns();                                                          \
    double all = 0;                                                               \
    EVERY_SUM for (int lane = 0; lane < LANES; lane++) all += sums[i][lane];      \
    return all;                                                                   \
  }

ROOF(multiply_floats, floats, times_floats)
ROOF(multiply_pairs, words, times_pairs)
ROOF(multiply_bytes, words, times_bytes)
ROOF(multiply_bf16, floats, times_bf16)

int64_t multiply_sums(void) { return (int64_t)STEPS * SUMS * LANES; }
