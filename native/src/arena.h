/* KV blocks of one tier and the sequences that name them. Memory: [layer][kv head][block] tile. */
#ifndef OS_ARENA_H
#define OS_ARENA_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "kernel.h"
#include "omniserve.h"
#include "workers.h"

typedef struct {
  int32_t *blocks;
  int32_t block_count; /* table entries set, from 0 without holes */
  int32_t references;  /* 0: the id is free */
  int64_t length;
  /* Hops: by the engine's thread, which needs no barrier for each that way, and by the workers. */
  uint32_t submitted;
  _Atomic uint32_t finished;
} os_sequence;

/* Up to OS_MAX_Q_LEN query tokens of one sequence at one layer: the unit of attention. */
typedef struct {
  const int32_t *blocks;
  int64_t start;
  int32_t q_len;
  int32_t ranges; /* of KV for each kv head; 1: it is not split */
  bool append; /* the row's own k and v are still to be written */
  const uint8_t *q, *k, *v;
  int64_t q_stride, k_stride, v_stride; /* elements between tokens */
  os_result result;
} os_row;

struct os_arena {
  os_arena_config config;
  const os_kernel *kernel;
  size_t tile_bytes, head_bytes, layer_bytes, bytes;
  uint8_t *tiles;
  os_sequence *sequences;
  int32_t *tables; /* [max_sequences][max_blocks_per_sequence] */
  os_hand hand;    /* the engine's thread, when it attends itself */
  os_row *rows;    /* os_attend's work list, grown as needed */
  int32_t rows_capacity;
  os_placement placement; /* of the tiles */
};

/* What the rows of one call share. */
typedef struct {
  const os_arena *arena;
  int32_t layer, group, dtype;
  int32_t threads; /* that take heads in turn */
  float scale;
} os_attention;

/* Where the ranges of one split (row, kv head) meet; NULL when the KV is not split. */
typedef struct {
  float *partials;       /* `ranges` of os_partial_floats each */
  _Atomic int32_t *left; /* ranges not yet finished */
} os_split;

/* Attends one range of (row, head): the last range appends first, the last finisher merges and stores. */
void os_attend_item(const os_attention *attention, const os_row *row, int32_t head, int32_t range,
                    const os_split *split, os_hand *hand);
/* A prefix of `blocks` blocks that `count` rows have in common, all of it before their own tokens: one
 * pass over its KV of one head. The partial has the rows' queries in order; it lies in the hand. At most
 * the kernel's shared_queries. */
os_partial os_attend_prefix(const os_attention *attention, const os_row *const *rows, int32_t count,
                            int32_t head, int32_t blocks, os_hand *hand);
/* Appends and attends what of (row, head) comes behind such a prefix. */
void os_attend_rest(const os_attention *attention, const os_row *row, int32_t head, int32_t blocks,
                    os_partial out, os_hand *hand);
/* Merges the partials (into the first) and stores the result of (row, head). */
void os_attend_merge(const os_attention *attention, const os_row *row, int32_t head,
                     os_partial *partials, int32_t count);
/* Writes the row's k and v of one kv head. */
void os_append_head(const os_attention *attention, const os_row *row, int32_t head);
/* What waits for the threads, a row that is about to be added included. */
typedef struct {
  int64_t items;  /* rows times kv heads, before any is split */
  int64_t tokens; /* of KV that these items read */
  int32_t threads;
} os_load;

/* Into how many ranges a row's KV should be split, so that no thread is left with much more than the
 * others: two for each thread's share of all tokens. Where items are twice the threads or more, only a
 * row of which one item is more than a thread's share. */
int32_t os_wanted_ranges(int64_t tokens, const os_load *load);
/* How many ranges of at least `split_tokens` the row's KV gives, at most `wanted`; at least 1. */
int32_t os_ranges(int64_t tokens, int32_t split_tokens, int32_t wanted);

/* os_attend's halves: all that can fail, and the rest. */
int os_attend_check(const os_attend_args *args);
int os_attend_run(const os_attend_args *args);

/* The open sequence, or NULL with the error set. */
os_sequence *os_seq_get(const os_arena *arena, int32_t seq);
int os_check_layer(const os_arena *arena, int32_t layer);
int os_check_queries(const os_arena *arena, int32_t q_heads, int32_t dtype, float scale);

#endif
