#include "nodes.h"

#include <errno.h>
#include <linux/mempolicy.h>
#include <stdbool.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "error.h"
#include "memory.h"

int os_nodes_read(os_nodes *nodes, int32_t count, const int32_t *numbers) {
  memset(nodes, 0, sizeof *nodes);
  if (os_check_range("node_count", count, 0, OS_MAX_NODES)) return OS_EINVAL;
  if (count > 0 && !numbers)
    return os_fail(OS_EINVAL, "nodes is NULL; it must hold %d numbers", count);
  for (int32_t i = 0; i < count; i++) {
    const int32_t number = numbers[i];
    if (number < 0 || number >= OS_MAX_NODES)
      return os_fail(OS_EINVAL, "nodes[%d] is %d; it must lie between 0 and %d", i, number,
                     OS_MAX_NODES - 1);
    unsigned long *word = &nodes->mask[number / OS_NODE_WORD_BITS];
    const unsigned long bit = 1ul << number % OS_NODE_WORD_BITS;
    nodes->count += !(*word & bit);
    *word |= bit;
  }
  return OS_OK;
}

/* Preferred, not bound: a node that is full has pages come from another and nobody killed. */
os_placement os_place(void *memory, size_t bytes, const os_nodes *nodes) {
  if (!nodes || nodes->count == 0) return (os_placement){.policy = OS_FIRST_TOUCH};
  const bool one = nodes->count == 1;
  const unsigned long bits = OS_MAX_NODES + 1; /* the kernel takes one off */
  if (syscall(SYS_mbind, memory, os_mapped_bytes(bytes), one ? MPOL_PREFERRED : MPOL_INTERLEAVE,
              nodes->mask, bits, 0) == 0)
    return (os_placement){.policy = one ? OS_PREFERRED : OS_INTERLEAVED};
  return (os_placement){.policy = OS_FIRST_TOUCH, .refused = errno};
}
