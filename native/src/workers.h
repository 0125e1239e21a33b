/* Pinned threads that take (task, item) pairs from one ring. */
#ifndef OS_WORKERS_H
#define OS_WORKERS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "nodes.h"
#include "omniserve.h"

/* A thread that attends: a worker, or the caller itself. */
typedef struct {
  float *scratch;   /* OS_SCRATCH_FLOATS */
  float *partial;   /* one os_partial of the largest size */
  float *shared;    /* OS_SHARED_QUERIES queries side by side, then one os_partial of as many */
  _Atomic int64_t busy_ns, items, kv_bytes, sleeps;
  _Atomic int64_t taken_ns; /* when it last took an item; 0: never */
} os_hand;

int os_hand_create(os_hand *hand); /* OS_OK or OS_ENOMEM */
void os_hand_destroy(os_hand *hand);

/* What a ring entry points at; embedded in the thing that is worked on. `run` is called once for
 * each item, by any thread; the task must stay alive until its last item has returned. */
typedef struct os_task {
  void (*run)(struct os_task *task, int32_t item, os_hand *hand);
} os_task;

enum { OS_RING_ENTRIES = 4096, OS_MAX_ITEMS = 65535 };

int32_t os_workers_count(const os_workers *workers);
const os_nodes *os_workers_nodes(const os_workers *workers); /* NULL where `workers` is */

/* Ring entries free for os_workers_put. Only the engine's thread puts and publishes. */
int32_t os_workers_space(os_workers *workers);
/* Writes `items` (1..OS_MAX_ITEMS) items of `task` to the ring's free entry number `at`; the caller has
 * checked the space. */
void os_workers_put(os_workers *workers, int32_t at, os_task *task, int32_t items);
/* Shows the first `count` entries that were put, all at once: each publication is a full barrier. */
void os_workers_publish(os_workers *workers, int32_t count);
/* Wakes as many sleepers as `items` can use; after a publication. */
void os_workers_wake(os_workers *workers, int32_t items);
/* os_workers_pause with another patience; where it runs out the gate is open again. */
int os_workers_pause_for(os_workers *workers, int64_t patience_ns);
/* Runs one queued item on the calling thread, gate or not; false when there was none. */
bool os_workers_run_one(os_workers *workers, os_hand *hand);

/* Calls body(context, i, hand) for every i below `count`, by the caller (with `hand`; not when NULL)
 * and by idle workers; returns when all calls have returned. `workers` may be NULL. */
typedef void (*os_body)(void *context, int32_t i, os_hand *hand);
int os_parallel_for(os_workers *workers, int32_t count, os_body body, void *context, os_hand *hand);

/* Partials and counters for os_attend's KV splits: os_workers_splits() of each. */
int32_t os_workers_splits(const os_workers *workers);
float *os_workers_partials(os_workers *workers);
_Atomic int32_t *os_workers_counters(os_workers *workers);

#endif
