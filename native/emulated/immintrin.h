/* AVX-512 on a machine without it, for tests (native/emulated.sh): SIMDe has most intrinsics, the rest
 * of those that the library uses is here, over vectors that the compiler lowers to AVX2. Where
 * rounding can be told apart it is the hardware's, but for the direction of _mm512_reduce_ps' own. */
#ifndef OS_EMULATED_IMMINTRIN_H
#define OS_EMULATED_IMMINTRIN_H

#include_next <immintrin.h>

#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__)
#error "this header is for targets without AVX-512"
#endif
#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>

typedef float os_floats __attribute__((vector_size(64)));
typedef int32_t os_words __attribute__((vector_size(64)));
typedef uint32_t os_unsigned __attribute__((vector_size(64)));
typedef int16_t os_shorts __attribute__((vector_size(32)));
typedef uint16_t os_halves __attribute__((vector_size(32)));
typedef int8_t os_chars __attribute__((vector_size(16)));

/* ---- conversions ----------------------------------------------------------------------------- */

static inline __m256 os_half_ps(__m512 x, int i) {
  __m256 half;
  memcpy(&half, (const char *)&x + i * (int)sizeof half, sizeof half);
  return half;
}

static inline __m512 os_cvtepi32_ps(__m512i x) {
  return (__m512)__builtin_convertvector((os_words)x, os_floats);
}

static inline __m512i os_cvtps_epi32(__m512 x) {
  const __m256i halves[2] = {_mm256_cvtps_epi32(os_half_ps(x, 0)),
                             _mm256_cvtps_epi32(os_half_ps(x, 1))};
  __m512i whole;
  memcpy(&whole, halves, sizeof whole);
  return whole;
}

static inline __m512 os_cvtph_ps(__m256i x) {
  const __m256 halves[2] = {_mm256_cvtph_ps(_mm256_castsi256_si128(x)),
                            _mm256_cvtph_ps(_mm256_extracti128_si256(x, 1))};
  __m512 wide;
  memcpy(&wide, halves, sizeof wide);
  return wide;
}

static inline __m256i os_cvtepi32_epi16(__m512i x) {
  return (__m256i)__builtin_convertvector((os_words)x, os_shorts);
}

static inline __m128i os_cvtepi32_epi8(__m512i x) {
  return (__m128i)__builtin_convertvector((os_words)x, os_chars);
}

static inline __m512i os_cvtepu16_epi32(__m256i x) {
  return (__m512i)__builtin_convertvector((os_halves)x, os_unsigned);
}

/* To nearest even; what is too small for a normal number becomes 0, a NaN stays one. */
static inline __m256bh os_cvtneps_pbh(__m512 x) {
  os_unsigned bits = (os_unsigned)x;
  const os_unsigned magnitude = bits & 0x7fffffff;
  const os_unsigned small = (os_unsigned)(magnitude < 0x00800000);
  const os_unsigned nan = (os_unsigned)(magnitude > 0x7f800000);
  bits &= ~small | 0x80000000;
  const os_unsigned near = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16, quiet = (bits >> 16) | 0x40;
  return (__m256bh)__builtin_convertvector((nan & quiet) | (~nan & near), os_halves);
}

static inline __m512i os_zextsi256_si512(__m256i x) {
  __m512i wide = {0};
  memcpy(&wide, &x, sizeof x);
  return wide;
}

/* ---- sums and parts of numbers ---------------------------------------------------------------- */

static inline float os_reduce_add_ps(__m512 x) {
  const __m256 eight = _mm256_add_ps(os_half_ps(x, 0), os_half_ps(x, 1));
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return two[0] + two[1];
}

static inline float os_reduce_max_ps(__m512 x) {
  const __m256 eight = _mm256_max_ps(os_half_ps(x, 0), os_half_ps(x, 1));
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

/* x - floor(x); 0 for an infinity. */
static inline __m512 os_fraction_ps(__m512 x) {
  const __m256 floors[2] = {_mm256_floor_ps(os_half_ps(x, 0)), _mm256_floor_ps(os_half_ps(x, 1))};
  os_floats floor;
  memcpy(&floor, floors, sizeof floor);
  const os_words infinite = ((os_words)x & 0x7fffffff) == 0x7f800000;
  return (__m512)(~infinite & (os_words)((os_floats)x - floor));
}

/* Its only use; another control word does not compile. */
#define os_reduce_ps(x, control) \
  ((void)sizeof(char[(control) == (_MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC) ? 1 : -1]), \
   os_fraction_ps(x))

/* ---- some lanes of memory --------------------------------------------------------------------- */

static inline __m512 os_maskz_loadu_ps(__mmask16 mask, const void *from) {
  float lanes[16] = {0};
  for (int i = 0; i < 16; i++)
    if (mask >> i & 1) memcpy(lanes + i, (const char *)from + i * 4, 4);
  __m512 x;
  memcpy(&x, lanes, sizeof x);
  return x;
}

static inline __m256i os_maskz_loadu_epi16(__mmask16 mask, const void *from) {
  uint16_t lanes[16] = {0};
  for (int i = 0; i < 16; i++)
    if (mask >> i & 1) memcpy(lanes + i, (const char *)from + i * 2, 2);
  __m256i x;
  memcpy(&x, lanes, sizeof x);
  return x;
}

static inline void os_mask_storeu_epi16(void *to, __mmask16 mask, __m256i x) {
  for (int i = 0; i < 16; i++)
    if (mask >> i & 1) memcpy((char *)to + i * 2, (const char *)&x + i * 2, 2);
}

#define _mm512_cvtepi32_ps os_cvtepi32_ps
#define _mm512_cvtps_epi32 os_cvtps_epi32
#define _mm512_cvtph_ps os_cvtph_ps
#define _mm512_cvtepi32_epi16 os_cvtepi32_epi16
#define _mm512_cvtepi32_epi8 os_cvtepi32_epi8
#define _mm512_cvtepu16_epi32 os_cvtepu16_epi32
#define _mm512_cvtneps_pbh os_cvtneps_pbh
#define _mm512_zextsi256_si512 os_zextsi256_si512
#define _mm512_reduce_add_ps os_reduce_add_ps
#define _mm512_reduce_max_ps os_reduce_max_ps
#undef _mm512_reduce_ps /* without optimisation it is a macro */
#define _mm512_reduce_ps os_reduce_ps
#define _mm512_maskz_loadu_ps os_maskz_loadu_ps
#define _mm256_maskz_loadu_epi16 os_maskz_loadu_epi16
#define _mm256_mask_storeu_epi16 os_mask_storeu_epi16

#endif
