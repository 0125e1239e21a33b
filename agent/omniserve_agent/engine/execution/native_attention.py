"""Attention on the CPU device: one native call per layer for both kinds of rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from omniserve_agent.engine.exchange.figures import exchange_figures
from omniserve_agent.engine.execution.buffers import RowBuffers
from omniserve_agent.engine.execution.iteration import (
    ExchangeFigures,
    Int32s,
    Iteration,
    StagedPrefill,
)
from omniserve_agent.engine.execution.rows import Rows
from omniserve_agent.engine.model.config import ModelConfig
from omniserve_native import Arena, AttendCall, DType, Exchange, LayerCall, Workers

Qkv = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class NativeBatchAttention:
    """See `BatchAttention`. `helpers` are threads on the device cores beside the calling one."""

    def __init__(
        self,
        arena: Arena,
        exchange: Exchange,
        helpers: Workers | None,
        shape: ModelConfig,
        dtype: DType,
        buffers: RowBuffers,
        max_segments: int,
    ) -> None:
        self.exchange = exchange
        self._buffers = buffers
        self._call = LayerCall(
            arena,
            shape.q_heads,
            dtype,
            shape.head_size**-0.5,
            capacity_rows=buffers.capacity,
            max_segments=max_segments,
            workers=helpers,
            exchange=exchange,
        )
        o, x = buffers.o.stride(0), buffers.x.stride(0)
        self._call.set_strides(0, 0, 0, o, x)  # rows may join where none was computed
        self.positions = torch.from_numpy(self._call.positions)
        self._tail = 0
        self._device_rows = self._number = 0

    @property
    def tail_slots(self) -> Int32s:
        """See `BatchAttention`."""
        return self._call.tail_slots[: self._tail]

    def begin(self, iteration: Iteration, rows: Rows) -> None:
        """See `BatchAttention`."""
        self._number, self._device_rows = iteration.number, rows.device_rows
        for entry in iteration.entries:
            self.exchange.begin(entry.slot, entry.position, len(entry.token_ids))
        self._call.set_segments(rows.sequences, rows.q_lens, rows.starts)
        self._call.set_tail(rows.entry_slots)
        self._tail = len(rows.entry_slots)

    def layer(self, layer: int, qkv: Qkv | None, lanes: int, wait_ns: int) -> int:
        """See `BatchAttention`."""
        buffers, call = self._buffers, self._call
        q = k = v = 0
        if qkv is not None:
            q, k, v = (part.data_ptr() for part in qkv)
            strides = [part.stride(0) for part in (*qkv, buffers.o, buffers.x)]
            call.set_strides(*strides)
        self._tail, rows = call.run(
            layer,
            self._number,
            q,
            k,
            v,
            buffers.o.data_ptr(),
            buffers.x.data_ptr(),
            lanes,
            wait_ns,
        )
        return rows

    def pick(self, layer: int, lanes: int, wait_ns: int) -> int:
        """See `BatchAttention`."""
        buffers, first = self._buffers, self._device_rows
        slots = self._call.tail_slots
        self._tail, rows = self.exchange.pick(
            layer,
            self._number,
            lanes,
            wait_ns,
            slots,
            buffers.o[first:].data_ptr(),
            buffers.o.stride(0),
            buffers.x[first:].data_ptr(),
            buffers.x.stride(0),
            positions=self.positions[first:].data_ptr(),
        )
        self._call.set_tail(slots[: self._tail])
        return rows

    def open_slot(self, sequence: int) -> int:
        """See `BatchAttention`."""
        return self.exchange.open_slot(sequence)

    def close_slot(self, slot: int) -> bool:
        """See `BatchAttention`."""
        return self.exchange.close_slot(slot)

    def reap(self) -> Sequence[int]:
        """See `BatchAttention`."""
        return self.exchange.reap()

    def figures(self) -> ExchangeFigures:
        """See `BatchAttention`."""
        return exchange_figures(self.exchange)


class NativeStageAttention:
    """See `StageAttention`: on the CPU the prompt's KV is computed where it stays, in the arena."""

    def __init__(
        self, host: Arena, helpers: Workers | None, shape: ModelConfig, dtype: DType
    ) -> None:
        self._call = AttendCall(host, shape.q_heads, dtype, shape.head_size**-0.5, 1, helpers)

    def attend(self, layer: int, staged: StagedPrefill, qkv: Qkv) -> torch.Tensor:
        """See `StageAttention`."""
        q, k, v = qkv
        o = torch.empty(q.shape, dtype=q.dtype)
        self._call.set_segments(
            np.array([staged.sequence], np.int32),
            np.array([len(q)], np.int32),
            np.array([staged.start + staged.row], np.int64),
        )
        self._call.set_strides(q.stride(0), k.stride(0), v.stride(0), o.stride(0))
        self._call.run(layer, q.data_ptr(), k.data_ptr(), v.data_ptr(), o.data_ptr())
        return o

    def finish_layer(self, layer: int, staged: StagedPrefill) -> None:
        """See `StageAttention`; nothing to move."""

    def discard(self, staged: StagedPrefill) -> None:
        """See `StageAttention`; nothing is kept here."""
