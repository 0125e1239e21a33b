/* A slot's life as the engine's thread sees it. */
#include <string.h>

#include "error.h"
#include "exchange.h"

slot *os_slot_get(const os_exchange *x, int32_t index) {
  if (!x) {
    os_fail(OS_EINVAL, "exchange is NULL; it must be an os_exchange");
    return NULL;
  }
  if (index >= 0 && index < x->config.slots) {
    slot *s = &x->slots[index];
    if (s->state != SLOT_FREE && s->state != SLOT_FREED && s->state != SLOT_CLOSING) return s;
  }
  os_fail(OS_EINVAL, "slot is %d; it must be an open slot", index);
  return NULL;
}

/* ---- lines --------------------------------------------------------------------------------- */

void os_line_append(os_exchange *x, int32_t index) {
  slot *s = &x->slots[index];
  line *l = &x->lines[s->layer];
  s->previous = l->last;
  s->next = OS_NONE;
  if (l->last == OS_NONE)
    l->first = index;
  else
    x->slots[l->last].next = index;
  l->last = index;
  l->waiting++;
}

void os_line_remove(os_exchange *x, int32_t index) {
  slot *s = &x->slots[index];
  line *l = &x->lines[s->layer];
  if (s->previous == OS_NONE)
    l->first = s->next;
  else
    x->slots[s->previous].next = s->next;
  if (s->next == OS_NONE)
    l->last = s->previous;
  else
    x->slots[s->next].previous = s->previous;
  s->previous = s->next = OS_NONE;
  l->waiting--;
  if (s->state != SLOT_READY) return;
  l->ready--;
  x->stats.ready--;
}

/* ---- completions --------------------------------------------------------------------------- */

static void free_slot(os_exchange *x, slot *s) {
  os_seq_release(x->arena, s->seq);
  x->stats.open--;
}

static void take_completion(os_exchange *x, slot *s) {
  x->stats.in_flight--;
  x->tokens_in_flight -= os_slot_tokens(s);
  if (s->area != OS_NONE) os_areas_give(s->row.ranges > 1 ? &x->splits : &x->shares, s->area);
  s->area = OS_NONE;
  if (s->epoch != s->submitted_epoch) {
    x->stats.stale++;
    s->state = SLOT_FREED;
    free_slot(x, s);
    x->freed[x->freed_count++] = (int32_t)(s - x->slots);
    return;
  }
  s->state = SLOT_READY;
  s->has_result = true;
  x->lines[s->layer].ready++;
  x->stats.ready++;
  x->stats.completed++;
}

void os_drain(os_exchange *x) {
  if (!atomic_load_explicit(&x->completed, memory_order_seq_cst)) return;
  slot *s = atomic_exchange_explicit(&x->completed, NULL, memory_order_acquire);
  for (slot *before; s; s = before) {
    before = s->completed_before;
    take_completion(x, s);
  }
}

/* ---- open, begin, close -------------------------------------------------------------------- */

int32_t os_slot_open(os_exchange *x, int32_t seq) {
  if (!x) return os_fail(OS_EINVAL, "exchange is NULL; it must be an os_exchange");
  if (!os_seq_get(x->arena, seq)) return OS_EINVAL;
  if (x->free_count == 0)
    return os_fail(OS_EFULL, "all %d slots are open; close one, and call os_exchange_reap",
                   x->config.slots);
  const int32_t index = x->free_slots[--x->free_count];
  slot *s = &x->slots[index];
  os_seq_retain(x->arena, seq);
  s->epoch++;
  s->seq = seq;
  s->state = SLOT_OPEN;
  s->begun = s->has_result = false;
  x->stats.open++;
  return index;
}

int os_slot_begin(os_exchange *x, int32_t index, int64_t position, int32_t q_len) {
  slot *s = os_slot_get(x, index);
  if (!s) return OS_EINVAL;
  if (s->state != SLOT_OPEN)
    return os_fail(OS_ESTATE, "slot %d has a hop under way; pick it first", index);
  if (os_check_range("q_len", q_len, 1, OS_MAX_Q_LEN)) return OS_EINVAL;
  if (os_check_range("position", position, 0, INT64_MAX - OS_MAX_Q_LEN)) return OS_EINVAL;
  s->row.start = position;
  s->row.q_len = q_len;
  s->begun = true;
  s->has_result = false;
  return OS_OK;
}

int os_slot_close(os_exchange *x, int32_t index) {
  slot *s = os_slot_get(x, index);
  if (!s) return OS_EINVAL;
  os_drain(x);
  if (s->state == SLOT_IN_FLIGHT) {
    os_line_remove(x, index);
    s->epoch++;
    s->state = SLOT_CLOSING;
    return 1;
  }
  if (s->state == SLOT_READY) os_line_remove(x, index);
  s->state = SLOT_FREE;
  free_slot(x, s);
  x->free_slots[x->free_count++] = index;
  return 0;
}

int os_exchange_reap(os_exchange *x, int32_t max, int32_t *slots) {
  if (!x) return os_fail(OS_EINVAL, "exchange is NULL; it must be an os_exchange");
  if (os_check_range("max", max, 0, INT32_MAX)) return OS_EINVAL;
  if (max > 0 && !slots) return os_fail(OS_EINVAL, "slots is NULL; it must have room for %d", max);
  os_drain(x);
  const int32_t count = x->freed_count < max ? x->freed_count : max;
  for (int32_t i = 0; i < count; i++) {
    slots[i] = x->freed[i];
    x->slots[slots[i]].state = SLOT_FREE;
    x->free_slots[x->free_count++] = slots[i];
  }
  x->freed_count -= count;
  memmove(x->freed, x->freed + count, (size_t)x->freed_count * sizeof *x->freed);
  return count;
}

int os_slot_lse(os_exchange *x, int32_t index, int64_t floats, float *lse) {
  slot *s = os_slot_get(x, index);
  if (!s) return OS_EINVAL;
  if (!lse) return os_fail(OS_EINVAL, "lse is NULL; it must have room for q_len * q_heads floats");
  os_drain(x);
  if (!s->has_result) return os_fail(OS_ESTATE, "slot %d has no finished hop", index);
  const int64_t needed = s->row.q_len * x->config.q_heads;
  if (os_check_range("floats", floats, needed, INT64_MAX)) return OS_EINVAL;
  for (int32_t i = 0; i < s->row.q_len; i++, lse += x->config.q_heads)
    memcpy(lse, s->lse + i * s->row.result.lse_stride, (size_t)x->config.q_heads * sizeof *lse);
  return OS_OK;
}
