#include "tile.h"

#include <math.h>
#include <string.h>

#include "convert.h"
#include "units.h"

#define LEAST_MAGNITUDE 1e-30f /* below it a row is 0: the scale's inverse would overflow */
#define UNSIGNED_K 0x80808080u /* adds 128 to each of four bytes */

size_t os_record_bytes(int32_t dtype, int32_t head_size) {
  const size_t scale = dtype == OS_I8 ? OS_SCALE_BYTES : 0;
  return (size_t)head_size * os_dtype_bytes(dtype) + scale;
}

size_t os_tile_bytes(int32_t dtype, int32_t head_size) {
  return 2 * OS_BLOCK_TOKENS * os_record_bytes(dtype, head_size);
}

/* ---- tokens ---------------------------------------------------------------------------------- */

static uint8_t *scale_at(uint8_t *tile, int32_t head_size, int32_t lane, int32_t is_v) {
  return tile + 2 * OS_BLOCK_TOKENS * head_size + (is_v * OS_BLOCK_TOKENS + lane) * OS_SCALE_BYTES;
}

/* K of one token, or of a quarter of the block (`step`). */
static void put_keys(int32_t dtype, int32_t head_size, uint8_t *half, int32_t lane, int32_t step,
                     const uint8_t *k, size_t stride) {
  const int32_t units = head_size * (int32_t)os_dtype_bytes(dtype) / 4;
  const uint32_t mask = dtype == OS_I8 ? UNSIGNED_K : 0;
  if (dtype == OS_F16 && step == QUAD)
    put_word_quad(half, head_size, lane, k, stride);
  else if (dtype == OS_F16)
    put_words(half, head_size, lane, k);
  else if (step == QUAD)
    put_unit_quad(half, units, lane, k, stride, mask);
  else
    put_units(half, 0, units, lane, k, mask);
}

static void get_keys(int32_t dtype, int32_t head_size, uint8_t *half, int32_t lane, int32_t step,
                     uint8_t *k, size_t stride) {
  const int32_t units = head_size * (int32_t)os_dtype_bytes(dtype) / 4;
  const uint32_t mask = dtype == OS_I8 ? UNSIGNED_K : 0;
  if (dtype == OS_F16 && step == QUAD)
    get_word_quad(half, head_size, lane, k, stride);
  else if (dtype == OS_F16)
    get_words(half, head_size, lane, k);
  else if (step == QUAD)
    get_unit_quad(half, units, lane, k, stride, mask);
  else
    get_units(half, 0, units, lane, k, mask);
}

/* Four at once where they are a quarter of the block. */
static int32_t step_at(int32_t lane, int32_t left) {
  return lane % QUAD == 0 && left >= QUAD ? QUAD : 1;
}

void os_tile_put(int32_t dtype, int32_t head_size, uint8_t *tile, int32_t lane, int32_t count,
                 const void *k_rows, size_t k_stride, const void *v_rows, size_t v_stride) {
  const uint8_t *k = k_rows, *v = v_rows;
  uint8_t *half = tile + OS_BLOCK_TOKENS * head_size * (int32_t)os_dtype_bytes(dtype);
  for (const int32_t end = lane + count; lane < end;) {
    const int32_t step = step_at(lane, end - lane);
    put_keys(dtype, head_size, tile, lane, step, k, k_stride);
    if (step == QUAD)
      put_value_quad(half, head_size, lane, dtype, v, v_stride);
    else
      put_values(first_value(half, head_size, lane, dtype), head_size, dtype, v);
    for (int32_t i = 0; i < step; i++, lane++, k += k_stride, v += v_stride) {
      if (dtype != OS_I8) continue;
      memcpy(scale_at(tile, head_size, lane, 0), k + head_size, OS_SCALE_BYTES);
      memcpy(scale_at(tile, head_size, lane, 1), v + head_size, OS_SCALE_BYTES);
    }
  }
}

void os_tile_get(int32_t dtype, int32_t head_size, const uint8_t *from, int32_t lane,
                 int32_t count, void *k_rows, size_t k_stride, void *v_rows, size_t v_stride) {
  uint8_t *k = k_rows, *v = v_rows, *tile = (uint8_t *)from;
  uint8_t *half = tile + OS_BLOCK_TOKENS * head_size * (int32_t)os_dtype_bytes(dtype);
  for (const int32_t end = lane + count; lane < end;) {
    const int32_t step = step_at(lane, end - lane);
    get_keys(dtype, head_size, tile, lane, step, k, k_stride);
    if (step == QUAD)
      get_value_quad(half, head_size, lane, dtype, v, v_stride);
    else
      get_values(first_value(half, head_size, lane, dtype), head_size, dtype, v);
    for (int32_t i = 0; i < step; i++, lane++, k += k_stride, v += v_stride) {
      if (dtype != OS_I8) continue;
      memcpy(k + head_size, scale_at(tile, head_size, lane, 0), OS_SCALE_BYTES);
      memcpy(v + head_size, scale_at(tile, head_size, lane, 1), OS_SCALE_BYTES);
    }
  }
}

/* ---- other dtypes ---------------------------------------------------------------------------- */

/* The largest magnitude; NaN where a value is not finite. Magnitudes order as their bits do. */
static float peak_of(const float *values, int32_t count) {
  int32_t peak = 0;
  for (int32_t d = 0; d < count; d++) {
    int32_t bits;
    memcpy(&bits, values + d, 4);
    bits &= INT32_MAX;
    peak = bits > peak ? bits : peak;
  }
  float magnitude;
  memcpy(&magnitude, &peak, 4);
  return magnitude * 0.0f == 0.0f ? magnitude : NAN;
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

void os_record_from(const os_kernel *kernel, int32_t dtype, int32_t head_size, void *record,
                    const void *values, int32_t values_dtype) {
  float wide[OS_MAX_HEAD_SIZE];
  if (dtype == values_dtype) {
    memcpy(record, values, os_record_bytes(dtype, head_size));
    return;
  }
  kernel->to_f32(wide, values, values_dtype, head_size);
  if (dtype == OS_I8)
    quantise(record, head_size, wide);
  else
    kernel->from_f32(record, wide, dtype, head_size);
}

void os_record_to(const os_kernel *kernel, int32_t dtype, int32_t head_size, const void *record,
                  void *values, int32_t values_dtype) {
  float wide[OS_MAX_HEAD_SIZE];
  if (dtype == values_dtype) {
    memcpy(values, record, os_record_bytes(dtype, head_size));
    return;
  }
  if (dtype == OS_I8)
    dequantise(wide, head_size, record);
  else
    kernel->to_f32(wide, record, dtype, head_size);
  kernel->from_f32(values, wide, values_dtype, head_size);
}
