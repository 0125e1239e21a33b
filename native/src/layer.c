/* One call per layer: park and submit the tail, attend the device rows, gather the joins. */
#include "convert.h"
#include "error.h"
#include "exchange.h"

static void *row_at(const void *rows, int64_t row, int64_t stride, int32_t dtype) {
  return rows ? (uint8_t *)rows + (size_t)(row * stride) * os_dtype_bytes(dtype) : NULL;
}

/* What rows of the tail are found by; the calls that read them know the widths. */
static int check_strides(const os_layer_args *args) {
  const os_attend_args *d = &args->device;
  if (os_check_range("q_stride", d->q_stride, 0, INT32_MAX) ||
      os_check_range("k_stride", d->k_stride, 0, INT32_MAX) ||
      os_check_range("v_stride", d->v_stride, 0, INT32_MAX) ||
      os_check_range("o_stride", d->o_stride, 0, INT32_MAX))
    return OS_EINVAL;
  if (!args->residual) return OS_OK;
  return os_check_range("residual_stride", args->residual_stride, 0, INT32_MAX);
}

static int check_layer_args(const os_exchange *x, const os_layer_args *args) {
  if (!args) return os_fail(OS_EINVAL, "args is NULL; it must point at an os_layer_args");
  if (os_check_range("device_rows", args->device_rows, 0, 1 << 24)) return OS_EINVAL;
  if (os_check_range("tail_count", args->tail_count, 0, 1 << 24)) return OS_EINVAL;
  if (os_check_range("max_join_rows", args->max_join_rows, 0, 1 << 24)) return OS_EINVAL;
  if (os_check_range("segments_count", args->device.segments_count, 0, 1 << 20)) return OS_EINVAL;
  int64_t rows = 0;
  for (int32_t i = 0; i < args->device.segments_count && args->device.segments; i++)
    rows += args->device.segments[i].q_len;
  if (rows != args->device_rows)
    return os_fail(OS_EINVAL, "device_rows is %d; the segments have %lld rows", args->device_rows,
                   (long long)rows);
  const bool exchanges = args->tail_count > 0 || args->max_join_rows > 0;
  if (!x && exchanges)
    return os_fail(OS_EINVAL, "exchange is NULL; it must be one where rows leave or join");
  if (exchanges && x->config.dtype != args->device.dtype)
    return os_fail(OS_EINVAL, "dtype is %d; the exchange has %d", args->device.dtype,
                   x->config.dtype);
  return exchanges ? check_strides(args) : OS_OK;
}

static int submit_tail(os_exchange *x, const os_layer_args *args) {
  const os_attend_args *d = &args->device;
  const int32_t first = args->device_rows;
  return os_exchange_submit(
      x, d->layer, args->iteration, args->tail_count, args->tail_slots,
      row_at(d->q, first, d->q_stride, d->dtype), d->q_stride,
      row_at(d->k, first, d->k_stride, d->dtype), d->k_stride,
      row_at(d->v, first, d->v_stride, d->dtype), d->v_stride,
      row_at(args->residual, first, args->residual_stride, d->dtype), args->residual_stride);
}

static os_pick joins_of(os_layer_args *args) {
  const os_attend_args *d = &args->device;
  const int32_t first = args->device_rows;
  return (os_pick){
      .layer = d->layer,
      .max_rows = args->max_join_rows,
      .iteration = args->iteration,
      .wait_ns = args->wait_ns,
      .slots = args->tail_slots,
      .o = row_at(d->o, first, d->o_stride, d->dtype),
      .residual = row_at(args->residual, first, args->residual_stride, d->dtype),
      .o_stride = d->o_stride,
      .residual_stride = args->residual_stride,
      .positions = args->positions ? args->positions + first : NULL,
      .rows = &args->tail_rows};
}

/* Nothing may fail once the tail has left. */
int os_layer(os_exchange *x, os_layer_args *args) {
  if (check_layer_args(x, args)) return OS_EINVAL;
  const bool attends = args->device.segments_count > 0, picks = args->max_join_rows > 0;
  const os_pick joins = picks ? joins_of(args) : (os_pick){0};
  args->tail_rows = 0;
  int status = attends ? os_attend_check(&args->device) : OS_OK;
  if (status == OS_OK && picks) status = os_pick_check(x, &joins);
  if (status == OS_OK && args->tail_count > 0) status = submit_tail(x, args);
  if (status != OS_OK) return status;
  args->tail_count = 0;
  if (attends) status = os_attend_run(&args->device);
  if (status == OS_OK && picks) args->tail_count = os_pick_run(x, &joins);
  return status;
}
