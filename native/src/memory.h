/* Large zeroed mappings: page-aligned, huge pages where offered, touched only on use. */
#ifndef OS_MEMORY_H
#define OS_MEMORY_H

#include <stddef.h>

void *os_map(size_t bytes); /* NULL with the error set (OS_ENOMEM) */
void os_unmap(void *memory, size_t bytes);

#endif
