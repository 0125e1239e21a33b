/* Large zeroed mappings: page-aligned, huge pages where offered, touched only on use. */
#ifndef OS_MEMORY_H
#define OS_MEMORY_H

#include <stddef.h>
#include <stdint.h>

void *os_map(size_t bytes); /* NULL with the error set (OS_ENOMEM) */
void os_unmap(void *memory, size_t bytes);
size_t os_mapped_bytes(size_t bytes); /* what os_map maps for so many */
/* Has the pages made now, not on first use; what lies there stays. */
void os_touch(void *memory, size_t bytes);

enum { OS_CACHE_LINE = 64 };

/* Asks for cache lines that will be written. Without a flag that not every x86-64 bears, the compiler
 * would ask for them to be read; processors without the instruction pass over it. */
static inline void os_fetch_to_write(const void *memory, size_t bytes) {
  for (size_t at = 0; at < bytes; at += OS_CACHE_LINE) {
    const uint8_t *line = (const uint8_t *)memory + at;
#if defined(__x86_64__)
    __asm__ volatile("prefetchw %0" : : "m"(*line));
#else
    __builtin_prefetch(line, 1);
#endif
  }
}

#endif
