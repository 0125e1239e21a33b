/* Which memory policy the system is asked for, and that its refusal is no failure. */
#include <errno.h>
#include <linux/filter.h>
#include <linux/mempolicy.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "check.h"

enum { NOWHERE = OS_MAX_NODES - 1 };

static os_workers *on_nodes(int32_t count, const int32_t *nodes) {
  return os_workers_create(&(os_workers_config){.count = 1, .node_count = count, .nodes = nodes});
}

/* An arena of a few huge pages, prefaulted by workers of these nodes; `mode` as the kernel has it. */
static os_arena_memory placed(int32_t count, const int32_t *nodes, int *mode) {
  os_workers *workers = on_nodes(count, nodes);
  os_arena *arena = os_arena_create(&(os_arena_config){2, 2, 64, 1024, 1, 8, OS_F32});
  os_arena_memory memory;
  CHECK(workers && arena && os_arena_prefault(arena, workers) == OS_OK);
  CHECK(os_arena_get_memory(arena, &memory) == OS_OK && memory.bytes > 4 << 20);
  const uint8_t *last = (const uint8_t *)memory.tiles + memory.bytes - 1;
  unsigned long mask[OS_MAX_NODES / 64 + 1] = {0};
  *mode = -1;
  if (syscall(SYS_get_mempolicy, mode, mask, OS_MAX_NODES + 1, last, MPOL_F_ADDR) == 0)
    CHECK(*mode == MPOL_DEFAULT || mask[0] & 1);
  os_arena_destroy(arena);
  os_workers_destroy(workers);
  return memory;
}

static void expect(int32_t count, const int32_t *nodes, int32_t policy, int kernels) {
  int mode;
  const os_arena_memory memory = placed(count, nodes, &mode);
  if (memory.refused == EPERM || memory.refused == ENOSYS) {
    printf("mbind is refused here: errno %d\n", memory.refused);
    CHECK(memory.policy == OS_FIRST_TOUCH);
    return;
  }
  CHECK(memory.policy == policy && memory.refused == 0 && mode == kernels);
}

static void refuse_from_now_on(void) {
  struct sock_filter rules[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_mbind, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)};
  const struct sock_fprog program = {sizeof rules / sizeof *rules, rules};
  CHECK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
  CHECK(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0);
}

static void bad_arguments(void) {
  CHECK(!on_nodes(1, NULL) && os_last_status() == OS_EINVAL);
  CHECK(!on_nodes(-1, NULL) && !on_nodes(OS_MAX_NODES + 1, (int32_t[]){0}));
  CHECK(!on_nodes(2, (int32_t[]){0, -1}) && !on_nodes(1, (int32_t[]){OS_MAX_NODES}));
}

int main(void) {
  int mode;
  expect(0, NULL, OS_FIRST_TOUCH, MPOL_DEFAULT);
  expect(1, (int32_t[]){0}, OS_PREFERRED, MPOL_PREFERRED);
  expect(2, (int32_t[]){0, 0}, OS_PREFERRED, MPOL_PREFERRED);
  /* Of a node that is not there the kernel says nothing while another of them is. */
  expect(2, (int32_t[]){0, NOWHERE}, OS_INTERLEAVED, MPOL_INTERLEAVE);
  const os_arena_memory nowhere = placed(1, (int32_t[]){NOWHERE}, &mode);
  CHECK(nowhere.policy == OS_FIRST_TOUCH && nowhere.refused != 0);
  bad_arguments();
  refuse_from_now_on(); /* as containers' default profile does */
  const os_arena_memory refused = placed(1, (int32_t[]){0}, &mode);
  CHECK(refused.policy == OS_FIRST_TOUCH && refused.refused == EPERM);
  puts("placement: ok");
  return 0;
}
