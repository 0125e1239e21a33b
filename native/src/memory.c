#include "memory.h"

#include <stdint.h>
#include <sys/mman.h>

#include "error.h"

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
enum { POISON_BYTES = 4096 };
#else
#define ASAN_POISON_MEMORY_REGION(memory, bytes) ((void)(memory), (void)(bytes))
#define ASAN_UNPOISON_MEMORY_REGION(memory, bytes) ((void)(memory), (void)(bytes))
enum { POISON_BYTES = 0 };
#endif

enum { PAGE = 4096, HUGE_PAGE = 2 << 20 };

/* Maps a huge page more than asked for and gives the unaligned ends back. */
static void *map_aligned(size_t bytes) {
  uint8_t *all = mmap(NULL, bytes + HUGE_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
                      -1, 0);
  if (all == MAP_FAILED) return NULL;
  size_t lead = (HUGE_PAGE - (uintptr_t)all % HUGE_PAGE) % HUGE_PAGE;
  if (lead) munmap(all, lead);
  if (lead < HUGE_PAGE) munmap(all + lead + bytes, HUGE_PAGE - lead);
  return all + lead;
}

/* Under AddressSanitizer one page more, so that there is always an end to poison. */
static size_t whole_pages(size_t bytes) {
  const size_t page = bytes >= HUGE_PAGE ? HUGE_PAGE : 4096;
  return (bytes + page - 1) / page * page + POISON_BYTES;
}

void *os_map(size_t bytes) {
  void *memory = map_aligned(whole_pages(bytes));
  if (!memory) {
    os_fail(OS_ENOMEM, "could not map %zu bytes; free memory or ask for less", bytes);
    return NULL;
  }
  if (bytes >= HUGE_PAGE) madvise(memory, whole_pages(bytes), MADV_HUGEPAGE); /* a wish only */
  ASAN_POISON_MEMORY_REGION((uint8_t *)memory + bytes, whole_pages(bytes) - bytes);
  return memory;
}

void os_touch(void *memory, size_t bytes) {
  for (size_t at = 0; at < bytes; at += PAGE) {
    volatile uint8_t *byte = (uint8_t *)memory + at;
    *byte = *byte;
  }
}

void os_unmap(void *memory, size_t bytes) {
  if (!memory) return;
  ASAN_UNPOISON_MEMORY_REGION(memory, whole_pages(bytes));
  munmap(memory, whole_pages(bytes));
}
