/* AVX-512 with dot products of bf16 and of bytes. Empty where the target is not x86-64. */
#if defined(__x86_64__)
#include "traits_vnni.h"

#define HAVE_BF16_DOT 1

typedef __m512i bf16_pairs;

static inline bf16_pairs pairs_load(const uint8_t *from) { return _mm512_loadu_si512(from); }

static inline bf16_pairs pairs_half(const uint8_t *from) {
  return _mm512_zextsi256_si512(_mm256_loadu_si256((const __m256i *)from));
}

static inline bf16_pairs pairs_first(bf16_pairs pairs) {
  return _mm512_and_si512(pairs, _mm512_set1_epi32(0xffff));
}

/* acc[i] += x[i][0] * y[0] + x[i][1] * y[1]; `y` points at one bf16 pair. */
static inline part dot_bf16(part acc, bf16_pairs x, const float *y) {
  __m512bh pair = (__m512bh)_mm512_castps_si512(_mm512_set1_ps(*y));
  return (part)_mm512_dpbf16_ps((__m512)acc, (__m512bh)x, pair);
}

/* Stores x rounded to bf16 and returns what was stored. */
static inline part round_bf16(uint16_t *to, part x) {
  const __m256i halves = (__m256i)_mm512_cvtneps_pbh((__m512)x);
  _mm256_storeu_si256((__m256i *)to, halves);
  return (part)_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}

#define KERNEL os_kernel_avx512_bf16
#define KERNEL_NAME "avx512_bf16"
#include "kernel.inc"
#else
typedef int os_no_avx512_bf16; /* ISO C wants one declaration */
#endif
