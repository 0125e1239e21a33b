/* Traits of the two AVX-512 paths: sixteen-lane vectors, one part per block. */
#ifndef OS_TRAITS_AVX512_H
#define OS_TRAITS_AVX512_H

#include <immintrin.h>
#include <stdint.h>

typedef float part __attribute__((vector_size(64)));

enum { PART_LANES = 16, SCORE_ROWS = 12, WEIGH_ROWS = 12, FEW_QUERIES = 4, SHARED_QUERIES = 12 };
enum { WHOLE_PARTS = 4, REST_PARTS = 1, SPREAD_FETCHES = 0 };
#define score_parts(few, rows) ((few) ? 4 : 2)
#define weigh_parts score_parts

static inline part part_max(part a, part b) { return (part)_mm512_max_ps((__m512)a, (__m512)b); }

static inline float part_peak(part a) { return _mm512_reduce_max_ps((__m512)a); }

static inline int part_above(part x, float limit) {
  return _mm512_cmp_ps_mask((__m512)x, _mm512_set1_ps(limit), _CMP_GT_OQ) != 0;
}

#define HAVE_SCALE 1

static inline part part_fraction(part x) {
  return (part)_mm512_reduce_ps((__m512)x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
}

static inline part part_scaled(part y, part x) {
  const __mmask16 counts = _mm512_cmp_ps_mask((__m512)x, _mm512_set1_ps(-126.0f), _CMP_NLT_UQ);
  return (part)_mm512_maskz_scalef_ps(counts, (__m512)y, (__m512)x);
}

static inline part words_bf16(__m512i words, const int odd) {
  return (part)_mm512_castsi512_ps(odd ? _mm512_and_si512(words, _mm512_set1_epi32((int)0xffff0000))
                                       : _mm512_slli_epi32(words, 16));
}

static inline part side_bf16(const uint16_t *pairs, const int odd) {
  return words_bf16(_mm512_loadu_si512(pairs), odd);
}

static inline part half_bf16(const uint16_t *pairs, const int odd) {
  const __m256i words = _mm256_loadu_si256((const __m256i *)pairs);
  return words_bf16(_mm512_zextsi256_si512(words), odd);
}

static inline part part_f16(const uint16_t *values) {
  return (part)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)values));
}

static inline part half_f16(const uint16_t *values) {
  const __m128i halves = _mm_loadu_si128((const __m128i *)values);
  return (part)_mm512_cvtph_ps(_mm256_zextsi128_si256(halves));
}

static inline part half_f32(const float *row) { return (part)_mm512_maskz_loadu_ps(0xff, row); }

#endif
