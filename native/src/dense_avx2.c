/* Dense modules with AVX2: float32 multiply-adds over widened weights, as the AVX-512 path without
 * bf16 dot products. Roundings are where the reference implementation rounds; sums are float32 and
 * in one order, so a row's result does not depend on the rows beside it. Empty where the target is
 * not x86-64. */
#if defined(__x86_64__)
#include <immintrin.h>
#include <math.h>
#include <string.h>

#include "dense.h"

#define INLINE static inline __attribute__((always_inline))

/* Sixteen registers hold the sums of six rows and sixteen outputs, or of three rows and a panel. */
enum { LANES = 8, VECTORS = OS_PANEL / LANES, MAX_BLOCK_ROWS = 6, AHEAD_BYTES = 4096 };
enum { WIDE_INPUTS = 256 }; /* inputs of a block's rows that are floats at a time: fits L1 */

/* ---- bfloat16 ------------------------------------------------------------------------------ */

INLINE __m256 widen(__m128i halves) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
}

/* `left` elements at least one; those beyond are zero. */
INLINE __m256 load(const uint16_t *from, int32_t left) {
  if (left >= LANES) return widen(_mm_loadu_si128((const __m128i *)from));
  uint16_t part[LANES] = {0};
  memcpy(part, from, (size_t)left * sizeof *part);
  return widen(_mm_loadu_si128((const __m128i *)part));
}

/* To nearest even; a NaN stays one. */
INLINE __m128i narrow(__m256 x) {
  const __m256i bits = _mm256_castps_si256(x), one = _mm256_set1_epi32(1);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), one);
  const __m256i sum = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
  const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
  const __m256i high = _mm256_srli_epi32(_mm256_blendv_epi8(sum, quiet, is_nan), 16);
  const __m256i packed = _mm256_packus_epi32(high, high); /* within each half */
  return _mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x08));
}

INLINE __m256 rounded(__m256 x) { return widen(narrow(x)); }

INLINE void store(uint16_t *to, int32_t left, __m256 x) {
  const __m128i halves = narrow(x);
  if (left >= LANES) {
    _mm_storeu_si128((__m128i *)to, halves);
    return;
  }
  uint16_t part[LANES];
  _mm_storeu_si128((__m128i *)part, halves);
  memcpy(to, part, (size_t)left * sizeof *part);
}

/* ---- products ------------------------------------------------------------------------------ */

INLINE void prefetch(const uint16_t *w) { _mm_prefetch((const char *)w + AHEAD_BYTES, _MM_HINT_T0); }

/* One of two neighbouring inputs: the even ones lie in the low halves of the weights' pairs. */
INLINE void add_input(__m256 sums[][VECTORS], const __m256 *weights, float wide[][WIDE_INPUTS],
                      int32_t input, const int rows, const int vectors) {
  for (int r = 0; r < rows; r++) {
    const __m256 x = _mm256_broadcast_ss(&wide[r][input]);
    for (int v = 0; v < vectors; v++) sums[r][v] = _mm256_fmadd_ps(weights[v], x, sums[r][v]);
  }
}

/* `rows` rows times `vectors` vectors of outputs (constants once inlined) over `inputs` inputs. Sums
 * are copied one by one, so that the compiler keeps them in registers meanwhile. */
INLINE void multiply(__m256 kept[][VECTORS], float wide[][WIDE_INPUTS], int32_t inputs,
                     const uint16_t *w, const int rows, const int vectors) {
  const __m256i odd_half = _mm256_set1_epi32((int)0xffff0000);
  __m256 sums[MAX_BLOCK_ROWS][VECTORS];
  for (int r = 0; r < rows; r++)
    for (int v = 0; v < vectors; v++) sums[r][v] = kept[r][v];
  for (int32_t i = 0; i < inputs; i += 2, w += OS_PANEL * 2) {
    __m256 weights[VECTORS];
    for (int v = 0; v < vectors; v++) {
      const __m256i pairs = _mm256_loadu_si256((const __m256i *)(w + v * LANES * 2));
      weights[v] = _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16));
      if (v % 2 == 0) prefetch(w + v * LANES * 2);
    }
    add_input(sums, weights, wide, i, rows, vectors);
    for (int v = 0; v < vectors; v++) {
      const __m256i pairs = _mm256_loadu_si256((const __m256i *)(w + v * LANES * 2));
      weights[v] = _mm256_castsi256_ps(_mm256_and_si256(pairs, odd_half));
    }
    add_input(sums, weights, wide, i + 1, rows, vectors);
  }
  for (int r = 0; r < rows; r++)
    for (int v = 0; v < vectors; v++) kept[r][v] = sums[r][v];
}

INLINE void widen_rows(const os_product *p, int32_t row, int32_t first, int32_t inputs,
                       float wide[][WIDE_INPUTS], const int rows) {
  for (int r = 0; r < rows; r++) {
    const uint16_t *x = p->x + (row + r) * p->x_stride + first;
    for (int32_t i = 0; i < inputs; i += LANES)
      _mm256_storeu_ps(wide[r] + i, load(x + i, inputs - i));
  }
}

INLINE void put(const os_product *p, int32_t column, int32_t row, __m256 sum) {
  const int32_t left = p->linear->outputs - column;
  if (left <= 0) return;
  uint16_t *y = p->y + row * p->y_stride + column;
  store(y, left, p->add ? _mm256_add_ps(load(y, left), rounded(sum)) : sum);
}

/* `rows` (a constant once inlined) rows times one panel, `vectors` of its vectors at a time. */
INLINE void block(const os_product *p, int32_t panel, int32_t row, const int rows,
                  const int vectors) {
  const os_packed *l = p->linear;
  const int32_t column = panel * OS_PANEL;
  const uint16_t *weights = l->panels + (int64_t)panel * l->inputs * OS_PANEL;
  float wide[MAX_BLOCK_ROWS][WIDE_INPUTS];
  __m256 kept[VECTORS / 2][MAX_BLOCK_ROWS][VECTORS];
  const int parts = VECTORS / vectors;
  for (int part = 0; part < parts; part++)
    for (int r = 0; r < rows; r++)
      for (int v = 0; v < vectors; v++)
        kept[part][r][v] = _mm256_loadu_ps(l->bias + column + (part * vectors + v) * LANES);
  for (int32_t first = 0; first < l->inputs; first += WIDE_INPUTS) {
    const int32_t left = l->inputs - first, inputs = left < WIDE_INPUTS ? left : WIDE_INPUTS;
    widen_rows(p, row, first, inputs, wide, rows);
    for (int part = 0; part < parts; part++) {
      multiply(kept[part], wide, inputs,
               weights + (int64_t)first * OS_PANEL + part * vectors * LANES * 2, rows, vectors);
    }
  }
  for (int part = 0; part < parts; part++)
    for (int r = 0; r < rows; r++)
      for (int v = 0; v < vectors; v++)
        put(p, column + (part * vectors + v) * LANES, row + r, kept[part][r][v]);
}

static void blocks(const os_product *p, int32_t panel, int32_t row, int32_t rows) {
  switch (rows) {
    case 1: block(p, panel, row, 1, 4); break;
    case 2: block(p, panel, row, 2, 4); break;
    case 3: block(p, panel, row, 3, 2); break;
    case 4: block(p, panel, row, 4, 2); break;
    case 5: block(p, panel, row, 5, 2); break;
    default: block(p, panel, row, 6, 2); break;
  }
}

/* Blocks of nearly equal size: a short last one would leave multipliers idle. */
static void product(const os_product *p, int32_t first_panel, int32_t end_panel) {
  const int32_t parts = (p->rows + MAX_BLOCK_ROWS - 1) / MAX_BLOCK_ROWS;
  for (int32_t panel = first_panel; panel < end_panel; panel++)
    for (int32_t part = 0, row = 0; part < parts; part++) {
      const int32_t rows = (p->rows - row) / (parts - part);
      blocks(p, panel, row, rows);
      row += rows;
    }
}

/* ---- element by element --------------------------------------------------------------------- */

INLINE float sum_of(__m256 x) {
  __m128 sum = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
  return _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)));
}

static void norm(const uint16_t *x, const uint16_t *weight, float eps, int32_t size, uint16_t *y) {
  __m256 squares = _mm256_setzero_ps();
  for (int32_t i = 0; i < size; i += LANES) {
    const __m256 part = load(x + i, size - i);
    squares = _mm256_fmadd_ps(part, part, squares);
  }
  const __m256 factor = _mm256_set1_ps(1.0f / sqrtf(sum_of(squares) / (float)size + eps));
  for (int32_t i = 0; i < size; i += LANES) {
    const __m256 normed = rounded(_mm256_mul_ps(load(x + i, size - i), factor));
    store(y + i, size - i, _mm256_mul_ps(normed, load(weight + i, size - i)));
  }
}

INLINE __m256 turned(__m256 own, __m256 cosine, __m256 partner, __m256 sine) {
  return _mm256_add_ps(rounded(_mm256_mul_ps(own, cosine)), rounded(_mm256_mul_ps(partner, sine)));
}

static void rotate(uint16_t *head, const uint16_t *rope, int32_t size) {
  const int32_t half = size / 2;
  for (int32_t i = 0; i < half; i += LANES) {
    const int32_t left = half - i;
    const uint16_t *cosine = rope + i, *sine = rope + size + i;
    const __m256 low = load(head + i, left), high = load(head + half + i, left);
    store(head + i, left, turned(low, load(cosine, left), high, load(sine, left)));
    store(head + half + i, left,
          turned(high, load(cosine + half, left), low, load(sine + half, left)));
  }
}

INLINE __m256 power_of_two(__m256i n) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23));
}

/* e^x within 2 ulp for |x| <= 100: x = n ln 2 + f with ln 2 in two parts, then a polynomial in f;
 * 2^n in two factors, because n may leave a float's exponents. */
INLINE __m256 exponential(__m256 x) {
  const __m256 n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(1.44269504f)),
                                   _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m256 f = _mm256_fnmadd_ps(n, _mm256_set1_ps(0.693359375f), x);
  f = _mm256_fnmadd_ps(n, _mm256_set1_ps(-2.12194440e-4f), f);
  const float series[] = {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f};
  __m256 sum = _mm256_set1_ps(1.0f / 5040);
  for (int i = 0; i < 7; i++) sum = _mm256_fmadd_ps(sum, f, _mm256_set1_ps(series[i]));
  const __m256i whole = _mm256_cvtps_epi32(n), half = _mm256_srai_epi32(whole, 1);
  sum = _mm256_mul_ps(sum, power_of_two(half));
  return _mm256_mul_ps(sum, power_of_two(_mm256_sub_epi32(whole, half)));
}

static void gate(const uint16_t *gates, const uint16_t *up, int32_t size, uint16_t *y) {
  const __m256 zero = _mm256_setzero_ps(), one = _mm256_set1_ps(1.0f);
  const __m256 low = _mm256_set1_ps(-100.0f), high = _mm256_set1_ps(100.0f);
  for (int32_t i = 0; i < size; i += LANES) {
    const int32_t left = size - i;
    const __m256 g = load(gates + i, left);
    /* Beyond the bounds float32 has no more to say. */
    const __m256 bounded = _mm256_max_ps(low, _mm256_min_ps(high, g));
    const __m256 e = exponential(_mm256_sub_ps(zero, bounded));
    const __m256 silu = rounded(_mm256_div_ps(g, _mm256_add_ps(one, e)));
    store(y + i, left, _mm256_mul_ps(silu, load(up + i, left)));
  }
}

const os_dense_kernel os_dense_avx2 = {product, norm, rotate, gate};
#else
typedef int os_no_dense_avx2; /* ISO C wants one declaration */
#endif
