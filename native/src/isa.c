/* Which ISA path runs: the machine's best, or the one OMNISERVE_ISA names. Decided once. */
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "error.h"
#include "kernel.h"

typedef struct {
  const os_kernel *kernel;
  bool available;
} isa_path;

enum { MAX_PATHS = 5 };

#if defined(__x86_64__)
/* Intel's cores retire one bf16 dot product of 512 bits in two cycles and four float32 multiply-adds
 * meanwhile (measured on Emerald Rapids: 1.4 and 5.9 G/s); AMD's retire as many of one as of the
 * other (Zen 4: 7.5 G/s). By maker and not by a measurement at start: results must not depend on
 * what else the machine does just then. */
static bool dots_are_slow(void) { return __builtin_cpu_is("intel"); }
#endif

/* Best first. __builtin_cpu_supports reads CPUID and, through XCR0, what the OS saves. */
static int list_paths(isa_path paths[MAX_PATHS]) {
  int count = 0;
#if defined(__x86_64__)
  __builtin_cpu_init();
  bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
              __builtin_cpu_supports("f16c");
#ifdef OS_EMULATED /* native/emulated.sh: AVX-512 by AVX2 */
  bool avx512 = avx2, vnni = avx2, bf16 = avx2;
#else
  bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  bool vnni = avx512 && __builtin_cpu_supports("avx512vnni");
  bool bf16 = vnni && __builtin_cpu_supports("avx512bf16");
#endif
  const isa_path dots = {&os_kernel_avx512_bf16, bf16}, bytes = {&os_kernel_avx512_vnni, vnni};
  paths[count++] = dots_are_slow() ? bytes : dots;
  paths[count++] = dots_are_slow() ? dots : bytes;
  paths[count++] = (isa_path){&os_kernel_avx512, avx512};
  paths[count++] = (isa_path){&os_kernel_avx2, avx2};
#endif
  paths[count++] = (isa_path){&os_kernel_portable, true};
  return count;
}

static pthread_once_t once = PTHREAD_ONCE_INIT;
static const os_kernel *chosen; /* written once, under `once` */
static char wanted[32];

static void choose(void) {
  isa_path paths[MAX_PATHS];
  int count = list_paths(paths);
  const char *name = getenv("OMNISERVE_ISA");
  if (name) strncpy(wanted, name, sizeof wanted - 1);
  for (int i = 0; i < count && !chosen; i++)
    if (paths[i].available && (!wanted[0] || strcmp(wanted, paths[i].kernel->name) == 0))
      chosen = paths[i].kernel;
}

const os_kernel *os_kernel_get(void) {
  pthread_once(&once, choose);
  if (chosen) return chosen;
  isa_path paths[MAX_PATHS];
  int count = list_paths(paths);
  char names[128] = "";
  for (int i = 0; i < count; i++) {
    if (!paths[i].available) continue;
    if (names[0]) strcat(names, ", ");
    strcat(names, paths[i].kernel->name);
  }
  os_fail(OS_EINVAL, "OMNISERVE_ISA is \"%s\"; this machine has: %s", wanted, names);
  return NULL;
}

const char *os_isa_name(void) {
  const os_kernel *kernel = os_kernel_get();
  return kernel ? kernel->name : NULL;
}
