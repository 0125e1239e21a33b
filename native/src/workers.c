/* One ring, one producer (the engine's thread), many consumers.
 *
 * An entry's claim word holds ticket (ring position), items and next item: 32, 16 and 16 bits. A
 * consumer that raises `next` by compare-and-swap owns that item; the ticket makes a swap fail on
 * an entry that has been used again since. `head` is only a hint that moves past exhausted entries.
 */
#include "workers.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "clock.h"
#include "error.h"
#include "kernel.h"
#include "memory.h"

enum { LONG_SLICE_NS = 50 * 1000 * 1000 };
static const int64_t SECOND_NS = 1000 * 1000 * 1000;

typedef struct {
  _Atomic uint64_t claim;
  _Atomic(os_task *) task;
} ring_entry;

typedef struct {
  os_hand hand;
  os_workers *pool;
  pthread_t thread;
  _Atomic int32_t inside; /* between taking an item and having finished it */
} __attribute__((aligned(128))) worker;

/* The one parallel loop of the engine's thread. */
typedef struct {
  os_task task;
  os_body body;
  void *context;
  _Atomic int32_t next, left_helpers;
  int32_t count;
} parallel_loop;

struct os_workers {
  _Atomic uint64_t head __attribute__((aligned(128)));
  _Atomic uint64_t tail __attribute__((aligned(128)));
  _Atomic uint32_t signal __attribute__((aligned(128))); /* raised for each wake-up */
  _Atomic int32_t sleepers, paused, stop, running;
  ring_entry ring[OS_RING_ENTRIES] __attribute__((aligned(128)));
  parallel_loop loop;
  int32_t count, spin_ns;
  bool batch_priority;
  worker *workers;
  float *partials;
  size_t partials_bytes;
  _Atomic int32_t *counters;
  os_nodes nodes;
  pid_t creator;
};

/* ---- ring -------------------------------------------------------------------------------- */

static uint32_t claim_ticket(uint64_t claim) { return (uint32_t)(claim >> 32); }
static uint32_t claim_items(uint64_t claim) { return (uint32_t)(claim >> 16) & 0xffff; }
static uint32_t claim_next(uint64_t claim) { return (uint32_t)claim & 0xffff; }
static bool claim_spent(uint64_t claim) { return claim_next(claim) >= claim_items(claim); }

static ring_entry *entry_at(os_workers *w, uint64_t position) {
  return &w->ring[position % OS_RING_ENTRIES];
}

/* Takes an item: its task, or NULL when the ring holds none. */
static os_task *take(os_workers *w, int32_t *item) {
  for (;;) {
    uint64_t head = atomic_load_explicit(&w->head, memory_order_acquire);
    if (head == atomic_load_explicit(&w->tail, memory_order_seq_cst)) return NULL;
    ring_entry *entry = entry_at(w, head);
    uint64_t claim = atomic_load_explicit(&entry->claim, memory_order_acquire);
    if (claim_ticket(claim) != (uint32_t)head) continue; /* head has moved on */
    if (claim_spent(claim)) {
      atomic_compare_exchange_strong(&w->head, &head, head + 1);
      continue;
    }
    os_task *task = atomic_load_explicit(&entry->task, memory_order_relaxed);
    if (!atomic_compare_exchange_weak(&entry->claim, &claim, claim + 1)) continue;
    *item = (int32_t)claim_next(claim);
    return task;
  }
}

static bool has_items(os_workers *w) {
  uint64_t head = atomic_load(&w->head), tail = atomic_load(&w->tail);
  for (; head != tail; head++) {
    uint64_t claim = atomic_load(&entry_at(w, head)->claim);
    if (claim_ticket(claim) != (uint32_t)head || !claim_spent(claim)) return true;
  }
  return false;
}

int32_t os_workers_space(os_workers *w) {
  uint64_t tail = atomic_load(&w->tail), head = atomic_load(&w->head);
  while (head != tail && claim_spent(atomic_load(&entry_at(w, head)->claim))) {
    if (!atomic_compare_exchange_strong(&w->head, &head, head + 1)) continue; /* head reloaded */
    head++;
  }
  return (int32_t)(OS_RING_ENTRIES - (tail - head));
}

void os_workers_put(os_workers *w, int32_t at, os_task *task, int32_t items) {
  uint64_t position = atomic_load_explicit(&w->tail, memory_order_relaxed) + (uint64_t)at;
  ring_entry *entry = entry_at(w, position);
  atomic_store_explicit(&entry->task, task, memory_order_relaxed);
  uint64_t claim = (uint64_t)(uint32_t)position << 32 | (uint64_t)(uint32_t)items << 16;
  atomic_store_explicit(&entry->claim, claim, memory_order_release);
}

void os_workers_publish(os_workers *w, int32_t count) {
  uint64_t tail = atomic_load_explicit(&w->tail, memory_order_relaxed);
  atomic_store_explicit(&w->tail, tail + (uint64_t)count, memory_order_seq_cst);
}

void os_workers_wake(os_workers *w, int32_t items) {
  int32_t sleepers = atomic_load_explicit(&w->sleepers, memory_order_seq_cst);
  if (sleepers == 0 || items == 0) return;
  atomic_fetch_add(&w->signal, 1);
  os_futex_wake(&w->signal, items < sleepers ? items : sleepers);
}

/* ---- a worker's life ----------------------------------------------------------------------- */

static void run_item(os_task *task, int32_t item, os_hand *hand) {
  int64_t begin = os_now_ns();
  atomic_store_explicit(&hand->taken_ns, begin, memory_order_relaxed);
  task->run(task, item, hand);
  atomic_fetch_add_explicit(&hand->busy_ns, os_now_ns() - begin, memory_order_relaxed);
}

bool os_workers_run_one(os_workers *w, os_hand *hand) {
  int32_t item;
  os_task *task = take(w, &item);
  if (!task) return false;
  run_item(task, item, hand);
  return true;
}

/* One item through the gate. `inside` is raised before the gate is read, and os_workers_pause
 * closes the gate before it reads `inside`: one of the two always sees the other. */
static bool work(worker *self) {
  os_workers *w = self->pool;
  atomic_store(&self->inside, 1);
  bool worked = !atomic_load(&w->paused) && os_workers_run_one(w, &self->hand);
  atomic_store(&self->inside, 0);
  return worked;
}

static bool idle(os_workers *w) {
  return !atomic_load(&w->stop) && (atomic_load(&w->paused) || !has_items(w));
}

static void rest(worker *self) {
  os_workers *w = self->pool;
  int64_t until = os_now_ns() + (atomic_load(&w->paused) ? 0 : w->spin_ns);
  do {
    for (int i = 0; i < 32; i++) {
      if (!idle(w)) return;
      os_relax();
    }
  } while (os_now_ns() < until);
  atomic_fetch_add(&w->sleepers, 1);
  uint32_t signal = atomic_load(&w->signal);
  if (idle(w)) {
    atomic_fetch_add_explicit(&self->hand.sleeps, 1, memory_order_relaxed);
    os_futex_wait(&w->signal, signal, 1000000000);
  }
  atomic_fetch_sub(&w->sleepers, 1);
}

/* Gives way to others on the same core. From Linux 6.12 on, what wakes with a shorter slice than the
 * running thread's preempts it at once. A wish: without it the worker still works. */
static void stand_back(void) {
  struct { /* sched_attr, which glibc declares from 2.41 on */
    uint32_t size, policy;
    uint64_t flags;
    int32_t nice;
    uint32_t priority;
    uint64_t runtime_ns, deadline_ns, period_ns;
  } wish = {.size = sizeof wish, .policy = SCHED_BATCH, .nice = 5, .runtime_ns = LONG_SLICE_NS};
  syscall(SYS_sched_setattr, 0, &wish, 0);
}

static void *live(void *argument) {
  worker *self = argument;
  os_workers *w = self->pool;
  if (w->batch_priority) stand_back();
  atomic_fetch_add(&w->running, 1);
  while (!atomic_load(&w->stop))
    if (!work(self)) rest(self);
  atomic_fetch_sub(&w->running, 1);
  return NULL;
}

/* ---- create and destroy -------------------------------------------------------------------- */

static size_t hand_bytes(void) {
  const size_t floats = OS_SCRATCH_FLOATS + os_partial_floats(OS_MAX_QUERIES, OS_MAX_HEAD_SIZE) +
                        OS_SHARED_QUERIES * OS_MAX_HEAD_SIZE +
                        os_partial_floats(OS_SHARED_QUERIES, OS_MAX_HEAD_SIZE);
  return floats * sizeof(float);
}

int os_hand_create(os_hand *hand) {
  hand->scratch = os_map(hand_bytes());
  if (!hand->scratch) return OS_ENOMEM;
  hand->partial = hand->scratch + OS_SCRATCH_FLOATS;
  hand->shared = hand->partial + os_partial_floats(OS_MAX_QUERIES, OS_MAX_HEAD_SIZE);
  return OS_OK;
}

void os_hand_destroy(os_hand *hand) { os_unmap(hand->scratch, hand_bytes()); }

static int start_worker(os_workers *w, int32_t i, const int32_t *cores) {
  worker *self = &w->workers[i];
  self->pool = w;
  if (os_hand_create(&self->hand) != OS_OK) return OS_ENOMEM;
  int failed = pthread_create(&self->thread, NULL, live, self);
  if (failed) {
    os_hand_destroy(&self->hand);
    return os_fail(OS_ENOMEM, "could not start worker thread %d: %s", i, strerror(failed));
  }
  w->count++;
  if (!cores) return OS_OK;
  cpu_set_t set;
  CPU_ZERO(&set);
  if (cores[i] >= 0 && cores[i] < CPU_SETSIZE) CPU_SET(cores[i], &set);
  if (pthread_setaffinity_np(self->thread, sizeof set, &set) == 0) return OS_OK;
  return os_fail(OS_EINVAL, "cores[%d] is %d; it must be a core this process may run on", i,
                 cores[i]);
}

/* Python's signals belong to its main thread: workers start with all of them blocked, but not with those of
 * a thread's own faults, which would end the process before any handler (faulthandler's) had its say. */
static sigset_t workers_mask(void) {
  static const int faults[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT, SIGTRAP, SIGSYS};
  sigset_t blocked;
  sigfillset(&blocked);
  for (size_t i = 0; i < sizeof faults / sizeof *faults; i++) sigdelset(&blocked, faults[i]);
  return blocked;
}

static int start_all(os_workers *w, int32_t count, const int32_t *cores) {
  const sigset_t blocked = workers_mask();
  sigset_t before;
  pthread_sigmask(SIG_SETMASK, &blocked, &before);
  int status = OS_OK;
  for (int32_t i = 0; i < count && status == OS_OK; i++) status = start_worker(w, i, cores);
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  return status;
}

/* Spinning on the only core would keep from it whoever is waited for. Workers may have cores that their
 * creator, pinned to its own, has not. */
static int32_t useful_spin_ns(const os_workers_config *config) {
  cpu_set_t cores;
  if (sched_getaffinity(0, sizeof cores, &cores) != 0) return config->spin_ns;
  for (int32_t i = 0; config->cores && i < config->count; i++)
    if (config->cores[i] >= 0 && config->cores[i] < CPU_SETSIZE) CPU_SET(config->cores[i], &cores);
  return CPU_COUNT(&cores) <= 1 ? 0 : config->spin_ns;
}

static os_workers *allocate(int32_t count) {
  os_workers *w = aligned_alloc(128, sizeof *w);
  if (!w) return NULL;
  memset(w, 0, sizeof *w);
  w->creator = getpid();
  size_t splits = 4 * ((size_t)count + 1);
  w->partials_bytes =
      splits * os_partial_floats(OS_MAX_QUERIES, OS_MAX_HEAD_SIZE) * sizeof(float);
  w->workers = aligned_alloc(128, sizeof(worker) * (size_t)(count ? count : 1));
  w->counters = calloc(splits, sizeof *w->counters);
  w->partials = count ? os_map(w->partials_bytes) : NULL;
  if (w->workers) memset(w->workers, 0, sizeof(worker) * (size_t)(count ? count : 1));
  if (w->workers && w->counters && (w->partials || !count)) return w;
  os_workers_destroy(w);
  return NULL;
}

os_workers *os_workers_create(const os_workers_config *config) {
  if (!config) {
    os_fail(OS_EINVAL, "config is NULL; it must point at an os_workers_config");
    return NULL;
  }
  if (os_check_range("count", config->count, 0, 1024)) return NULL;
  if (os_check_range("spin_ns", config->spin_ns, 0, 1000000000)) return NULL;
  os_nodes nodes;
  if (os_nodes_read(&nodes, config->node_count, config->nodes)) return NULL;
  if (!os_kernel_get()) return NULL;
  os_workers *w = allocate(config->count);
  if (!w) {
    os_fail(OS_ENOMEM, "could not allocate %d workers", config->count);
    return NULL;
  }
  w->spin_ns = useful_spin_ns(config);
  w->batch_priority = config->batch_priority != 0;
  w->nodes = nodes;
  if (start_all(w, config->count, config->cores) == OS_OK) return w;
  os_workers_destroy(w);
  return NULL;
}

static void stop_all(os_workers *w) {
  atomic_store(&w->stop, 1);
  atomic_fetch_add(&w->signal, 1);
  os_futex_wake(&w->signal, INT32_MAX);
  for (int32_t i = 0; i < w->count; i++) pthread_join(w->workers[i].thread, NULL);
}

void os_workers_destroy(os_workers *w) {
  if (!w) return;
  if (getpid() == w->creator) stop_all(w); /* a forked child has the memory, not the threads */
  for (int32_t i = 0; i < w->count; i++) os_hand_destroy(&w->workers[i].hand);
  os_unmap(w->partials, w->partials_bytes);
  free(w->counters);
  free(w->workers);
  free(w);
}

/* ---- gate and figures ---------------------------------------------------------------------- */

int os_workers_resume(os_workers *w) {
  if (!w) return os_fail(OS_EINVAL, "workers is NULL; it must be an os_workers");
  atomic_store(&w->paused, 0);
  atomic_fetch_add(&w->signal, 1);
  os_futex_wake(&w->signal, INT32_MAX);
  return OS_OK;
}

static int await_gate(os_workers *w, int64_t patience_ns) {
  const int64_t until = os_now_ns() + patience_ns;
  for (int32_t i = 0; i < w->count; i++)
    while (atomic_load(&w->workers[i].inside)) {
      if (os_now_ns() > until)
        return os_fail(OS_EBUSY, "worker %d is still inside an item after %d s", i,
                       (int)(patience_ns / SECOND_NS));
      os_sleep_ns(20000);
    }
  return OS_OK;
}

int os_workers_pause_for(os_workers *w, int64_t patience_ns) {
  if (!w) return os_fail(OS_EINVAL, "workers is NULL; it must be an os_workers");
  atomic_store(&w->paused, 1);
  const int status = await_gate(w, patience_ns);
  if (status != OS_OK) os_workers_resume(w);
  return status;
}

int os_workers_pause(os_workers *w) { return os_workers_pause_for(w, 60 * SECOND_NS); }

int os_workers_get_stats(const os_workers *w, os_workers_stats *out) {
  if (!w) return os_fail(OS_EINVAL, "workers is NULL; it must be an os_workers");
  if (!out) return os_fail(OS_EINVAL, "out is NULL; it must point at an os_workers_stats");
  *out = (os_workers_stats){.running = atomic_load(&w->running), .spin_ns = w->spin_ns};
  for (int32_t i = 0; i < w->count; i++) {
    const os_hand *hand = &w->workers[i].hand;
    out->busy_ns += atomic_load_explicit(&hand->busy_ns, memory_order_relaxed);
    out->items += atomic_load_explicit(&hand->items, memory_order_relaxed);
    out->kv_bytes += atomic_load_explicit(&hand->kv_bytes, memory_order_relaxed);
    out->sleeps += atomic_load_explicit(&hand->sleeps, memory_order_relaxed);
    const int64_t taken = atomic_load_explicit(&hand->taken_ns, memory_order_relaxed);
    if (taken > out->taken_ns) out->taken_ns = taken;
  }
  return OS_OK;
}

int32_t os_workers_count(const os_workers *w) { return w ? w->count : 0; }
const os_nodes *os_workers_nodes(const os_workers *w) { return w ? &w->nodes : NULL; }
int32_t os_workers_splits(const os_workers *w) { return w && w->count ? 4 * (w->count + 1) : 0; }
float *os_workers_partials(os_workers *w) { return w->partials; }
_Atomic int32_t *os_workers_counters(os_workers *w) { return w->counters; }

/* ---- parallel loop ------------------------------------------------------------------------- */

static void run_loop(parallel_loop *loop, os_hand *hand) {
  for (int32_t i; (i = atomic_fetch_add(&loop->next, 1)) < loop->count;)
    loop->body(loop->context, i, hand);
}

static void run_helper(os_task *task, int32_t item, os_hand *hand) {
  (void)item; /* one item is one helper */
  parallel_loop *loop = (parallel_loop *)task;
  run_loop(loop, hand);
  atomic_fetch_sub_explicit(&loop->left_helpers, 1, memory_order_release);
}

/* Takes back the helpers' places that nobody has taken: the loop is the caller's and must not be
 * entered once it has returned. */
static void cancel_helpers(os_workers *w, uint64_t position) {
  ring_entry *entry = entry_at(w, position);
  uint64_t claim = atomic_load(&entry->claim);
  for (;;) {
    if (claim_ticket(claim) != (uint32_t)position || claim_spent(claim)) return;
    uint32_t free_places = claim_items(claim) - claim_next(claim);
    if (atomic_compare_exchange_weak(&entry->claim, &claim, claim + free_places)) {
      atomic_fetch_sub(&w->loop.left_helpers, (int32_t)free_places);
      return;
    }
  }
}

/* No time limit: a helper inside the loop uses the caller's memory and always comes out. */
static void await_helpers(os_workers *w) {
  int64_t patience = os_now_ns() + 50000;
  while (atomic_load_explicit(&w->loop.left_helpers, memory_order_acquire) > 0) {
    if (os_now_ns() > patience)
      os_sleep_ns(20000);
    else
      os_relax();
  }
}

static void start_loop(os_workers *w, int32_t count, int32_t helpers, os_body body, void *context) {
  parallel_loop *loop = &w->loop;
  loop->task.run = run_helper;
  loop->body = body;
  loop->context = context;
  loop->count = count;
  atomic_store(&loop->next, 0);
  atomic_store(&loop->left_helpers, helpers);
  os_workers_put(w, 0, &loop->task, helpers);
  os_workers_publish(w, 1);
  os_workers_wake(w, helpers);
}

int os_parallel_for(os_workers *w, int32_t count, os_body body, void *context, os_hand *hand) {
  int32_t wanted = hand ? count - 1 : count;
  int32_t helpers = os_workers_count(w) < wanted ? os_workers_count(w) : wanted;
  if (helpers > 0 && os_workers_space(w) < 1) helpers = 0;
  if (!hand && (helpers <= 0 || atomic_load(&w->paused)))
    return os_fail(OS_ESTATE, "workers take no items; they must not be paused, full or absent");
  if (helpers <= 0) {
    for (int32_t i = 0; i < count; i++) body(context, i, hand);
    return OS_OK;
  }
  uint64_t position = atomic_load(&w->tail);
  start_loop(w, count, helpers, body, context);
  if (hand) {
    run_loop(&w->loop, hand);
    cancel_helpers(w, position);
  }
  await_helpers(w);
  return OS_OK;
}
