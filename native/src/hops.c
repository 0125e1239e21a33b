/* Submission, the workers' side, and picking. */
#include <string.h>

#include "clock.h"
#include "convert.h"
#include "error.h"
#include "exchange.h"

enum { SPIN_NS = 20000, NAP_NS = 1000000 };

/* ---- the workers' side --------------------------------------------------------------------- */

/* `leaving` keeps the exchange alive until this thread has let go of it. */
static void complete(os_exchange *x, slot *s) {
  atomic_fetch_add(&x->leaving, 1);
  slot *top = atomic_load_explicit(&x->completed, memory_order_relaxed);
  do s->completed_before = top;
  while (!atomic_compare_exchange_weak(&x->completed, &top, s));
  if (atomic_load_explicit(&x->listening, memory_order_seq_cst)) {
    atomic_fetch_add(&x->signal, 1);
    os_futex_wake(&x->signal, 1);
  }
  atomic_fetch_sub_explicit(&x->leaving, 1, memory_order_release);
}

/* The slot is the last one's until it is pushed; nobody else reads it once he is counted. */
void os_hop_let_go(slot *s) {
  const uint64_t left = atomic_fetch_sub_explicit(&s->left, 1, memory_order_acq_rel);
  if ((uint32_t)left > 1) return;
  os_exchange *x = s->exchange;
  atomic_fetch_add_explicit(&x->arena->sequences[s->seq].finished, 1, memory_order_release);
  complete(x, s);
}

void os_run_slot(os_task *task, int32_t item, os_hand *hand) {
  slot *s = (slot *)task;
  const int32_t head = item / s->row.ranges, range = item % s->row.ranges;
  if (s->row.ranges > 1) {
    const os_split split = os_areas_split(&s->exchange->splits, s->area, head);
    os_attend_item(&s->attention, &s->row, head, range, &split, hand);
  } else {
    os_run_unsplit(s, head, hand);
  }
  atomic_fetch_add_explicit(&hand->items, 1, memory_order_relaxed);
  os_hop_let_go(s);
}

/* ---- submission ---------------------------------------------------------------------------- */

/* One row buffer, read or written from its first row on. */
typedef struct {
  uint8_t *at;
  size_t stride, width; /* bytes between rows, bytes of a row */
} rows;

static rows rows_of(const void *first, int64_t stride, int64_t width, size_t element) {
  return (rows){(uint8_t *)first, (size_t)stride * element, (size_t)width * element};
}

static void read_rows(const os_exchange *x, rows *from, uint8_t *to, int32_t count) {
  for (int32_t i = 0; i < count; i++, from->at += from->stride, to += x->token_bytes)
    memcpy(to, from->at, from->width);
}

static void write_rows(const os_exchange *x, rows *to, const uint8_t *from, int32_t count) {
  for (int32_t i = 0; i < count; i++, to->at += to->stride, from += x->token_bytes)
    memcpy(to->at, from, to->width);
}

static int check_submission(const os_exchange *x, int32_t index) {
  const slot *s = os_slot_get(x, index);
  if (!s) return OS_EINVAL;
  if (s->state != SLOT_OPEN || !s->begun)
    return os_fail(OS_ESTATE, "slot %d %s", index,
                   s->begun ? "has a hop under way, or is named twice; pick it first"
                            : "has no token; call os_slot_begin first");
  const os_sequence *sequence = os_seq_get(x->arena, s->seq);
  if (!sequence) return OS_EINVAL;
  const int64_t capacity = (int64_t)sequence->block_count * OS_BLOCK_TOKENS;
  if (s->row.start <= sequence->length && s->row.start + s->row.q_len <= capacity) return OS_OK;
  return os_fail(OS_EINVAL,
                 "slot %d is at position %lld with q_len %d; seq %d has %lld tokens and blocks for "
                 "%lld",
                 index, (long long)s->row.start, s->row.q_len, s->seq,
                 (long long)sequence->length, (long long)capacity);
}

/* Marks the slots, so that one named twice is seen; puts all back when one is wrong. */
static int claim_slots(os_exchange *x, int32_t count, const int32_t *slots) {
  for (int32_t i = 0; i < count; i++) {
    const int status = check_submission(x, slots[i]);
    if (status == OS_OK) {
      x->slots[slots[i]].state = SLOT_SUBMITTING;
      os_fetch_to_write(&x->slots[slots[i]], sizeof(slot));
      continue;
    }
    while (i-- > 0) x->slots[slots[i]].state = SLOT_OPEN;
    return status;
  }
  return OS_OK;
}

static int32_t choose_ranges(os_exchange *x, slot *s, const os_load *load) {
  if (x->splits.free_count == 0) return 1;
  const int64_t tokens = os_slot_tokens(s);
  int32_t wanted = os_wanted_ranges(tokens, load);
  if (wanted > x->splits.parts) wanted = x->splits.parts;
  const int32_t ranges = os_ranges(tokens, x->config.split_tokens, wanted);
  if (ranges < 2) return 1;
  s->area = os_areas_take(&x->splits, ranges);
  return ranges;
}

/* What a submission writes: it lies with the workers' cores, or in memory. */
static void fetch_to_park(const os_exchange *x, const slot *s) {
  const uint8_t *first = s->residual ? s->residual : s->q;
  for (int32_t i = 0; i < s->row.q_len; i++)
    os_fetch_to_write(first + (size_t)i * x->token_bytes, (size_t)(s->o - first));
}

/* What waits with the slots that are about to leave; counts these in. */
static os_load load_with(os_exchange *x, int32_t count, const int32_t *slots) {
  for (int32_t i = 0; i < count; i++) x->tokens_in_flight += os_slot_tokens(&x->slots[slots[i]]);
  return (os_load){.items = (int64_t)(x->stats.in_flight + count) * x->kv_heads,
                   .tokens = x->tokens_in_flight * x->kv_heads,
                   .threads = os_workers_count(x->config.workers)};
}

/* Everything the workers will read. Returns the slot's items. */
static int32_t prepare(os_exchange *x, int32_t index, int32_t layer, int64_t iteration,
                       const os_load *load) {
  slot *s = &x->slots[index];
  os_sequence *sequence = &x->arena->sequences[s->seq];
  s->layer = layer;
  s->iteration = iteration;
  s->attention.layer = layer;
  s->row.blocks = sequence->blocks;
  s->submitted_epoch = s->epoch;
  s->has_result = false;
  s->row.ranges = choose_ranges(x, s, load);
  const int32_t items = x->kv_heads * s->row.ranges;
  if (++s->hop == 0) s->hop = 1; /* a name must never read as none */
  atomic_store_explicit(&s->left, (uint64_t)s->hop << 32 | (uint32_t)items, memory_order_relaxed);
  atomic_store_explicit(&s->kin, 0, memory_order_relaxed);
  sequence->submitted++;
  const int64_t end = s->row.start + s->row.q_len;
  if (end > sequence->length) sequence->length = end;
  return items;
}

static int check_submit(os_exchange *x, int32_t layer, int32_t count, const int32_t *slots,
                        const void *q, const void *k, const void *v, const void *residual) {
  if (!x) return os_fail(OS_EINVAL, "exchange is NULL; it must be an os_exchange");
  if (os_check_layer(x->arena, layer)) return OS_EINVAL;
  if (os_check_range("count", count, 0, x->config.slots)) return OS_EINVAL;
  if (count == 0) return OS_OK;
  if (!slots || !q || !k || !v)
    return os_fail(OS_EINVAL, "%s is NULL; it must hold the rows of %d slots",
                   !slots ? "slots" : !q ? "q" : !k ? "k" : "v", count);
  if (!residual == !x->config.host_residual) return OS_OK;
  return os_fail(OS_EINVAL, "residual is %s; host_residual is %d", residual ? "given" : "NULL",
                 x->config.host_residual);
}

static int check_stride(const char *name, int64_t stride, int64_t width) {
  return os_check_range(name, stride, width, INT32_MAX);
}

int os_exchange_submit(os_exchange *x, int32_t layer, int64_t iteration, int32_t count,
                       const int32_t *slots, const void *q, int64_t q_stride, const void *k,
                       int64_t k_stride, const void *v, int64_t v_stride, const void *residual,
                       int64_t residual_stride) {
  if (check_submit(x, layer, count, slots, q, k, v, residual)) return OS_EINVAL;
  if (count == 0) return OS_OK;
  const int64_t kv_width = (int64_t)x->kv_heads * x->head_size, q_width = kv_width * x->group;
  if (check_stride("q_stride", q_stride, q_width) || check_stride("k_stride", k_stride, kv_width) ||
      check_stride("v_stride", v_stride, kv_width) ||
      (residual && check_stride("residual_stride", residual_stride, x->config.hidden_size)))
    return OS_EINVAL;
  os_drain(x);
  if (os_workers_space(x->config.workers) < count)
    return os_fail(OS_EFULL, "the submit ring has no room for %d slots", count);
  const int status = claim_slots(x, count, slots);
  if (status != OS_OK) return status;
  const size_t element = os_dtype_bytes(x->config.dtype);
  rows q_rows = rows_of(q, q_stride, q_width, element);
  rows k_rows = rows_of(k, k_stride, kv_width, element);
  rows v_rows = rows_of(v, v_stride, kv_width, element);
  rows residual_rows = rows_of(residual, residual_stride, x->config.hidden_size, element);
  const os_load load = load_with(x, count, slots);
  int32_t items = 0;
  fetch_to_park(x, &x->slots[slots[0]]);
  for (int32_t i = 0; i < count; i++) {
    if (i + 1 < count) fetch_to_park(x, &x->slots[slots[i + 1]]);
    slot *s = &x->slots[slots[i]];
    read_rows(x, &q_rows, s->q, s->row.q_len);
    read_rows(x, &k_rows, s->k, s->row.q_len);
    read_rows(x, &v_rows, s->v, s->row.q_len);
    if (residual) read_rows(x, &residual_rows, s->residual, s->row.q_len);
    const int32_t own_items = prepare(x, slots[i], layer, iteration, &load);
    os_kin_join(x, slots[i]);
    s->state = SLOT_IN_FLIGHT;
    os_line_append(x, slots[i]);
    os_workers_put(x->config.workers, i, &s->task, own_items);
    items += own_items;
  }
  os_workers_publish(x->config.workers, count);
  x->stats.submitted += count;
  x->stats.in_flight += count;
  os_workers_wake(x->config.workers, items);
  return OS_OK;
}

/* ---- picking ------------------------------------------------------------------------------- */

/* Sleeps until a completion comes or `ns` have passed; looks again after saying that it listens. */
static void listen(os_exchange *x, const line *l, int64_t ns) {
  const uint32_t signal = atomic_load(&x->signal);
  atomic_store_explicit(&x->listening, 1, memory_order_seq_cst);
  const int32_t ready = l->ready;
  os_drain(x);
  if (l->ready == ready && l->ready < l->waiting) os_futex_wait(&x->signal, signal, ns);
  atomic_store(&x->listening, 0);
}

static void await_line(os_exchange *x, int32_t layer, int64_t wait_ns) {
  const line *l = &x->lines[layer];
  const int64_t begin = os_now_ns();
  while (l->ready < l->waiting) {
    const int64_t waited = os_now_ns() - begin, left = wait_ns - waited;
    if (left <= 0) return;
    if (waited < SPIN_NS)
      os_relax();
    else
      listen(x, l, left < NAP_NS ? left : NAP_NS);
    os_drain(x);
  }
}

int os_pick_check(const os_exchange *x, const os_pick *p) {
  if (!x) return os_fail(OS_EINVAL, "exchange is NULL; it must be an os_exchange");
  if (os_check_layer(x->arena, p->layer)) return OS_EINVAL;
  if (os_check_range("max_rows", p->max_rows, 0, INT32_MAX)) return OS_EINVAL;
  if (os_check_range("wait_ns", p->wait_ns, 0, 60000000000)) return OS_EINVAL;
  if (!p->rows) return os_fail(OS_EINVAL, "rows_out is NULL; it must point at an int32");
  if (p->max_rows == 0) return OS_OK;
  if (!p->slots || !p->o || !p->positions)
    return os_fail(OS_EINVAL, "%s is NULL; it must have room for %d rows",
                   !p->slots ? "slots" : !p->o ? "o" : "positions", p->max_rows);
  if (!p->residual != !x->config.host_residual)
    return os_fail(OS_EINVAL, "residual is %s; host_residual is %d", p->residual ? "given" : "NULL",
                   x->config.host_residual);
  if (check_stride("o_stride", p->o_stride, (int64_t)x->config.q_heads * x->head_size))
    return OS_EINVAL;
  if (!p->residual) return OS_OK;
  return check_stride("residual_stride", p->residual_stride, x->config.hidden_size);
}

static void count_pick(os_exchange *x, const slot *s, int64_t iteration) {
  x->stats.picked++;
  x->stats.picked_rows += s->row.q_len;
  if (s->iteration == iteration) x->stats.same_iteration++;
}

/* Whether it came back in the iteration in which it left, and may not join there. */
static bool too_early(const os_exchange *x, const slot *s, const os_pick *p) {
  return x->config.later_joins && p->wait_ns == 0 && s->iteration == p->iteration;
}

int os_pick_run(os_exchange *x, const os_pick *p) {
  *p->rows = 0;
  if (p->max_rows == 0) return 0;
  os_drain(x);
  if (p->wait_ns > 0) await_line(x, p->layer, p->wait_ns);
  const size_t element = os_dtype_bytes(x->config.dtype);
  rows o = rows_of(p->o, p->o_stride, (int64_t)x->config.q_heads * x->head_size, element);
  rows residual = rows_of(p->residual, p->residual_stride, x->config.hidden_size, element);
  int32_t count = 0;
  for (int32_t index = x->lines[p->layer].first, next; index != OS_NONE; index = next) {
    slot *s = &x->slots[index];
    next = s->next;
    if (s->state != SLOT_READY || too_early(x, s, p)) continue;
    if (*p->rows + s->row.q_len > p->max_rows) break; /* those behind it must not overtake */
    write_rows(x, &o, s->o, s->row.q_len);
    if (p->residual) write_rows(x, &residual, s->residual, s->row.q_len);
    for (int32_t i = 0; i < s->row.q_len; i++) p->positions[*p->rows + i] = s->row.start + i;
    os_line_remove(x, index);
    s->state = SLOT_OPEN;
    count_pick(x, s, p->iteration);
    p->slots[count++] = index;
    *p->rows += s->row.q_len;
  }
  return count;
}

int os_exchange_pick(os_exchange *x, int32_t layer, int64_t iteration, int32_t max_rows,
                     int64_t wait_ns, int32_t *slots, void *o, int64_t o_stride, void *residual,
                     int64_t residual_stride, int64_t *positions, int32_t *rows_out) {
  const os_pick pick = {.layer = layer,
                        .max_rows = max_rows,
                        .iteration = iteration,
                        .wait_ns = wait_ns,
                        .slots = slots,
                        .o = o,
                        .residual = residual,
                        .o_stride = o_stride,
                        .residual_stride = residual_stride,
                        .positions = positions,
                        .rows = rows_out};
  return os_pick_check(x, &pick) ? OS_EINVAL : os_pick_run(x, &pick);
}
