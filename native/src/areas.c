#include "areas.h"

#include <stdlib.h>

#include "error.h"
#include "memory.h"

os_areas os_areas_shape(const os_arena_config *arena, int32_t count, int32_t parts,
                        int32_t queries) {
  os_areas areas = {.count = count,
                    .kv_heads = arena->kv_heads,
                    .parts = parts,
                    .part_floats = os_partial_floats(queries, arena->head_size)};
  areas.bytes = (size_t)count * (size_t)arena->kv_heads * (size_t)parts * areas.part_floats *
                sizeof(float);
  return areas;
}

int os_areas_create(os_areas *areas, const os_nodes *nodes) {
  const size_t count = (size_t)areas->count;
  if (count == 0) return OS_OK;
  areas->left = calloc(count * (size_t)areas->kv_heads, sizeof *areas->left);
  areas->free = calloc(count, sizeof *areas->free);
  if (!areas->left || !areas->free) return os_fail(OS_ENOMEM, "could not allocate %zu areas", count);
  areas->partials = os_map(areas->bytes);
  if (!areas->partials) return OS_ENOMEM;
  os_place(areas->partials, areas->bytes, nodes);
  os_touch(areas->partials, areas->bytes);
  for (int32_t i = 0; i < areas->count; i++) areas->free[i] = i;
  areas->free_count = areas->count;
  return OS_OK;
}

void os_areas_destroy(os_areas *areas) {
  os_unmap(areas->partials, areas->bytes);
  free(areas->left);
  free(areas->free);
}

int32_t os_areas_take(os_areas *areas, int32_t parts) {
  if (areas->free_count == 0) return OS_NONE;
  const int32_t area = areas->free[--areas->free_count];
  for (int32_t head = 0; head < areas->kv_heads; head++)
    atomic_store_explicit(&areas->left[area * areas->kv_heads + head], parts,
                          memory_order_relaxed);
  return area;
}

void os_areas_give(os_areas *areas, int32_t area) { areas->free[areas->free_count++] = area; }

os_split os_areas_split(const os_areas *areas, int32_t area, int32_t head) {
  const size_t unit = (size_t)(area * areas->kv_heads + head);
  return (os_split){areas->partials + unit * (size_t)areas->parts * areas->part_floats,
                    areas->left + unit};
}
