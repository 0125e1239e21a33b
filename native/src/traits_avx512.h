/* Traits of the two AVX-512 paths: sixteen-lane vectors, one part per block. */
#ifndef OS_TRAITS_AVX512_H
#define OS_TRAITS_AVX512_H

#include <immintrin.h>
#include <stdint.h>

#include "omniserve.h"

typedef float part __attribute__((vector_size(64)));

enum { PART_LANES = 16, SCORE_ROWS = 8, SCORE_BLOCKS = 2, WEIGH_ROWS = 8, WEIGH_PARTS = 2 };
enum { FEW_QUERIES = 4, FEW_BLOCKS = 4, FEW_PARTS = 4 };

static inline part part_max(part a, part b) { return (part)_mm512_max_ps((__m512)a, (__m512)b); }

static inline float part_peak(part a) { return _mm512_reduce_max_ps((__m512)a); }

static inline void split_bf16(__m512i words, part *even, part *odd) {
  *even = (part)_mm512_castsi512_ps(_mm512_slli_epi32(words, 16));
  *odd = (part)_mm512_castsi512_ps(_mm512_and_si512(words, _mm512_set1_epi32((int)0xffff0000)));
}

static inline void split_f16(__m512i words, part *even, part *odd) {
  *even = (part)_mm512_cvtph_ps(_mm512_cvtepi32_epi16(words));
  *odd = (part)_mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_srli_epi32(words, 16)));
}

static inline void pair_bf16(const uint16_t *row, part *even, part *odd) {
  split_bf16(_mm512_loadu_si512(row), even, odd);
}

static inline void pair_f16(const uint16_t *row, part *even, part *odd) {
  split_f16(_mm512_loadu_si512(row), even, odd);
}

static inline void half_pair(int dtype, const uint16_t *row, part *even, part *odd) {
  const __m512i words = _mm512_zextsi256_si512(_mm256_loadu_si256((const __m256i *)row));
  if (dtype == OS_F16)
    split_f16(words, even, odd);
  else
    split_bf16(words, even, odd);
}

static inline part half_f32(const float *row) { return (part)_mm512_maskz_loadu_ps(0xff, row); }

#endif
