/* The seam between the dense modules and their ISA path: bfloat16 in and out, float32 inside. */
#ifndef OS_DENSE_H
#define OS_DENSE_H

#include <stdint.h>

#include "omniserve.h"

/* Weights lie in panels of OS_PANEL outputs, [inputs / 2][OS_PANEL][2]: one load gives sixteen
 * outputs' weights of two neighbouring inputs, which is what a bf16 dot product takes. */
enum { OS_PANEL = 32 };

typedef struct {
  const uint16_t *panels;
  const float *bias; /* [panels_count * OS_PANEL], zero where there is none */
  int32_t outputs, inputs, panels_count;
} os_packed;

/* y = x W^T + bias, rounded once; with `add` y += that, rounded again. */
typedef struct {
  const os_packed *linear;
  const uint16_t *x;
  int64_t x_stride;
  uint16_t *y;
  int64_t y_stride;
  int32_t rows, add;
} os_product;

typedef struct {
  void (*product)(const os_product *p, int32_t first_panel, int32_t end_panel);
  /* y = round(round(x / rms(x)) * weight) over `size` elements; y may be x. */
  void (*norm)(const uint16_t *x, const uint16_t *weight, float eps, int32_t size, uint16_t *y);
  /* One head in place; rope: `size` cosines, then `size` signed sines. */
  void (*rotate)(uint16_t *head, const uint16_t *rope, int32_t size);
  /* y = round(round(silu(gate)) * up) over `size` elements. */
  void (*gate)(const uint16_t *gate, const uint16_t *up, int32_t size, uint16_t *y);
} os_dense_kernel;

#if defined(__x86_64__)
extern const os_dense_kernel os_dense_avx2, os_dense_avx512, os_dense_avx512_bf16;
#endif

#endif
