/* Conversions between activations' and KV's dtypes; to 16 bits round to nearest even. */
#ifndef OS_CONVERT_H
#define OS_CONVERT_H

#ifdef __F16C__
#include <immintrin.h>
#endif
#include <string.h>

#include "omniserve.h"

static inline size_t os_dtype_bytes(int32_t dtype) {
  return dtype == OS_F32 ? 4 : dtype == OS_I8 ? 1 : 2;
}

static inline float os_bf16_to_f32(uint16_t bits) {
  uint32_t wide = (uint32_t)bits << 16;
  float value;
  memcpy(&value, &wide, 4);
  return value;
}

static inline uint16_t os_f32_to_bf16(float value) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  const uint32_t quiet = (bits >> 16) | 0x40; /* rounding could turn NaN to Inf */
  const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  return (uint16_t)((bits & INT32_MAX) > 0x7f800000 ? quiet : rounded);
}

__extension__ typedef _Float16 os_half;

static inline float os_f16_to_f32(uint16_t bits) {
  os_half half;
  memcpy(&half, &bits, 2);
  return (float)half;
}

static inline uint16_t os_f32_to_f16(float value) {
  os_half half = (os_half)value;
  uint16_t bits;
  memcpy(&bits, &half, 2);
  return bits;
}

/* gcc 12 converts one at a time. */
static inline void os_halves_to_f32(float *to, const uint16_t *bits, int32_t count) {
  int32_t i = 0;
#ifdef __F16C__
  for (; i + 8 <= count; i += 8)
    _mm256_storeu_ps(to + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(bits + i))));
#endif
  for (; i < count; i++) to[i] = os_f16_to_f32(bits[i]);
}

static inline void os_f32_to_halves(uint16_t *bits, const float *from, int32_t count) {
  int32_t i = 0;
#ifdef __F16C__
  for (; i + 8 <= count; i += 8)
    _mm_storeu_si128((__m128i *)(bits + i),
                     _mm256_cvtps_ph(_mm256_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT));
#endif
  for (; i < count; i++) bits[i] = os_f32_to_f16(from[i]);
}

static inline void os_to_f32(float *to, const void *from, int32_t dtype, int32_t count) {
  if (dtype == OS_F32) {
    memcpy(to, from, (size_t)count * 4);
    return;
  }
  const uint16_t *bits = from;
  if (dtype == OS_BF16)
    for (int32_t i = 0; i < count; i++) to[i] = os_bf16_to_f32(bits[i]);
  else
    os_halves_to_f32(to, bits, count);
}

static inline void os_from_f32(void *to, const float *from, int32_t dtype, int32_t count) {
  if (dtype == OS_F32) {
    memcpy(to, from, (size_t)count * 4);
    return;
  }
  uint16_t *bits = to;
  if (dtype == OS_BF16)
    for (int32_t i = 0; i < count; i++) bits[i] = os_f32_to_bf16(from[i]);
  else
    os_f32_to_halves(bits, from, count);
}

#endif
