/* Rows that wait at one layer and whose block tables begin alike: the common blocks are attended once.
 *
 * The engine's thread chains such hops, the older names the younger (`kin`). A worker that takes a kv
 * head of one (the lead) looks along the chain for hops of which nobody has taken that head yet, and
 * attends the common blocks for all of them together; what comes behind them each row's own item
 * attends, and whoever of the two is later merges. So nothing is taken out of turn, and nothing waits
 * for hops that are not queued.
 *
 * A hop that is found through its name may have ended and its slot be used again. Who looks at one
 * therefore counts himself into `left` first, which fails unless it is that very hop and still under
 * way; it cannot end before he lets go of it.
 */
#include <string.h>

#include "exchange.h"

/* Common blocks for every query head of a group: of fewer, what is saved is less than what a second range
 * and the merging cost (docs/benchmarks.md). Arithmetic is not saved, and grows with the group. */
enum { LEAST_BLOCKS_A_HEAD = 16, MOST_STEPS = 64 };
/* What is planned for a hop's prefix at one kv head; else the number of blocks that a lead attends. */
enum { PLAN_OPEN = 0, PLAN_OWN = -1 };

/* Hops that a lead has counted itself into, and what they have in common with it. */
typedef struct {
  slot *slots[OS_SHARED_QUERIES];
  int32_t common[OS_SHARED_QUERIES]; /* blocks */
  int32_t count;
} family;

/* ---- the engine's side --------------------------------------------------------------------- */

static int32_t least_blocks(const slot *s) { return LEAST_BLOCKS_A_HEAD * s->attention.group; }

/* Blocks are shared through prefixes alone, so the last of the least run stands for all before it; the
 * workers compare the tables before they believe that. */
static int32_t key_of(const os_exchange *x, const slot *s) {
  if (x->shares.count == 0 || s->row.ranges > 1) return OS_NONE;
  if (s->row.start / OS_BLOCK_TOKENS < least_blocks(s)) return OS_NONE;
  return s->row.blocks[least_blocks(s) - 1];
}

static void open_plans(os_exchange *x, int32_t area) {
  for (int32_t head = 0; head < x->kv_heads; head++)
    atomic_store_explicit(&x->plans[area * x->kv_heads + head], PLAN_OPEN, memory_order_relaxed);
}

void os_kin_join(os_exchange *x, int32_t index) {
  slot *s = &x->slots[index];
  s->key = key_of(x, s);
  if (s->key == OS_NONE) return;
  int32_t *youngest = &x->youngest[s->layer * OS_KIN_KEYS + s->key % OS_KIN_KEYS];
  const int32_t older = *youngest;
  *youngest = index;
  if (older == OS_NONE) return;
  slot *before = &x->slots[older];
  if (before->state != SLOT_IN_FLIGHT || before->layer != s->layer || before->key != s->key) return;
  s->area = os_areas_take(&x->shares, 2);
  if (s->area != OS_NONE) open_plans(x, s->area);
  atomic_store_explicit(&before->kin, os_hop_name(s, index), memory_order_release);
}

/* ---- the workers' side --------------------------------------------------------------------- */

static int32_t queries_of(const slot *s) { return s->row.q_len * s->attention.group; }

static _Atomic int32_t *plan_of(const slot *s, int32_t head) {
  return &s->exchange->plans[s->area * s->exchange->kv_heads + head];
}

/* Counts the caller into the hop of that name, or gives NULL when it has ended. */
static slot *hold(os_exchange *x, uint64_t name) {
  slot *s = &x->slots[(uint32_t)name];
  uint64_t left = atomic_load_explicit(&s->left, memory_order_relaxed);
  do {
    if (left >> 32 != name >> 32 || (uint32_t)left == 0) return NULL;
  } while (!atomic_compare_exchange_weak_explicit(&s->left, &left, left + 1, memory_order_acquire,
                                                  memory_order_relaxed));
  return s;
}

/* Whole blocks before either's own tokens, which nobody writes any more. */
static int32_t common_blocks(const slot *a, const slot *b) {
  const int64_t nearer = a->row.start < b->row.start ? a->row.start : b->row.start;
  const int32_t most = (int32_t)(nearer / OS_BLOCK_TOKENS);
  int32_t n = 0;
  while (n < most && a->row.blocks[n] == b->row.blocks[n]) n++;
  return n;
}

static bool can_follow(const slot *s, int32_t head, int32_t room) {
  return s->area != OS_NONE && queries_of(s) <= room &&
         atomic_load_explicit(plan_of(s, head), memory_order_relaxed) == PLAN_OPEN;
}

static void find_family(const slot *lead, int32_t head, family *f) {
  int32_t room = lead->exchange->arena->kernel->shared_queries - queries_of(lead);
  uint64_t name = atomic_load_explicit(&lead->kin, memory_order_acquire);
  for (int step = 0; name && room >= lead->attention.group && step < MOST_STEPS; step++) {
    slot *s = hold(lead->exchange, name);
    if (!s) return;
    name = atomic_load_explicit(&s->kin, memory_order_acquire);
    const int32_t common = can_follow(s, head, room) ? common_blocks(lead, s) : 0;
    if (common < least_blocks(lead)) {
      os_hop_let_go(s);
      continue;
    }
    room -= queries_of(s);
    f->slots[f->count] = s;
    f->common[f->count++] = common;
  }
}

/* The run of blocks that saves most: a longer one has fewer rows. */
static int32_t best_run(const family *f) {
  int32_t best = 0, saved = 0;
  for (int32_t i = 0; i < f->count; i++) {
    int32_t rows = 0;
    for (int32_t j = 0; j < f->count; j++) rows += f->common[j] >= f->common[i];
    if (rows * f->common[i] <= saved) continue;
    best = f->common[i];
    saved = rows * best;
  }
  return best;
}

/* Keeps the hops that have the run and whose head is still nobody's. */
static void plan_family(family *f, int32_t head, int32_t blocks) {
  int32_t kept = 0;
  for (int32_t i = 0; i < f->count; i++) {
    int32_t open = PLAN_OPEN;
    if (f->common[i] >= blocks &&
        atomic_compare_exchange_strong(plan_of(f->slots[i], head), &open, blocks))
      f->slots[kept++] = f->slots[i];
    else
      os_hop_let_go(f->slots[i]);
  }
  f->count = kept;
}

/* Part 0 is the prefix, part 1 the rest. */
static os_partial part_of(const slot *s, int32_t head, int32_t part) {
  const int32_t queries = queries_of(s), size = s->exchange->head_size;
  const os_split split = os_areas_split(&s->exchange->shares, s->area, head);
  const size_t floats = os_partial_floats(queries, size);
  return os_partial_at(split.partials + (size_t)part * floats, queries, size);
}

/* The later of the two merges. */
static void finish_part(const slot *s, int32_t head) {
  const os_split split = os_areas_split(&s->exchange->shares, s->area, head);
  if (atomic_fetch_sub_explicit(split.left, 1, memory_order_acq_rel) > 1) return;
  os_partial parts[2] = {part_of(s, head, 0), part_of(s, head, 1)};
  os_attend_merge(&s->attention, &s->row, head, parts, 2);
}

static os_partial queries_from(os_partial all, int32_t first, int32_t head_size) {
  return (os_partial){all.acc + first * os_padded(head_size), all.max + first, all.sum + first};
}

static void hand_over(slot *s, int32_t head, os_partial prefix) {
  const size_t queries = (size_t)queries_of(s), width = (size_t)os_padded(s->exchange->head_size);
  const os_partial to = part_of(s, head, 0);
  memcpy(to.acc, prefix.acc, queries * width * sizeof *to.acc);
  memcpy(to.max, prefix.max, queries * sizeof *to.max);
  memcpy(to.sum, prefix.sum, queries * sizeof *to.sum);
  finish_part(s, head);
  os_hop_let_go(s);
}

static void lead_family(slot *lead, int32_t head, int32_t blocks, const family *f, os_hand *hand) {
  const int32_t size = lead->exchange->head_size;
  const os_row *rows[OS_SHARED_QUERIES] = {&lead->row};
  for (int32_t i = 0; i < f->count; i++) rows[i + 1] = &f->slots[i]->row;
  const os_partial all =
      os_attend_prefix(&lead->attention, rows, f->count + 1, head, blocks, hand);
  for (int32_t i = 0, first = queries_of(lead); i < f->count; i++) {
    const int32_t queries = queries_of(f->slots[i]);
    hand_over(f->slots[i], head, queries_from(all, first, size));
    first += queries;
  }
  os_partial parts[2] = {queries_from(all, 0, size),
                         os_partial_at(hand->partial, queries_of(lead), size)};
  os_attend_rest(&lead->attention, &lead->row, head, blocks, parts[1], hand);
  os_attend_merge(&lead->attention, &lead->row, head, parts, 2);
}

/* Whether a lead attends the hop's prefix at this head, and how many blocks; else the head is the
 * caller's as a whole. */
static int32_t planned_blocks(slot *s, int32_t head) {
  int32_t plan = PLAN_OPEN;
  if (s->area == OS_NONE) return 0;
  return atomic_compare_exchange_strong(plan_of(s, head), &plan, PLAN_OWN) ? 0 : plan;
}

void os_run_unsplit(slot *s, int32_t head, os_hand *hand) {
  int32_t blocks = planned_blocks(s, head);
  if (blocks > 0) {
    os_attend_rest(&s->attention, &s->row, head, blocks, part_of(s, head, 1), hand);
    finish_part(s, head);
    return;
  }
  family f;
  f.count = 0;
  find_family(s, head, &f);
  blocks = best_run(&f);
  plan_family(&f, head, blocks);
  if (f.count > 0)
    lead_family(s, head, blocks, &f, hand);
  else
    os_attend_item(&s->attention, &s->row, head, 0, NULL, hand);
}
