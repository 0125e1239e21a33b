/* The seam between the ISA paths and everything else: what a kernel is given, what it leaves. */
#ifndef OS_KERNEL_H
#define OS_KERNEL_H

#include "omniserve.h"

enum {
  OS_MAX_HEAD_SIZE = 256,
  OS_MAX_QUERIES = OS_MAX_Q_LEN * OS_MAX_GROUP, /* queries that share one kv head */
  OS_STEP_TOKENS = 64,                          /* tokens between two softmax rescalings */
  OS_LANES = 16,                                /* accumulator rows are padded to this many floats */
  OS_SHARED_QUERIES = 12, /* the most that any path shares, see os_kernel */
};

/* Blocks of the same table that the thread probably reads after a range, for fetching them at its end. */
typedef struct {
  int64_t first, count;
  int64_t offset; /* bytes from the range's tiles to theirs: another kv head */
} os_next;

/* One kv head's share of one row, over KV positions [first, end). `first` is block-aligned. */
typedef struct {
  const uint8_t *tiles; /* this layer and kv head: block b's tile is tiles + b * block_stride */
  int64_t block_stride;
  const int32_t *blocks;
  int64_t start, first, end; /* `start`: position of the first query token */
  int32_t q_len, group, head_size;
  int32_t kv_dtype, dtype;
  float scale;
  const void *q; /* query (i, g) at element i * q_stride + g * head_size */
  int64_t q_stride;
  os_next next;
} os_range;

/* Softmax state of queries r = i * group + g; `max` is of the scores before scaling. */
typedef struct {
  float *acc; /* [queries][head_size padded to OS_LANES], not yet divided by `sum` */
  float *max, *sum;
} os_partial;

/* Where a finished row goes: query (i, g) at element i * stride + g * head_size. */
typedef struct {
  void *o;
  int64_t o_stride;
  float *lse; /* element i * lse_stride + g, or NULL */
  int64_t lse_stride;
} os_result;

typedef struct {
  const char *name;
  int32_t shared_queries; /* of rows that share a prefix, at most: arithmetic is not saved */
  void (*attend)(const os_range *range, os_partial out, float *scratch);
  /* Merges `count` partials (into the first) and stores them. */
  void (*finish)(const os_range *range, os_partial *partials, int32_t count, os_result to);
  /* os_to_f32 and os_from_f32 with the path's instructions. */
  void (*to_f32)(float *to, const void *from, int32_t dtype, int32_t count);
  void (*from_f32)(void *to, const float *from, int32_t dtype, int32_t count);
} os_kernel;

static inline int32_t os_padded(int32_t head_size) {
  return (head_size + OS_LANES - 1) / OS_LANES * OS_LANES;
}

static inline size_t os_partial_floats(int32_t queries, int32_t head_size) {
  return ((size_t)queries * (size_t)(os_padded(head_size) + 2) + 15) / 16 * 16;
}

static inline os_partial os_partial_at(float *memory, int32_t queries, int32_t head_size) {
  float *max = memory + (size_t)queries * (size_t)os_padded(head_size);
  return (os_partial){memory, max, max + queries};
}

/* Scratch of one thread, in floats: queries, scores, sums and factors beside one partial. */
enum {
  OS_SCRATCH_FLOATS =
      OS_MAX_QUERIES * (2 * OS_MAX_HEAD_SIZE + OS_STEP_TOKENS + OS_LANES + 8)
};

extern const os_kernel os_kernel_portable;
#if defined(__x86_64__)
extern const os_kernel os_kernel_avx2, os_kernel_avx512, os_kernel_avx512_vnni,
    os_kernel_avx512_bf16;
#endif

/* The kernel in use (see os_isa_name), or NULL with the error set. */
const os_kernel *os_kernel_get(void);

#endif
