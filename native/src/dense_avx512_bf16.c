/* Dense modules with bf16 dot products. Empty where the target is not x86-64. */
#if defined(__x86_64__)
#define HAVE_BF16_DOT 1
#define DENSE os_dense_avx512_bf16
#include "dense_avx512.inc"
#else
typedef int os_no_dense_avx512_bf16; /* ISO C wants one declaration */
#endif
