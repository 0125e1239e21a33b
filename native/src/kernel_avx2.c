/* AVX2 with FMA and F16C: eight-lane vectors. Empty where the target is not x86-64. */
#if defined(__x86_64__)
#include <immintrin.h>
#include <stdint.h>

typedef float part __attribute__((vector_size(32)));

/* Twice what the registers hold: 6 and 8 shared queries were slower on Zen 3, 16 no faster. */
enum { PART_LANES = 8, SCORE_ROWS = 6, WEIGH_ROWS = 6, FEW_QUERIES = 0, SHARED_QUERIES = 12 };
enum { WHOLE_PARTS = 2, REST_PARTS = 2, SPREAD_FETCHES = 1 };

/* Two multiply-adds a cycle that take four cycles each want eight sums at least. */
static inline int score_parts(int few, int rows) {
  (void)few;
  return rows <= 2 ? 4 : rows == 3 ? 3 : 2;
}

#define weigh_parts score_parts

static inline part part_max(part a, part b) { return (part)_mm256_max_ps((__m256)a, (__m256)b); }

static inline float part_peak(part a) {
  __m128 x = _mm_max_ps(_mm256_castps256_ps128((__m256)a), _mm256_extractf128_ps((__m256)a, 1));
  x = _mm_max_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)));
}

static inline int part_above(part x, float limit) {
  return _mm256_movemask_ps(_mm256_cmp_ps((__m256)x, _mm256_set1_ps(limit), _CMP_GT_OQ)) != 0;
}

#define HAVE_FACTOR 1

typedef part factor;

/* Not intrinsics: gcc 12 loads early and copies sums, until these no longer fit the registers. */
static inline factor factor_load(const float *from) {
  factor all;
  __asm__ volatile("vbroadcastss %1, %0" : "=x"(all) : "m"(*from));
  return all;
}

static inline part part_plus(part sum, part x, factor y) {
  __asm__ volatile("vfmadd231ps %2, %1, %0" : "+x"(sum) : "x"(x), "x"(y));
  return sum;
}

/* Read once for each side: gcc would hold the words of both in registers that the sums need. */
static inline part side_bf16(const uint16_t *pairs, const int odd) {
  const __m256i_u *words = (const __m256i_u *)pairs;
  part side;
  if (odd)
    __asm__ volatile("vmovdqu %1, %0\n\tvpand %2, %0, %0"
                     : "=&x"(side)
                     : "m"(*words), "xm"(_mm256_set1_epi32((int)0xffff0000)));
  else
    __asm__ volatile("vmovdqu %1, %0\n\tvpslld $16, %0, %0" : "=x"(side) : "m"(*words));
  return side;
}

static inline part part_f16(const uint16_t *values) {
  part all;
  __asm__ volatile("vcvtph2ps %1, %0" : "=x"(all) : "m"(*(const __m128i_u *)values));
  return all;
}

#define HAVE_PAIR_DOT 1

static inline float part_sum(part x) {
  __m128 half = _mm_add_ps(_mm256_castps256_ps128((__m256)x), _mm256_extractf128_ps((__m256)x, 1));
  half = _mm_add_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
}

typedef int32_t whole_bits __attribute__((vector_size(32)));

static inline whole_bits dot_pairs(whole_bits sum, whole_bits a, whole_bits b) {
  return (whole_bits)_mm256_add_epi32((__m256i)sum, _mm256_madd_epi16((__m256i)a, (__m256i)b));
}

static inline void store_pairs(float *to, whole_bits x) {
  const __m256i later = _mm256_bsrli_epi128((__m256i)x, 8); /* elements 2, 3 and 6, 7 */
  const __m256i pairs = _mm256_blend_epi16((__m256i)x, _mm256_slli_epi32(later, 16), 0xaa);
  const __m256i packed = _mm256_permute4x64_epi64(pairs, 0x08);
  _mm_storeu_si128((__m128i *)to, _mm256_castsi256_si128(packed));
}

/* Head sizes are multiples of 8: no half part is ever left over. */
#define half_bf16(pairs, odd) ((part){0})
#define half_f16(row) ((part){0})
#define half_f32(row) ((part){0})

#define KERNEL os_kernel_avx2
#define KERNEL_NAME "avx2"
#include "kernel.inc"
#else
typedef int os_no_avx2; /* ISO C wants one declaration */
#endif
