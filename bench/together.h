/* Threads that begin one measurement together and take its chunks as they come, as the kernel's
 * threads take their items. */
#ifndef TOGETHER_H
#define TOGETHER_H

#include <stdatomic.h>
#include <stdint.h>
#include <time.h>

typedef struct {
  int64_t threads, chunks;
  _Atomic int64_t ready, next;
} together;

static inline int64_t now_ns(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

/* When all threads are there; the time in ns. */
static inline int64_t together_begin(together *t) {
  atomic_fetch_add(&t->ready, 1);
  while (atomic_load(&t->ready) < t->threads) continue;
  return now_ns();
}

/* A chunk that nobody has taken, or -1. */
static inline int64_t together_take(together *t) {
  const int64_t chunk = atomic_fetch_add(&t->next, 1);
  return chunk < t->chunks ? chunk : -1;
}

#endif
