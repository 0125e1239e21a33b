/* How one token's K and V of one kv head lie in a tile, and outside it as rows.
 *
 * A tile is K, V and, for int8, the scales: 16 bfloat16 of K, then 16 of V, one cache line. Outside,
 * a token is its values in the arena's dtype; for int8 a record: head_size signed bytes, then the
 * scale as bfloat16. A value is byte * scale. K's bytes lie in the tile with 128 added, because the
 * dot products multiply unsigned by signed bytes.
 */
#ifndef OS_TILE_H
#define OS_TILE_H

#include <stddef.h>
#include <stdint.h>

#include "kernel.h"

enum { OS_SCALE_BYTES = 2, OS_RECORD_BYTES_MAX = 256 * 4 };

/* Of one token's K (or V) of one kv head outside the tile. */
size_t os_record_bytes(int32_t dtype, int32_t head_size);
size_t os_tile_bytes(int32_t dtype, int32_t head_size);

/* `count` records each of K and V, strides in bytes, for places [lane, lane + count) of the block. */
void os_tile_put(int32_t dtype, int32_t head_size, uint8_t *tile, int32_t lane, int32_t count,
                 const void *k, size_t k_stride, const void *v, size_t v_stride);
void os_tile_get(int32_t dtype, int32_t head_size, const uint8_t *tile, int32_t lane,
                 int32_t count, void *k, size_t k_stride, void *v, size_t v_stride);

/* A record from values of another dtype (OS_F32, OS_BF16, OS_F16), and back. To int8 the scale is the
 * largest magnitude / 127, rounded up; a value that is not finite makes the scale NaN. */
void os_record_from(const os_kernel *kernel, int32_t dtype, int32_t head_size, void *record,
                    const void *values, int32_t values_dtype);
void os_record_to(const os_kernel *kernel, int32_t dtype, int32_t head_size, const void *record,
                  void *values, int32_t values_dtype);

#endif
