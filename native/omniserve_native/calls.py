"""Calls of a layer loop: their arguments live in native memory and are set once per iteration."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from omniserve_native.arena import Arena
from omniserve_native.exchange import Exchange, Int32s
from omniserve_native.library import DType, Pointer, checked, ffi, lib
from omniserve_native.workers import Workers

Int64s = npt.NDArray[np.int64]
SEGMENT = np.dtype([("seq", np.int32), ("q_len", np.int32), ("start", np.int64)])


class Segments:
    """A native array of segments, filled from numpy."""

    def __init__(self, capacity: int) -> None:
        self._rows = np.zeros(max(capacity, 1), SEGMENT)
        self.address = ffi.cast("os_segment *", self._rows.ctypes.data)
        self.capacity = capacity

    def set(self, seq: Int32s, q_len: Int32s, start: Int64s) -> tuple[int, int]:
        """Segments and rows now. Raises ValueError when there are more than `capacity`."""
        count = len(seq)
        if count > self.capacity:
            raise ValueError(f"{count} segments; there is room for {self.capacity}")
        rows = self._rows[:count]
        rows["seq"], rows["q_len"], rows["start"] = seq, q_len, start
        return count, int(np.sum(q_len))


def _fill_device(device: Pointer, q_heads: int, dtype: DType, scale: float) -> None:
    device.q_heads, device.dtype, device.scale = q_heads, int(dtype), scale


def _set_handles(device: Pointer, arena: Arena, workers: Workers | None) -> None:
    """For each call anew: raises ValueError when one is closed."""
    device.arena = arena.handle
    device.workers = workers.handle if workers else ffi.NULL


class AttendCall:
    """Attention of device rows only. Addresses are of rows in host memory."""

    def __init__(
        self,
        arena: Arena,
        q_heads: int,
        dtype: DType,
        scale: float,
        max_segments: int,
        workers: Workers | None = None,
    ) -> None:
        self._arena, self._workers = arena, workers
        self._segments = Segments(max_segments)
        self._args = ffi.new("os_attend_args *")
        _fill_device(self._args, q_heads, dtype, scale)
        self._args.segments = self._segments.address

    def set_segments(self, seq: Int32s, q_len: Int32s, start: Int64s) -> None:
        """Which rows attend: q_len tokens of each sequence, the first at position `start`."""
        self._args.segments_count, _ = self._segments.set(seq, q_len, start)

    def set_strides(self, q: int, k: int, v: int, o: int) -> None:
        """Elements between rows."""
        args = self._args
        args.q_stride, args.k_stride, args.v_stride, args.o_stride = q, k, v, o

    def run(self, layer: int, q: int, k: int, v: int, o: int, lse: int = 0) -> None:
        """Appends k and v (0: the KV is already there), then attends; `lse` float32 [rows, q_heads]
        or 0. Raises NativeError."""
        args, cast = self._args, ffi.cast
        _set_handles(args, self._arena, self._workers)
        args.layer = layer
        args.q, args.k = cast("void *", q), cast("void *", k)
        args.v, args.o = cast("void *", v), cast("void *", o)
        args.lse = cast("float *", lse)
        checked(lib.os_attend(args))


class LayerCall:
    """One call per layer: the tail leaves, device rows attend, joins are gathered behind them.

    `tail_slots` (int32 [slots]) is the tail now: the caller's entries at first, then what joined.
    `positions` (int64 [capacity_rows]) holds the joined rows' positions behind the device rows.
    """

    def __init__(
        self,
        arena: Arena,
        q_heads: int,
        dtype: DType,
        scale: float,
        *,
        capacity_rows: int,
        max_segments: int,
        workers: Workers | None = None,
        exchange: Exchange | None = None,
    ) -> None:
        self._arena, self._workers, self._exchange = arena, workers, exchange
        self._segments = Segments(max_segments)
        self.tail_slots = np.zeros(exchange.config.slots if exchange else 1, np.int32)
        self.positions = np.zeros(capacity_rows, np.int64)
        self._capacity_rows = capacity_rows
        self._args = ffi.new("os_layer_args *")
        self._device = self._args.device
        _fill_device(self._device, q_heads, dtype, scale)
        self._device.segments = self._segments.address
        self._args.tail_slots = ffi.cast("int32_t *", self.tail_slots.ctypes.data)
        self._args.positions = ffi.cast("int64_t *", self.positions.ctypes.data)

    def set_segments(self, seq: Int32s, q_len: Int32s, start: Int64s) -> None:
        """The iteration's device rows: q_len tokens of each sequence, the first at `start`."""
        self._device.segments_count, self._args.device_rows = self._segments.set(seq, q_len, start)

    def set_strides(self, q: int, k: int, v: int, o: int, residual: int) -> None:
        """Elements between rows."""
        device = self._device
        device.q_stride, device.k_stride, device.v_stride, device.o_stride = q, k, v, o
        self._args.residual_stride = residual

    def set_tail(self, slots: Int32s) -> None:
        """The slots whose rows are the batch's tail; before the iteration's first layer."""
        self.tail_slots[: len(slots)] = slots
        self._args.tail_count = len(slots)

    def run(
        self,
        layer: int,
        iteration: int,
        q: int,
        k: int,
        v: int,
        o: int,
        residual: int,
        max_join_rows: int,
        wait_ns: int = 0,
    ) -> tuple[int, int]:
        """Slots and rows that joined; their slots are in `tail_slots` and are the next tail.
        Addresses are of the whole batch's row buffers, device rows first. Raises NativeError."""
        args, device, cast = self._args, self._device, ffi.cast
        if args.device_rows + max_join_rows > self._capacity_rows:
            raise ValueError(
                f"{args.device_rows} device rows and {max_join_rows} join lanes; "
                f"there is room for {self._capacity_rows} rows"
            )
        _set_handles(device, self._arena, self._workers)
        exchange = self._exchange.handle if self._exchange else ffi.NULL
        device.layer, args.iteration = layer, iteration
        device.q, device.k = cast("void *", q), cast("void *", k)
        device.v, device.o = cast("void *", v), cast("void *", o)
        args.residual = cast("void *", residual)
        args.max_join_rows, args.wait_ns = max_join_rows, wait_ns
        checked(lib.os_layer(exchange, args))
        return args.tail_count, args.tail_rows
