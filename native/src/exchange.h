/* Slots, their way to the workers and back.
 *
 * A slot is the engine's except between a submission and its completion: then q, k, v, o and lse
 * belong to the workers. A completion carries the epoch of its submission; closing a slot in flight
 * moves the epoch on, and the completion that no longer fits frees the slot.
 */
#ifndef OS_EXCHANGE_H
#define OS_EXCHANGE_H

#include "areas.h"
#include "memory.h"

typedef enum {
  SLOT_FREE,
  SLOT_OPEN,       /* its row is in the batch, or between tokens */
  SLOT_SUBMITTING, /* checked, about to leave */
  SLOT_IN_FLIGHT,
  SLOT_READY,
  SLOT_CLOSING, /* closed in flight: freed by its stale completion */
  SLOT_FREED    /* not yet told by os_exchange_reap */
} slot_state;

/* Aligned, and what workers write in a cache line of its own: else the engine's thread, which looks at
 * states and lines at every layer, would fetch the rest of it back from their cores each time. */
typedef struct slot {
  os_task task; /* first: a task is its slot */
  os_exchange *exchange;
  os_attention attention;
  int32_t seq;
  int32_t area; /* of x->splits where row.ranges > 1, else of x->shares; or OS_NONE */
  uint32_t hop; /* counts submissions, never 0 */
  os_row row;

  slot_state state __attribute__((aligned(OS_CACHE_LINE))); /* from here on the engine's alone */
  uint32_t epoch, submitted_epoch; /* now, and of the last submission */
  int32_t key;            /* a block that stands for the hop's prefix, or OS_NONE */
  int32_t layer;          /* of the last submission */
  int32_t previous, next; /* in that layer's line */
  bool begun;             /* os_slot_begin was called since it was opened */
  bool has_result;        /* o and lse of the last hop are there */
  int64_t iteration;
  uint8_t *q, *k, *v, *o, *residual;
  float *lse;

  /* hop << 32 | items not yet finished, and workers that look at the hop */
  _Atomic uint64_t left __attribute__((aligned(OS_CACHE_LINE)));
  _Atomic uint64_t kin;  /* name of the next younger hop with the same key at this layer, or 0 */
  struct slot *completed_before; /* below it in x->completed, or NULL */
} slot;

static inline int64_t os_slot_tokens(const slot *s) { return s->row.start + s->row.q_len; }

/* A prime, for hops are found by a block's id modulo it: two in one place cost a chance to share. */
enum { OS_KIN_KEYS = 4093 };

/* Hops that wait at one layer, in order of submission. */
typedef struct {
  int32_t first, last, waiting, ready;
} line;

struct os_exchange {
  os_exchange_config config;
  os_arena *arena;
  int32_t group, head_size, kv_heads;
  slot *slots;
  line *lines;         /* [layers] */
  int32_t *free_slots; /* a stack */
  int32_t free_count;
  int32_t *freed; /* for os_exchange_reap, oldest first */
  int32_t freed_count;
  uint8_t *memory; /* [slots][OS_MAX_Q_LEN] of token_bytes */
  size_t memory_bytes, token_bytes;
  os_areas splits, shares; /* where ranges of a hop meet; prefix and rest of a hop */
  _Atomic int32_t *plans;  /* [shares.count][kv_heads], see share.c */
  int32_t *youngest;       /* [layers][OS_KIN_KEYS]: by key, the slot submitted last, or OS_NONE */
  os_exchange_stats stats;
  int64_t tokens_in_flight; /* of the KV that hops under way read at one kv head */
  /* A stack of slots whose hops have ended: a worker that is interrupted on its way here holds back
   * no other's. The engine's thread takes all of it at once, so that nobody swaps in a slot that has
   * been pushed again since. In which order does not matter: lines keep that of submission. */
  _Atomic(slot *) completed __attribute__((aligned(128)));
  _Atomic uint32_t signal __attribute__((aligned(128)));
  _Atomic int32_t listening; /* the engine sleeps in pick */
  _Atomic int32_t leaving;   /* workers between publishing a completion and letting go */
};

/* The slot when it is in use, or NULL with the error set. */
slot *os_slot_get(const os_exchange *exchange, int32_t index);
/* Takes in what the workers have finished. */
void os_drain(os_exchange *exchange);

/* The arguments of os_exchange_pick. */
typedef struct {
  int32_t layer, max_rows;
  int64_t iteration, wait_ns;
  int32_t *slots;
  void *o, *residual;
  int64_t o_stride, residual_stride;
  int64_t *positions;
  int32_t *rows;
} os_pick;

int os_pick_check(const os_exchange *exchange, const os_pick *pick);
/* Of what has been checked: slots taken. */
int os_pick_run(os_exchange *exchange, const os_pick *pick);

void os_line_append(os_exchange *exchange, int32_t index);
void os_line_remove(os_exchange *exchange, int32_t index);
/* A task's run: one (kv head, kv range) of a slot. */
void os_run_slot(os_task *task, int32_t item, os_hand *hand);
/* One item less, or one worker that looks at the hop: the last one completes it. */
void os_hop_let_go(slot *s);
static inline uint64_t os_hop_name(const slot *s, int32_t index) {
  return (uint64_t)s->hop << 32 | (uint32_t)index;
}

/* Chains a hop that is ready for the workers behind those with which it may share a prefix. */
void os_kin_join(os_exchange *exchange, int32_t index);
/* Attends one kv head of a hop that is not split: alone, with others, or what others left of it. */
void os_run_unsplit(slot *s, int32_t head, os_hand *hand);

#endif
