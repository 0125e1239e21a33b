/* NUMA nodes that pages should come from. A wish only: where the system refuses it, a page lies on the
 * node of the thread that touches it first. */
#ifndef OS_NODES_H
#define OS_NODES_H

#include <stddef.h>
#include <stdint.h>

#include "omniserve.h"

enum { OS_NODE_WORD_BITS = 8 * sizeof(unsigned long) };

typedef struct {
  int32_t count; /* 0: not known */
  unsigned long mask[OS_MAX_NODES / OS_NODE_WORD_BITS];
} os_nodes;

typedef struct {
  int32_t policy;  /* os_policy */
  int32_t refused; /* errno, or 0 */
} os_placement;

int os_nodes_read(os_nodes *nodes, int32_t count, const int32_t *numbers); /* OS_OK or OS_EINVAL */
/* Of a mapping of os_map, before it is touched. `nodes` may be NULL. */
os_placement os_place(void *memory, size_t bytes, const os_nodes *nodes);

#endif
