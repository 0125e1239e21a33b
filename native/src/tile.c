#include "tile.h"

#include <math.h>
#include <string.h>

#include "convert.h"
#include "kernel.h"

#define LEAST_MAGNITUDE 1e-30f /* below it a row is 0: the scale's inverse would overflow */

size_t os_record_bytes(int32_t dtype, int32_t head_size) {
  const size_t scale = dtype == OS_I8 ? OS_SCALE_BYTES : 0;
  return (size_t)head_size * os_dtype_bytes(dtype) + scale;
}

size_t os_tile_bytes(int32_t dtype, int32_t head_size) {
  return 2 * OS_BLOCK_TOKENS * os_record_bytes(dtype, head_size);
}

/* ---- 4-byte units: a float, two 2-byte dims or four bytes ------------------------------------- */

/* K's units lie 16 lanes apart. */
static void put_units(uint8_t *half, int32_t units, int32_t lane, const uint8_t *k) {
  for (int32_t u = 0; u < units; u++) memcpy(half + (u * OS_BLOCK_TOKENS + lane) * 4, k + u * 4, 4);
}

static void get_units(const uint8_t *half, int32_t units, int32_t lane, uint8_t *k) {
  for (int32_t u = 0; u < units; u++) memcpy(k + u * 4, half + (u * OS_BLOCK_TOKENS + lane) * 4, 4);
}

/* V's values of the tokens that fill a unit alternate, as the dot products want them. */
static uint8_t *first_value(uint8_t *half, int32_t head_size, int32_t lane, int32_t bytes) {
  const int32_t side_by_side = 4 / bytes;
  return half + lane / side_by_side * head_size * 4 + lane % side_by_side * bytes;
}

static void put_values(uint8_t *half, int32_t head_size, int32_t lane, int32_t bytes,
                       const uint8_t *v) {
  uint8_t *to = first_value(half, head_size, lane, bytes);
  if (bytes == 4)
    memcpy(to, v, (size_t)head_size * 4);
  else if (bytes == 2)
    for (int32_t d = 0; d < head_size; d++) memcpy(to + 4 * d, v + 2 * d, 2);
  else
    for (int32_t d = 0; d < head_size; d++) to[4 * d] = v[d];
}

static void get_values(uint8_t *half, int32_t head_size, int32_t lane, int32_t bytes, uint8_t *v) {
  const uint8_t *from = first_value(half, head_size, lane, bytes);
  if (bytes == 4)
    memcpy(v, from, (size_t)head_size * 4);
  else if (bytes == 2)
    for (int32_t d = 0; d < head_size; d++) memcpy(v + 2 * d, from + 4 * d, 2);
  else
    for (int32_t d = 0; d < head_size; d++) v[d] = from[4 * d];
}

/* ---- tokens ---------------------------------------------------------------------------------- */

static void flip(uint8_t *to, const uint8_t *from, int32_t count) {
  for (int32_t d = 0; d < count; d++) to[d] = from[d] ^ 0x80;
}

static size_t scale_at(int32_t head_size, int32_t lane, int32_t is_v) {
  return (size_t)(2 * OS_BLOCK_TOKENS * head_size +
                  (is_v * OS_BLOCK_TOKENS + lane) * OS_SCALE_BYTES);
}

void os_tile_put(int32_t dtype, int32_t head_size, uint8_t *tile, int32_t lane, const void *k,
                 const void *v) {
  const int32_t bytes = (int32_t)os_dtype_bytes(dtype), units = head_size * bytes / 4;
  uint8_t unsigned_k[OS_MAX_HEAD_SIZE];
  put_values(tile + OS_BLOCK_TOKENS * head_size * bytes, head_size, lane, bytes, v);
  if (dtype != OS_I8) {
    put_units(tile, units, lane, k);
    return;
  }
  flip(unsigned_k, k, head_size);
  put_units(tile, units, lane, unsigned_k);
  memcpy(tile + scale_at(head_size, lane, 0), (const uint8_t *)k + head_size, OS_SCALE_BYTES);
  memcpy(tile + scale_at(head_size, lane, 1), (const uint8_t *)v + head_size, OS_SCALE_BYTES);
}

void os_tile_get(int32_t dtype, int32_t head_size, const uint8_t *tile, int32_t lane, void *k,
                 void *v) {
  const int32_t bytes = (int32_t)os_dtype_bytes(dtype), units = head_size * bytes / 4;
  get_units(tile, units, lane, k);
  get_values((uint8_t *)tile + OS_BLOCK_TOKENS * head_size * bytes, head_size, lane, bytes, v);
  if (dtype != OS_I8) return;
  flip(k, k, head_size);
  memcpy((uint8_t *)k + head_size, tile + scale_at(head_size, lane, 0), OS_SCALE_BYTES);
  memcpy((uint8_t *)v + head_size, tile + scale_at(head_size, lane, 1), OS_SCALE_BYTES);
}

/* ---- other dtypes ---------------------------------------------------------------------------- */

/* The largest magnitude; NaN where a value is not finite. */
static float peak_of(const float *values, int32_t count) {
  float peak = 0.0f, odd = 0.0f;
  for (int32_t d = 0; d < count; d++) {
    const float magnitude = fabsf(values[d]);
    peak = magnitude > peak ? magnitude : peak;
    odd += values[d] * 0.0f;
  }
  return peak + odd;
}

static uint16_t round_up_to_bf16(float value) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  if (value != value) return 0x7fc0;
  return (uint16_t)((bits + 0xffff) >> 16);
}

/* Adding 1.5 * 2^23 rounds to the nearest integer and leaves it in the low bits. */
static void quantise(int8_t *record, int32_t head_size, const float *values) {
  const float peak = peak_of(values, head_size), magic = 12582912.0f;
  const uint16_t bits = peak < LEAST_MAGNITUDE ? 0 : round_up_to_bf16(peak / 127.0f);
  const float scale = os_bf16_to_f32(bits), inverse = scale > 0.0f ? 1.0f / scale : 0.0f;
  memcpy(record + head_size, &bits, OS_SCALE_BYTES);
  for (int32_t d = 0; d < head_size; d++) {
    const float shifted = (inverse > 0.0f ? values[d] * inverse : 0.0f) + magic;
    int32_t whole;
    memcpy(&whole, &shifted, 4);
    record[d] = (int8_t)whole;
  }
}

static void dequantise(float *values, int32_t head_size, const int8_t *record) {
  uint16_t bits;
  memcpy(&bits, record + head_size, OS_SCALE_BYTES);
  const float scale = os_bf16_to_f32(bits);
  for (int32_t d = 0; d < head_size; d++) values[d] = (float)record[d] * scale;
}

void os_record_from(int32_t dtype, int32_t head_size, void *record, const void *values,
                    int32_t values_dtype) {
  float wide[OS_MAX_HEAD_SIZE];
  if (dtype == values_dtype) {
    memcpy(record, values, os_record_bytes(dtype, head_size));
    return;
  }
  os_to_f32(wide, values, values_dtype, head_size);
  if (dtype == OS_I8)
    quantise(record, head_size, wide);
  else
    os_from_f32(record, wide, dtype, head_size);
}

void os_record_to(int32_t dtype, int32_t head_size, const void *record, void *values,
                  int32_t values_dtype) {
  float wide[OS_MAX_HEAD_SIZE];
  if (dtype == values_dtype) {
    memcpy(values, record, os_record_bytes(dtype, head_size));
    return;
  }
  if (dtype == OS_I8)
    dequantise(wide, head_size, record);
  else
    os_to_f32(wide, record, dtype, head_size);
  os_from_f32(values, wide, values_dtype, head_size);
}
