/* The gate, and what a pause that has waited too long leaves behind. */
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <string.h>
#include <unistd.h>

#include "../../native/src/clock.h"
#include "../../native/src/workers.h"
#include "check.h"

enum { MILLISECOND_NS = 1000 * 1000, PATIENCE_S = 60 };

typedef struct {
  os_task task;
  _Atomic int32_t entered, may_leave, left;
} stay;

static void run_stay(os_task *task, int32_t item, os_hand *hand) {
  (void)item, (void)hand;
  stay *s = (stay *)task;
  atomic_fetch_add(&s->entered, 1);
  while (!atomic_load(&s->may_leave)) os_sleep_ns(MILLISECOND_NS);
  atomic_fetch_add(&s->left, 1);
}

static void put(os_workers *w, stay *s) {
  os_workers_put(w, 0, &s->task, 1);
  os_workers_publish(w, 1);
  os_workers_wake(w, 1);
}

static void await(_Atomic int32_t *count) {
  for (int32_t i = 0; !atomic_load(count) && i < 1000 * PATIENCE_S; i++) os_sleep_ns(MILLISECOND_NS);
  CHECK(atomic_load(count) == 1);
}

static void a_pause_that_fails_leaves_the_gate_open(void) {
  os_workers *w = os_workers_create(&(os_workers_config){.count = 2});
  stay slow = {.task.run = run_stay}, next = {.task.run = run_stay, .may_leave = 1};
  CHECK(w);
  put(w, &slow);
  await(&slow.entered);
  CHECK(os_workers_pause_for(w, MILLISECOND_NS) == OS_EBUSY);
  CHECK(strstr(os_last_error(), "is still inside an item after 0 s"));
  put(w, &next);
  await(&next.left);
  atomic_store(&slow.may_leave, 1);
  await(&slow.left);
  CHECK(os_workers_pause_for(w, PATIENCE_S * 1000LL * MILLISECOND_NS) == OS_OK);
  os_workers_destroy(w);
}

/* ---- signals --------------------------------------------------------------------------------- */

static _Atomic int32_t handled;

static void handle(int signal) {
  (void)signal;
  atomic_fetch_add(&handled, 1);
}

typedef struct {
  os_task task;
  int signal;
  _Atomic int32_t done;
} kick;

static void run_kick(os_task *task, int32_t item, os_hand *hand) {
  (void)item, (void)hand;
  kick *k = (kick *)task;
  raise(k->signal); /* to this thread */
  atomic_fetch_add(&k->done, 1);
}

/* How often the handler had run when a worker had sent itself the signal. */
static int32_t handled_of(os_workers *w, int signal) {
  kick k = {.task.run = run_kick, .signal = signal};
  atomic_store(&handled, 0);
  os_workers_put(w, 0, &k.task, 1);
  os_workers_publish(w, 1);
  os_workers_wake(w, 1);
  await(&k.done);
  return atomic_load(&handled);
}

static void a_worker_faults_as_any_thread_does(void) {
  const int faults[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT, SIGTRAP, SIGSYS};
  os_workers *w = os_workers_create(&(os_workers_config){.count = 1});
  CHECK(w);
  for (size_t i = 0; i < sizeof faults / sizeof *faults; i++) {
    void (*before)(int) = signal(faults[i], handle);
    CHECK(handled_of(w, faults[i]) == 1);
    signal(faults[i], before);
  }
  void (*before)(int) = signal(SIGTERM, handle);
  CHECK(handled_of(w, SIGTERM) == 0);
  os_workers_destroy(w);
  signal(SIGTERM, before);
}

int main(void) {
  a_pause_that_fails_leaves_the_gate_open();
  a_worker_faults_as_any_thread_does();
  puts("gate: ok");
  return 0;
}
