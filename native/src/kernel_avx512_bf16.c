/* AVX-512 with bf16 dot products. Empty where the target is not x86-64. */
#if defined(__x86_64__)
#include "traits_avx512.h"

#define HAVE_BF16_DOT 1

/* acc[t] += k[t][0] * q[0] + k[t][1] * q[1]; `q` points at one bf16 pair. */
static inline part dot_bf16(part acc, const uint8_t *k, const float *q) {
  __m512bh keys = (__m512bh)_mm512_loadu_si512(k);
  __m512bh pair = (__m512bh)_mm512_castps_si512(_mm512_set1_ps(*q));
  return (part)_mm512_dpbf16_ps((__m512)acc, keys, pair);
}

#define KERNEL os_kernel_avx512_bf16
#define KERNEL_NAME "avx512_bf16"
#include "kernel.inc"
#else
typedef int os_no_avx512_bf16; /* ISO C wants one declaration */
#endif
