/* Dense modules of a layer: norm, QKV and rotary before attention, the rest after it. */
#include "dense.h"

#include <string.h>

#include "error.h"
#include "kernel.h"
#include "memory.h"
#include "workers.h"

enum {
  MAX_SIZE = 1 << 24,
  MAX_ROWS = 1 << 20,
  TILE_ROWS = 128,    /* rows that share a pass over the weights: bounds the scratch */
  PARTS_PER_HAND = 4, /* of a product: a thread that is late leaves its parts to the others */
  CACHE_LINE = 64,
};

struct os_linear {
  os_packed packed;
  size_t bytes; /* of the mapping that this lies in */
};

struct os_dense {
  os_dense_config config;
  os_packed qkv, o, gate_up, down;
  uint16_t *input_norm, *mlp_norm, *qk_norm; /* qk_norm: NULL where there is none */
  uint16_t *normed, *gates;                  /* scratch of TILE_ROWS rows */
  size_t bytes;
};

static const os_dense_kernel *kernel(void) {
#if defined(__x86_64__)
  const os_kernel *path = os_kernel_get();
  if (path == &os_kernel_avx512_bf16) return &os_dense_avx512_bf16;
  if (path == &os_kernel_avx512_vnni || path == &os_kernel_avx512) return &os_dense_avx512;
  if (path == &os_kernel_avx2) return &os_dense_avx2;
#endif
  return NULL;
}

int os_dense_supported(void) { return kernel() != NULL; }

/* ---- memory ---------------------------------------------------------------------------------- */

/* Hands out parts of one mapping; with base NULL it only adds up their sizes. One mapping for a
 * layer, because its huge pages are why the weights come at memory speed. */
typedef struct {
  uint8_t *base;
  size_t used;
} store;

static void *take(store *from, size_t bytes) {
  void *part = from->base ? from->base + from->used : NULL;
  from->used += (bytes + CACHE_LINE - 1) / CACHE_LINE * CACHE_LINE;
  return part;
}

static uint16_t *copy(store *to, const void *values, size_t count) {
  uint16_t *part = take(to, count * sizeof(uint16_t));
  if (part) memcpy(part, values, count * sizeof(uint16_t));
  return part;
}

static void pack_rows(uint16_t *panels, const uint16_t *weight, int32_t outputs, int32_t inputs) {
  const int64_t pairs = inputs / 2;
  for (int32_t n = 0; n < outputs; n++) {
    uint16_t *column = panels + (n / OS_PANEL * pairs * OS_PANEL + n % OS_PANEL) * 2;
    const uint16_t *row = weight + (int64_t)n * inputs;
    for (int64_t i = 0; i < pairs; i++) memcpy(column + i * OS_PANEL * 2, row + 2 * i, 4);
  }
}

static os_packed pack(store *to, const os_weight *weight, int32_t outputs, int32_t inputs) {
  const int32_t count = (outputs + OS_PANEL - 1) / OS_PANEL;
  const size_t padded = (size_t)count * OS_PANEL;
  uint16_t *panels = take(to, padded * (size_t)inputs * sizeof(uint16_t));
  float *bias = take(to, padded * sizeof(float));
  if (panels) pack_rows(panels, weight->values, outputs, inputs);
  const uint16_t *offsets = weight->bias;
  for (int32_t n = 0; bias && offsets && n < outputs; n++) {
    const uint32_t bits = (uint32_t)offsets[n] << 16;
    memcpy(bias + n, &bits, sizeof bits);
  }
  return (os_packed){panels, bias, outputs, inputs, count};
}

/* ---- one linear layer ------------------------------------------------------------------------ */

static int check_supported(void) {
  if (kernel()) return OS_OK;
  return os_fail(OS_ESTATE, "dense modules need an ISA path with AVX2 or AVX-512; see os_dense_supported");
}

static int check_weight(const char *name, const os_weight *weight) {
  if (!weight) return os_fail(OS_EINVAL, "%s is NULL; it must point at an os_weight", name);
  if (weight->values) return OS_OK;
  return os_fail(OS_EINVAL, "%s.values is NULL; pass [outputs][inputs] bfloat16", name);
}

static int check_inputs(const char *name, int32_t inputs) {
  if (os_check_range(name, inputs, 2, MAX_SIZE)) return OS_EINVAL;
  if (inputs % 2) return os_fail(OS_EINVAL, "%s is %d; it must be even", name, inputs);
  return OS_OK;
}

os_linear *os_linear_create(const os_weight *weight, int32_t outputs, int32_t inputs) {
  if (check_supported() || check_weight("weight", weight)) return NULL;
  if (os_check_range("outputs", outputs, 1, MAX_SIZE) || check_inputs("inputs", inputs))
    return NULL;
  store sizes = {0};
  take(&sizes, sizeof(os_linear));
  pack(&sizes, weight, outputs, inputs);
  store parts = {os_map(sizes.used), 0};
  if (!parts.base) return NULL;
  os_linear *linear = take(&parts, sizeof *linear);
  linear->packed = pack(&parts, weight, outputs, inputs);
  linear->bytes = sizes.used;
  return linear;
}

void os_linear_destroy(os_linear *linear) {
  if (linear) os_unmap(linear, linear->bytes);
}

/* ---- products over threads ------------------------------------------------------------------- */

typedef struct {
  os_product product;
  int32_t parts;
} shared_product;

static void run_part(void *context, int32_t i, os_hand *hand) {
  (void)hand;
  const shared_product *shared = context;
  const int64_t panels = shared->product.linear->panels_count;
  kernel()->product(&shared->product, (int32_t)(panels * i / shared->parts),
                    (int32_t)(panels * (i + 1) / shared->parts));
}

static int multiply(os_workers *workers, os_product product) {
  const int32_t panels = product.linear->panels_count;
  const int32_t hands = workers ? os_workers_count(workers) + 1 : 1;
  const int32_t wanted = hands * PARTS_PER_HAND;
  shared_product shared = {product, panels < wanted ? panels : wanted};
  if (hands == 1) {
    kernel()->product(&product, 0, panels);
    return OS_OK;
  }
  os_hand caller = {0};
  return os_parallel_for(workers, shared.parts, run_part, &shared, &caller);
}

/* Rows of `width` elements, and their stride. */
static int check_rows(const char *name, const void *rows, const char *stride_name, int64_t stride,
                      int64_t width) {
  if (!rows)
    return os_fail(OS_EINVAL, "%s is NULL; it must hold rows of %lld bfloat16", name,
                   (long long)width);
  return os_check_range(stride_name, stride, width, INT32_MAX);
}

int os_linear_run(const os_linear *linear, os_workers *workers, int32_t rows, const void *x,
                  int64_t x_stride, void *y, int64_t y_stride) {
  if (!linear) return os_fail(OS_EINVAL, "linear is NULL; it must be an os_linear");
  if (os_check_range("rows", rows, 1, MAX_ROWS)) return OS_EINVAL;
  if (check_rows("x", x, "x_stride", x_stride, linear->packed.inputs) ||
      check_rows("y", y, "y_stride", y_stride, linear->packed.outputs))
    return OS_EINVAL;
  return multiply(workers, (os_product){&linear->packed, x, x_stride, y, y_stride, rows, 0});
}

/* ---- a layer --------------------------------------------------------------------------------- */

/* Outputs of the products, which a size in range may still multiply beyond what can be counted. */
static int check_products(const os_dense_config *c) {
  const int64_t heads = (int64_t)c->q_heads + 2 * (int64_t)c->kv_heads;
  if (heads * c->head_size > MAX_SIZE)
    return os_fail(OS_EINVAL,
                   "head_size is %d; with %d q_heads and %d kv_heads it must be at most %lld",
                   c->head_size, c->q_heads, c->kv_heads, (long long)(MAX_SIZE / heads));
  if (c->rms_eps >= 0 && c->rms_eps <= 1) return OS_OK;
  return os_fail(OS_EINVAL, "rms_eps is %g; it must lie between 0 and 1", (double)c->rms_eps);
}

static int check_sizes(const os_dense_config *c) {
  if (!c) return os_fail(OS_EINVAL, "config is NULL; it must point at an os_dense_config");
  if (check_supported()) return OS_ESTATE;
  if (check_inputs("hidden", c->hidden) || check_inputs("intermediate", c->intermediate) ||
      check_inputs("head_size", c->head_size))
    return OS_EINVAL;
  if (os_check_range("q_heads", c->q_heads, 1, 1 << 16) ||
      os_check_range("kv_heads", c->kv_heads, 1, 1 << 16))
    return OS_EINVAL;
  return check_products(c);
}

static int check_config(const os_dense_config *c) {
  const int status = check_sizes(c);
  if (status != OS_OK) return status;
  if (check_weight("qkv", &c->qkv) || check_weight("o", &c->o) ||
      check_weight("gate_up", &c->gate_up) || check_weight("down", &c->down))
    return OS_EINVAL;
  if (!c->input_norm || !c->mlp_norm)
    return os_fail(OS_EINVAL, "%s is NULL; pass [hidden] bfloat16",
                   c->input_norm ? "mlp_norm" : "input_norm");
  return OS_OK;
}

static int check_scratch(const void *scratch) {
  if (!scratch) return os_fail(OS_EINVAL, "scratch is NULL; pass os_dense_scratch_bytes bytes");
  if ((uintptr_t)scratch % CACHE_LINE == 0) return OS_OK;
  return os_fail(OS_EINVAL, "scratch is at %p; its address must be a multiple of %d", scratch,
                 CACHE_LINE);
}

static void fill(os_dense *d, store *parts, const os_dense_config *c) {
  const int32_t q_size = c->q_heads * c->head_size, kv_size = c->kv_heads * c->head_size;
  d->qkv = pack(parts, &c->qkv, q_size + 2 * kv_size, c->hidden);
  d->o = pack(parts, &c->o, c->hidden, q_size);
  d->gate_up = pack(parts, &c->gate_up, 2 * c->intermediate, c->hidden);
  d->down = pack(parts, &c->down, c->hidden, c->intermediate);
  d->input_norm = copy(parts, c->input_norm, (size_t)c->hidden);
  d->mlp_norm = copy(parts, c->mlp_norm, (size_t)c->hidden);
  d->qk_norm = c->qk_norm ? copy(parts, c->qk_norm, (size_t)(q_size + kv_size)) : NULL;
  d->config = *c;
}

int64_t os_dense_scratch_bytes(const os_dense_config *c) {
  const int status = check_sizes(c);
  if (status != OS_OK) return status;
  return (int64_t)sizeof(uint16_t) * TILE_ROWS * (c->hidden + 2 * c->intermediate);
}

os_dense *os_dense_create(const os_dense_config *config, void *scratch) {
  if (check_config(config) || check_scratch(scratch)) return NULL;
  os_dense sizing = {0};
  store sizes = {0};
  take(&sizes, sizeof(os_dense));
  fill(&sizing, &sizes, config);
  store parts = {os_map(sizes.used), 0};
  if (!parts.base) return NULL;
  os_dense *dense = take(&parts, sizeof *dense);
  fill(dense, &parts, config);
  dense->normed = scratch;
  dense->gates = dense->normed + (int64_t)TILE_ROWS * config->hidden;
  dense->bytes = sizes.used;
  return dense;
}

void os_dense_destroy(os_dense *dense) {
  if (dense) os_unmap(dense, dense->bytes);
}

static void norm_rows(const os_dense *d, const uint16_t *weight, const uint16_t *x,
                      int64_t x_stride, int32_t rows) {
  const int32_t hidden = d->config.hidden;
  for (int64_t r = 0; r < rows; r++)
    kernel()->norm(x + r * x_stride, weight, d->config.rms_eps, hidden, d->normed + r * hidden);
}

static void turn_heads(const os_dense *d, uint16_t *row, const uint16_t *rope) {
  const os_dense_config *c = &d->config;
  for (int32_t h = 0; h < c->q_heads + c->kv_heads; h++) {
    uint16_t *head = row + h * c->head_size;
    if (d->qk_norm)
      kernel()->norm(head, d->qk_norm + h * c->head_size, c->rms_eps, c->head_size, head);
    kernel()->rotate(head, rope, c->head_size);
  }
}

static int before_tile(const os_dense *d, os_workers *workers, int32_t rows, const uint16_t *x,
                       int64_t x_stride, const uint16_t *rope, int64_t rope_stride, uint16_t *qkv,
                       int64_t qkv_stride) {
  const int32_t hidden = d->config.hidden;
  norm_rows(d, d->input_norm, x, x_stride, rows);
  int status = multiply(workers, (os_product){&d->qkv, d->normed, hidden, qkv, qkv_stride, rows, 0});
  for (int64_t r = 0; r < rows && status == OS_OK; r++)
    turn_heads(d, qkv + r * qkv_stride, rope + r * rope_stride);
  return status;
}

static int check_call(const os_dense *dense, int32_t rows) {
  if (!dense) return os_fail(OS_EINVAL, "dense is NULL; it must be an os_dense");
  return os_check_range("rows", rows, 1, MAX_ROWS);
}

int os_dense_before(const os_dense *dense, os_workers *workers, int32_t rows, const void *x,
                    int64_t x_stride, const void *rope, int64_t rope_stride, void *qkv,
                    int64_t qkv_stride) {
  if (check_call(dense, rows)) return OS_EINVAL;
  const os_dense_config *c = &dense->config;
  if (check_rows("x", x, "x_stride", x_stride, c->hidden) ||
      check_rows("rope", rope, "rope_stride", rope_stride, 2 * (int64_t)c->head_size) ||
      check_rows("qkv", qkv, "qkv_stride", qkv_stride, dense->qkv.outputs))
    return OS_EINVAL;
  int status = OS_OK;
  for (int64_t at = 0; at < rows && status == OS_OK; at += TILE_ROWS) {
    const int32_t count = rows - at < TILE_ROWS ? (int32_t)(rows - at) : TILE_ROWS;
    status = before_tile(dense, workers, count, (const uint16_t *)x + at * x_stride, x_stride,
                         (const uint16_t *)rope + at * rope_stride, rope_stride,
                         (uint16_t *)qkv + at * qkv_stride, qkv_stride);
  }
  return status;
}

static int after_tile(const os_dense *d, os_workers *workers, int32_t rows, const uint16_t *o,
                      int64_t o_stride, uint16_t *x, int64_t x_stride) {
  const int32_t hidden = d->config.hidden, inner = d->config.intermediate;
  int status = multiply(workers, (os_product){&d->o, o, o_stride, x, x_stride, rows, 1});
  if (status != OS_OK) return status;
  norm_rows(d, d->mlp_norm, x, x_stride, rows);
  uint16_t *gates = d->gates;
  status = multiply(workers,
                    (os_product){&d->gate_up, d->normed, hidden, gates, 2 * inner, rows, 0});
  if (status != OS_OK) return status;
  for (int64_t r = 0; r < rows; r++) {
    uint16_t *row = gates + r * 2 * inner;
    kernel()->gate(row, row + inner, inner, row);
  }
  return multiply(workers, (os_product){&d->down, gates, 2 * inner, x, x_stride, rows, 1});
}

int os_dense_after(const os_dense *dense, os_workers *workers, int32_t rows, const void *o,
                   int64_t o_stride, void *x, int64_t x_stride) {
  if (check_call(dense, rows)) return OS_EINVAL;
  if (check_rows("o", o, "o_stride", o_stride, dense->o.inputs) ||
      check_rows("x", x, "x_stride", x_stride, dense->config.hidden))
    return OS_EINVAL;
  int status = OS_OK;
  for (int64_t at = 0; at < rows && status == OS_OK; at += TILE_ROWS) {
    const int32_t count = rows - at < TILE_ROWS ? (int32_t)(rows - at) : TILE_ROWS;
    status = after_tile(dense, workers, count, (const uint16_t *)o + at * o_stride, o_stride,
                        (uint16_t *)x + at * x_stride, x_stride);
  }
  return status;
}
