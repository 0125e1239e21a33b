/* Traits of the two AVX-512 paths: sixteen-lane vectors, one part per block. */
#ifndef OS_TRAITS_AVX512_H
#define OS_TRAITS_AVX512_H

#include <immintrin.h>
#include <stdint.h>

#include "omniserve.h"

typedef float part __attribute__((vector_size(64)));

enum { PART_LANES = 16, SCORE_ROWS = 6, SCORE_BLOCKS = 4, WEIGH_ROWS = 6, WEIGH_PARTS = 4 };

static inline part part_max(part a, part b) { return (part)_mm512_max_ps((__m512)a, (__m512)b); }

static inline float part_peak(part a) { return _mm512_reduce_max_ps((__m512)a); }

static inline part widen_bf16(__m256i halves) {
  return (part)_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}

static inline void pair_bf16(const uint16_t *row, part *even, part *odd) {
  __m512i words = _mm512_loadu_si512(row);
  *even = (part)_mm512_castsi512_ps(_mm512_slli_epi32(words, 16));
  *odd = (part)_mm512_castsi512_ps(_mm512_and_si512(words, _mm512_set1_epi32((int)0xffff0000)));
}

static inline void pair_f16(const uint16_t *row, part *even, part *odd) {
  __m512i words = _mm512_loadu_si512(row);
  *even = (part)_mm512_cvtph_ps(_mm512_cvtepi32_epi16(words));
  *odd = (part)_mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_srli_epi32(words, 16)));
}

static inline part load_bf16(const uint16_t *row) {
  return widen_bf16(_mm256_loadu_si256((const __m256i *)row));
}

static inline part load_f16(const uint16_t *row) {
  return (part)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)row));
}

static inline part load_half(int dtype, const uint8_t *row, int d) {
  if (dtype == OS_F32) return (part)_mm512_maskz_loadu_ps(0xff, (const float *)row + d);
  __m128i halves = _mm_loadu_si128((const __m128i *)((const uint16_t *)row + d));
  if (dtype == OS_F16) return (part)_mm512_zextps256_ps512(_mm256_cvtph_ps(halves));
  return widen_bf16(_mm256_zextsi128_si256(halves));
}

#endif
