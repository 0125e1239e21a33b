/* Dense modules with AVX-512 bf16 dot products. Empty where the target is not x86-64.
 *
 * Every rounding happens where the model's reference implementation rounds: after each product,
 * norm, scale and sum. Sums are float32 and in one order, so a row's result does not depend on the
 * rows beside it. */
#if defined(__x86_64__)
#include <immintrin.h>
#include <math.h>
#include <string.h>

#include "dense.h"

#define INLINE static inline __attribute__((always_inline))

enum { LANES = 16, HALVES = OS_PANEL / LANES, MAX_BLOCK_ROWS = 12, AHEAD_BYTES = 4096 };

INLINE __mmask16 lanes(int32_t left) {
  return left >= LANES ? (__mmask16)0xffff : (__mmask16)((1u << left) - 1);
}

INLINE __m512 widen(__m256i halves) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}

INLINE __m512 load(const uint16_t *from, __mmask16 mask) {
  return widen(_mm256_maskz_loadu_epi16(mask, from));
}

INLINE __m256i narrow(__m512 x) { return (__m256i)_mm512_cvtneps_pbh(x); }

INLINE __m512 rounded(__m512 x) { return widen(narrow(x)); }

INLINE void store(uint16_t *to, __mmask16 mask, __m512 x) {
  _mm256_mask_storeu_epi16(to, mask, narrow(x));
}

/* ---- products ------------------------------------------------------------------------------ */

/* `rows` (a constant once inlined) rows times one panel. */
INLINE void block(const os_product *p, int32_t panel, int32_t row, const int rows) {
  const os_packed *l = p->linear;
  const int32_t pairs = l->inputs / 2, column = panel * OS_PANEL;
  const uint16_t *w = l->panels + (int64_t)panel * pairs * OS_PANEL * 2;
  const uint16_t *x = p->x + row * p->x_stride;
  __m512 acc[MAX_BLOCK_ROWS][HALVES];
  for (int r = 0; r < rows; r++)
    for (int h = 0; h < HALVES; h++) acc[r][h] = _mm512_loadu_ps(l->bias + column + h * LANES);
  for (int32_t i = 0; i < pairs; i++, w += OS_PANEL * 2) {
    __m512bh weight[HALVES];
    for (int h = 0; h < HALVES; h++) {
      weight[h] = (__m512bh)_mm512_loadu_si512(w + h * LANES * 2);
      _mm_prefetch((const char *)(w + h * LANES * 2) + AHEAD_BYTES, _MM_HINT_T0);
    }
    for (int r = 0; r < rows; r++) {
      int32_t pair;
      memcpy(&pair, x + r * p->x_stride + 2 * i, sizeof pair);
      for (int h = 0; h < HALVES; h++)
        acc[r][h] = _mm512_dpbf16_ps(acc[r][h], weight[h], (__m512bh)_mm512_set1_epi32(pair));
    }
  }
  for (int r = 0; r < rows; r++)
    for (int h = 0; h < HALVES && column + h * LANES < l->outputs; h++) {
      const __mmask16 mask = lanes(l->outputs - column - h * LANES);
      uint16_t *y = p->y + (row + r) * p->y_stride + column + h * LANES;
      store(y, mask, p->add ? _mm512_add_ps(load(y, mask), rounded(acc[r][h])) : acc[r][h]);
    }
}

static void blocks(const os_product *p, int32_t panel, int32_t row, int32_t rows) {
  switch (rows) {
    case 1: block(p, panel, row, 1); break;
    case 2: block(p, panel, row, 2); break;
    case 3: block(p, panel, row, 3); break;
    case 4: block(p, panel, row, 4); break;
    case 5: block(p, panel, row, 5); break;
    case 6: block(p, panel, row, 6); break;
    case 7: block(p, panel, row, 7); break;
    case 8: block(p, panel, row, 8); break;
    case 9: block(p, panel, row, 9); break;
    case 10: block(p, panel, row, 10); break;
    case 11: block(p, panel, row, 11); break;
    default: block(p, panel, row, 12); break;
  }
}

/* Blocks of nearly equal size: a short last one would leave dot product units idle. */
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

static void norm(const uint16_t *x, const uint16_t *weight, float eps, int32_t size, uint16_t *y) {
  __m512 squares = _mm512_setzero_ps();
  for (int32_t i = 0; i < size; i += LANES) {
    const __m512 part = load(x + i, lanes(size - i));
    squares = _mm512_fmadd_ps(part, part, squares);
  }
  const float mean = _mm512_reduce_add_ps(squares) / (float)size;
  const __m512 factor = _mm512_set1_ps(1.0f / sqrtf(mean + eps));
  for (int32_t i = 0; i < size; i += LANES) {
    const __mmask16 mask = lanes(size - i);
    const __m512 normed = rounded(_mm512_mul_ps(load(x + i, mask), factor));
    store(y + i, mask, _mm512_mul_ps(normed, load(weight + i, mask)));
  }
}

INLINE __m512 turned(__m512 own, __m512 cosine, __m512 partner, __m512 sine) {
  return _mm512_add_ps(rounded(_mm512_mul_ps(own, cosine)), rounded(_mm512_mul_ps(partner, sine)));
}

static void rotate(uint16_t *head, const uint16_t *rope, int32_t size) {
  const int32_t half = size / 2;
  for (int32_t i = 0; i < half; i += LANES) {
    const __mmask16 mask = lanes(half - i);
    const uint16_t *cosine = rope + i, *sine = rope + size + i;
    const __m512 low = load(head + i, mask), high = load(head + half + i, mask);
    store(head + i, mask, turned(low, load(cosine, mask), high, load(sine, mask)));
    store(head + half + i, mask,
          turned(high, load(cosine + half, mask), low, load(sine + half, mask)));
  }
}

/* e^x within 2 ulp: x = n ln 2 + f with ln 2 in two parts, then a polynomial in f. */
INLINE __m512 exponential(__m512 x) {
  const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 0);
  __m512 f = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
  f = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), f);
  const float series[] = {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f};
  __m512 sum = _mm512_set1_ps(1.0f / 5040);
  for (int i = 0; i < 7; i++) sum = _mm512_fmadd_ps(sum, f, _mm512_set1_ps(series[i]));
  return _mm512_scalef_ps(sum, n);
}

static void gate(const uint16_t *gates, const uint16_t *up, int32_t size, uint16_t *y) {
  const __m512 zero = _mm512_setzero_ps(), one = _mm512_set1_ps(1.0f);
  const __m512 low = _mm512_set1_ps(-100.0f), high = _mm512_set1_ps(100.0f);
  for (int32_t i = 0; i < size; i += LANES) {
    const __mmask16 mask = lanes(size - i);
    const __m512 g = load(gates + i, mask);
    /* Beyond the bounds float32 has no more to say, but the fraction would be noise. */
    const __m512 bounded = _mm512_max_ps(low, _mm512_min_ps(high, g));
    const __m512 e = exponential(_mm512_sub_ps(zero, bounded));
    const __m512 silu = rounded(_mm512_div_ps(g, _mm512_add_ps(one, e)));
    store(y + i, mask, _mm512_mul_ps(silu, load(up + i, mask)));
  }
}

const os_dense_kernel os_dense_avx512_bf16 = {product, norm, rotate, gate};
#else
typedef int os_no_dense_avx512_bf16; /* ISO C wants one declaration */
#endif
