#include "memory.h"

#include <stdint.h>
#include <sys/mman.h>
#include <unistd.h>

#include "error.h"

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
enum { POISON_PAGES = 1 };
#else
#define ASAN_POISON_MEMORY_REGION(memory, bytes) ((void)(memory), (void)(bytes))
#define ASAN_UNPOISON_MEMORY_REGION(memory, bytes) ((void)(memory), (void)(bytes))
enum { POISON_PAGES = 0 };
#endif

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23 /* Linux 5.14; glibc declares it from 2.35 on */
#endif

enum { HUGE_PAGE = 2 << 20 };

static size_t page_bytes(void) { return (size_t)sysconf(_SC_PAGESIZE); }

/* Untouched ends. Where that fails, because the process has all the mappings it may have, address space
 * is lost and no memory. */
static void give_back(void *memory, size_t bytes) {
  if (bytes) (void)munmap(memory, bytes);
}

/* Maps a huge page more than asked for and gives the unaligned ends back. */
static void *map_aligned(size_t bytes) {
  uint8_t *all = mmap(NULL, bytes + HUGE_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
                      -1, 0);
  if (all == MAP_FAILED) return NULL;
  size_t lead = (HUGE_PAGE - (uintptr_t)all % HUGE_PAGE) % HUGE_PAGE;
  give_back(all, lead);
  give_back(all + lead + bytes, HUGE_PAGE - lead);
  return all + lead;
}

/* Under AddressSanitizer one page more, so that there is always an end to poison. */
size_t os_mapped_bytes(size_t bytes) {
  const size_t page = bytes >= HUGE_PAGE ? HUGE_PAGE : page_bytes();
  return (bytes + page - 1) / page * page + POISON_PAGES * page_bytes();
}

void *os_map(size_t bytes) {
  void *memory = map_aligned(os_mapped_bytes(bytes));
  if (!memory) {
    os_fail(OS_ENOMEM, "could not map %zu bytes; free memory or ask for less", bytes);
    return NULL;
  }
  /* A wish: whether huge pages came is in /proc/self/smaps. */
  if (bytes >= HUGE_PAGE) (void)madvise(memory, os_mapped_bytes(bytes), MADV_HUGEPAGE);
  ASAN_POISON_MEMORY_REGION((uint8_t *)memory + bytes, os_mapped_bytes(bytes) - bytes);
  return memory;
}

/* Somebody may be writing there: where the kernel (before Linux 5.14) or the alignment does not allow it
 * to make the pages, each is written in one atomic operation that changes nothing. */
void os_touch(void *memory, size_t bytes) {
  const size_t page = page_bytes();
  if (madvise(memory, bytes, MADV_POPULATE_WRITE) == 0) return;
  for (size_t at = 0; at < bytes; at += page) {
    volatile uint8_t *byte = (uint8_t *)memory + at;
    __atomic_fetch_or(byte, 0, __ATOMIC_RELAXED);
  }
}

void os_unmap(void *memory, size_t bytes) {
  if (!memory) return;
  const size_t mapped = os_mapped_bytes(bytes);
  ASAN_UNPOISON_MEMORY_REGION(memory, mapped);
  /* Out of the middle of a mapping that the kernel has merged, one more is needed, which may be one too
   * many: then the pages go and the addresses stay. */
  if (munmap(memory, mapped) != 0) (void)madvise(memory, mapped, MADV_DONTNEED);
}
