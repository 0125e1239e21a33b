/* Dense modules with float32 multiply-adds. Empty where the target is not x86-64. */
#if defined(__x86_64__)
#define DENSE os_dense_avx512
#include "dense_avx512.inc"
#else
typedef int os_no_dense_avx512; /* ISO C wants one declaration */
#endif
