/* Places where the parts of one hop's attention meet. Only the engine's thread takes and gives them. */
#ifndef OS_AREAS_H
#define OS_AREAS_H

#include "arena.h"

enum { OS_NONE = -1 };

typedef struct {
  int32_t count, kv_heads, parts;
  size_t part_floats, bytes;
  float *partials;       /* [count][kv_heads][parts] of part_floats */
  _Atomic int32_t *left; /* [count][kv_heads] parts not yet finished */
  int32_t *free;         /* a stack */
  int32_t free_count;
} os_areas;

/* The shape alone; a part holds `queries` queries. */
os_areas os_areas_shape(const os_arena_config *arena, int32_t count, int32_t parts, int32_t queries);
/* OS_OK or OS_ENOMEM; destroy it in both cases. `nodes`: of the workers, who read and write it. */
int os_areas_create(os_areas *areas, const os_nodes *nodes);
void os_areas_destroy(os_areas *areas);
/* An area whose heads have `parts` parts to come, or OS_NONE. */
int32_t os_areas_take(os_areas *areas, int32_t parts);
void os_areas_give(os_areas *areas, int32_t area);
os_split os_areas_split(const os_areas *areas, int32_t area, int32_t head);

#endif
