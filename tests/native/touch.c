/* Pages are made while somebody writes to them, and nothing that was written is lost. */
#include <pthread.h>
#include <stdatomic.h>

#include "../../native/src/memory.h"
#include "check.h"

enum { PAGE = 4096, PAGES = 1, BYTES = PAGES * PAGE, ROUNDS = 1000000 };

typedef struct {
  _Atomic uint8_t *first; /* of a page; the others lie PAGE apart */
  _Atomic int32_t done;
} writer;

static void *write_all(void *argument) {
  writer *w = argument;
  for (int32_t i = 0; i < ROUNDS; i++) {
    _Atomic uint8_t *byte = w->first + i % PAGES * PAGE;
    const uint8_t seen = atomic_load_explicit(byte, memory_order_relaxed);
    CHECK(i < PAGES || seen == (uint8_t)(i - PAGES)); /* what this thread wrote there last */
    atomic_store_explicit(byte, (uint8_t)i, memory_order_relaxed);
  }
  atomic_store(&w->done, 1);
  return NULL;
}

static void nothing_is_lost(uint8_t *memory, size_t bytes) {
  writer w = {.first = (_Atomic uint8_t *)memory};
  pthread_t thread;
  CHECK(pthread_create(&thread, NULL, write_all, &w) == 0);
  while (!atomic_load(&w.done)) os_touch(memory, bytes);
  CHECK(pthread_join(thread, NULL) == 0);
}

int main(void) {
  uint8_t *memory = os_map(BYTES);
  CHECK(memory);
  nothing_is_lost(memory, BYTES);
  nothing_is_lost(memory + 64, BYTES - 64); /* not as madvise wants it: byte by byte */
  os_unmap(memory, BYTES);
  puts("touch: ok");
  return 0;
}
