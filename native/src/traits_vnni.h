/* Byte dot products of AVX-512 VNNI. */
#ifndef OS_TRAITS_VNNI_H
#define OS_TRAITS_VNNI_H

#include "traits_avx512.h"

#define HAVE_BYTE_DOT 1

typedef __m512i quads;

static inline float part_sum(part x) { return _mm512_reduce_add_ps((__m512)x); }

static inline quads quads_load(const uint8_t *from) { return _mm512_loadu_si512(from); }

static inline quads quads_set(int32_t word) { return _mm512_set1_epi32(word); }

/* Not the intrinsic: gcc 12 copies the sums around it, which costs a quarter of the speed. */
static inline quads dot_quads(quads sum, quads u, quads s) {
#ifdef OS_EMULATED /* see isa.c */
  sum = _mm512_dpbusd_epi32(sum, u, s);
#else
  __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(u), "v"(s));
#endif
  return sum;
}

static inline part quads_part(quads x) { return (part)_mm512_cvtepi32_ps(x); }

static inline void part_bytes(uint8_t *high, uint8_t *low, part x) {
  const __m512i whole = _mm512_cvtps_epi32((__m512)x);
  _mm_storeu_si128((__m128i *)high, _mm512_cvtepi32_epi8(_mm512_srli_epi32(whole, 8)));
  _mm_storeu_si128((__m128i *)low, _mm512_cvtepi32_epi8(whole));
}

#endif
