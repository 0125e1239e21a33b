"""Slots, submission and picking of offloaded rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from omniserve_native.arena import Arena
from omniserve_native.library import Closing, DType, Pointer, checked, created, ffi, lib, pointer
from omniserve_native.workers import Workers

Int32s = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class ExchangeConfig:
    """Shape of an exchange. `split_tokens` 0 is the library's default; `host_residual` False: the
    device keeps residuals by slot index; `later_joins`: no hop joins in the iteration in which it
    left, unless that waits."""

    slots: int
    q_heads: int
    hidden_size: int
    dtype: DType
    scale: float
    host_residual: bool = True
    split_tokens: int = 0
    later_joins: bool = False

    def native(self, arena: Arena, workers: Workers) -> Pointer:
        """The `os_exchange_config *`."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        handles = {"arena": arena.handle, "workers": workers.handle}
        return ffi.new("os_exchange_config *", fields | handles)


@dataclass(frozen=True, slots=True)
class ExchangeStats:
    """Counters since the start, then gauges; a hop is one slot at one layer."""

    submitted: int
    completed: int
    picked: int
    picked_rows: int
    same_iteration: int
    stale: int
    in_flight: int
    ready: int
    open: int


class Exchange(Closing):
    """One thread, the engine's, calls it. Addresses are of rows in host memory, strides count
    elements. It keeps its arena and its workers alive; close it before them.
    """

    def __init__(self, config: ExchangeConfig, arena: Arena, workers: Workers) -> None:
        self._handle: Pointer = ffi.NULL
        self.config, self.arena, self.workers = config, arena, workers
        self._handle = created(lib.os_exchange_create(config.native(arena, workers)))
        self._reaped = np.empty(config.slots, np.int32)

    @property
    def handle(self) -> Pointer:
        """The `os_exchange *`, which uses its arena and its workers until it is closed."""
        if self._handle == ffi.NULL:
            raise ValueError("this exchange is closed")
        _ = self.arena.handle, self.workers.handle  # these raise when closed
        return self._handle

    # ---- slots -----------------------------------------------------------------------------

    def open_slot(self, sequence: int) -> int:
        """A slot for a row of `sequence`, which is retained."""
        return checked(lib.os_slot_open(self.handle, sequence))

    def begin(self, slot: int, position: int, q_len: int) -> None:
        """At a token boundary: the next hops carry q_len tokens, the first at `position`."""
        checked(lib.os_slot_begin(self.handle, slot, position, q_len))

    def close_slot(self, slot: int) -> bool:
        """Whether it was freed at once; else `reap` tells when."""
        return checked(lib.os_slot_close(self.handle, slot)) == 0

    def reap(self) -> list[int]:
        """Slots freed since the last call that `close_slot` could not free."""
        address = ffi.cast("int32_t *", self._reaped.ctypes.data)
        count = checked(lib.os_exchange_reap(self.handle, len(self._reaped), address))
        return [int(slot) for slot in self._reaped[:count]]

    def lse(self, slot: int, q_len: int) -> npt.NDArray[np.float32]:
        """Log-sum-exp [q_len, q_heads] of the slot's finished hop, which carried `q_len` tokens."""
        out = np.empty((q_len, self.config.q_heads), np.float32)
        to = ffi.cast("float *", out.ctypes.data)
        checked(lib.os_slot_lse(self.handle, slot, out.size, to))
        return out

    # ---- hops ------------------------------------------------------------------------------

    def submit(
        self,
        layer: int,
        iteration: int,
        slots: Int32s,
        q: int,
        q_stride: int,
        k: int,
        k_stride: int,
        v: int,
        v_stride: int,
        residual: int = 0,
        residual_stride: int = 0,
    ) -> None:
        """Rows of the slots, in order, leave the batch at `layer`."""
        table = np.ascontiguousarray(slots, np.int32)
        checked(
            lib.os_exchange_submit(
                self.handle,
                layer,
                iteration,
                len(table),
                ffi.cast("int32_t *", table.ctypes.data),
                pointer(q),
                q_stride,
                pointer(k),
                k_stride,
                pointer(v),
                v_stride,
                pointer(residual),
                residual_stride,
            )
        )

    def pick(
        self,
        layer: int,
        iteration: int,
        max_rows: int,
        wait_ns: int,
        slots: Int32s,
        o: int,
        o_stride: int,
        residual: int = 0,
        residual_stride: int = 0,
        *,
        positions: int,
    ) -> tuple[int, int]:
        """Slots and rows that came back. Fills `slots` (int32, contiguous, one per row at most), o,
        residual and positions (int64, an address)."""
        if slots.dtype != np.int32 or not slots.flags.c_contiguous:
            raise ValueError(f"slots is {slots.dtype}; it must be a contiguous int32 array")
        room = min(max_rows, self.config.slots)
        if len(slots) < room:
            raise ValueError(f"slots has {len(slots)} entries; it must have {room}")
        rows = ffi.new("int32_t *")
        count = checked(
            lib.os_exchange_pick(
                self.handle,
                layer,
                iteration,
                max_rows,
                wait_ns,
                ffi.cast("int32_t *", slots.ctypes.data),
                pointer(o),
                o_stride,
                pointer(residual),
                residual_stride,
                ffi.cast("int64_t *", positions),
                rows,
            )
        )
        return count, int(rows[0])

    def waiting(self, layer: int) -> int:
        """Hops in flight or ready at `layer`."""
        return checked(lib.os_exchange_waiting(self.handle, layer))

    def stats(self) -> ExchangeStats:
        """Counters and gauges."""
        out = ffi.new("os_exchange_stats *")
        checked(lib.os_exchange_get_stats(self.handle, out))
        return ExchangeStats(*(getattr(out, name) for name in ExchangeStats.__dataclass_fields__))

    # ---- end -------------------------------------------------------------------------------

    def close(self) -> None:
        """Waits for items in flight (also behind a closed gate) and frees everything."""
        if self._handle == ffi.NULL:
            return
        handle, self._handle = self.handle, ffi.NULL
        lib.os_exchange_destroy(handle)
