/* AVX-512 F, BW, VL and DQ. Empty where the target is not x86-64. */
#if defined(__x86_64__)
#include "traits_avx512.h"

#define KERNEL os_kernel_avx512
#define KERNEL_NAME "avx512"
#include "kernel.inc"
#else
typedef int os_no_avx512; /* ISO C wants one declaration */
#endif
