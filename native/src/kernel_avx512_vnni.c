/* AVX-512 with byte dot products, for int8 KV; else as kernel_avx512.c. */
#if defined(__x86_64__)
#include "traits_vnni.h"

#define KERNEL os_kernel_avx512_vnni
#define KERNEL_NAME "avx512_vnni"
#include "kernel.inc"
#else
typedef int os_no_avx512_vnni; /* ISO C wants one declaration */
#endif
