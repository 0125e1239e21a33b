"""Attention on an emulated device: device rows take time, offloaded rows go through the real
exchange to the real host workers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from omniserve_agent.engine.emulation.model import EmulatedModel
from omniserve_agent.engine.exchange.figures import exchange_figures
from omniserve_agent.engine.execution.buffers import RowBuffers
from omniserve_agent.engine.execution.iteration import (
    ExchangeFigures,
    Int32s,
    Iteration,
    StagedPrefill,
)
from omniserve_agent.engine.execution.rows import Rows, device_work
from omniserve_agent.engine.kv.dtypes import NATIVE_DTYPES
from omniserve_agent.engine.kv.tiles import pack_tiles, whole_blocks
from omniserve_agent.scheduling.latency import pairs
from omniserve_native import BLOCK_TOKENS, Arena, Exchange

Qkv = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
NO_SLOTS: Int32s = np.empty(0, np.int32)


class EmulatedBatchAttention:
    """See `BatchAttention`. Slots of the exchange hold the residuals."""

    def __init__(self, model: EmulatedModel, exchange: Exchange, buffers: RowBuffers) -> None:
        self.exchange = exchange
        self._timeline, self._latency = model.emulation.timeline, model.emulation.latency
        self._buffers = buffers
        self.positions = torch.zeros(buffers.capacity, dtype=torch.int64)
        self._slots_out = np.empty(exchange.config.slots, np.int32)
        self.tail_slots = NO_SLOTS
        self._number = self._device_rows = 0
        self._attention_s = 0.0

    def begin(self, iteration: Iteration, rows: Rows) -> None:
        """See `BatchAttention`."""
        self._number, self._device_rows = iteration.number, rows.device_rows
        self.tail_slots = rows.entry_slots
        for entry in iteration.entries:
            self.exchange.begin(entry.slot, entry.position, len(entry.token_ids))
        work, latency = device_work(rows), self._latency
        self._attention_s = latency.key * work.device_keys + latency.pair * work.device_pairs

    def layer(self, layer: int, qkv: Qkv | None, lanes: int, wait_ns: int) -> int:
        """See `BatchAttention`."""
        if qkv is not None and len(self.tail_slots):
            self._submit(layer, qkv)
        self.tail_slots = NO_SLOTS
        if self._device_rows:
            self._timeline.spend(self._attention_s)
        return self.pick(layer, lanes, wait_ns)

    def _submit(self, layer: int, qkv: Qkv) -> None:
        first = self._device_rows
        q, k, v, x = (part[first:] for part in (*qkv, self._buffers.x))
        self.exchange.submit(
            layer,
            self._number,
            self.tail_slots,
            q.data_ptr(),
            q.stride(0),
            k.data_ptr(),
            k.stride(0),
            v.data_ptr(),
            v.stride(0),
            x.data_ptr(),
            x.stride(0),
        )

    def pick(self, layer: int, lanes: int, wait_ns: int) -> int:
        """See `BatchAttention`. Where it waits for the host, so does the device."""
        self.tail_slots = NO_SLOTS
        if lanes == 0 or self.exchange.waiting(layer) == 0:
            return 0
        o, x = (part[self._device_rows :] for part in (self._buffers.o, self._buffers.x))
        picked, rows = self.exchange.pick(
            layer,
            self._number,
            lanes,
            wait_ns,
            self._slots_out,
            o.data_ptr(),
            o.stride(0),
            x.data_ptr(),
            x.stride(0),
            positions=self.positions[self._device_rows :].data_ptr(),
        )
        if wait_ns:
            self._timeline.stall()
        self._timeline.spend(self._latency.join * rows)
        self.tail_slots = self._slots_out[:picked].copy()
        return rows

    # ---- slots -----------------------------------------------------------------------------

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
        figures = exchange_figures(self.exchange)
        figures.emulation_late_s = self._timeline.late_s
        return figures


class EmulatedStageAttention:
    """See `StageAttention`. A layer's KV is really imported into the host arena, whole blocks as
    the tiles that a device would have packed."""

    def __init__(self, model: EmulatedModel, host: Arena) -> None:
        self._timeline, self._latency, self._host = (
            model.emulation.timeline,
            model.emulation.latency,
            host,
        )
        shape = model.config
        width = shape.kv_heads * shape.head_size
        self._kv = torch.randn(BLOCK_TOKENS, width).to(model.dtype)
        rows = self._kv.view(BLOCK_TOKENS, shape.kv_heads, shape.head_size)
        blocks = -(-model.positions // BLOCK_TOKENS)
        self._tiles = pack_tiles(rows, rows, host.layout()).repeat(blocks, 1, 1)
        self._o = torch.zeros(1, shape.q_heads * shape.head_size, dtype=model.dtype)

    def attend(self, layer: int, staged: StagedPrefill, qkv: Qkv) -> torch.Tensor:
        """See `StageAttention`."""
        rows = qkv[0].shape[0]
        self._timeline.spend(self._latency.pair * pairs(staged.start + staged.row, rows))
        return self._o.expand(rows, -1)

    def finish_layer(self, layer: int, staged: StagedPrefill) -> None:
        """See `StageAttention`. A copy engine does this beside the device's work: no time of it."""
        start, count = staged.start, len(staged.token_ids)
        first, end = whole_blocks(start, count)
        self._append(staged.sequence, layer, start, first)
        if end > first:
            where = staged.sequence, layer, start + first, end - first
            self._host.import_tiles(*where, self._tiles.data_ptr())
        self._append(staged.sequence, layer, start + end, count - end)

    def _append(self, sequence: int, layer: int, start: int, count: int) -> None:
        at, kind = self._kv.data_ptr(), NATIVE_DTYPES[self._kv.dtype]
        self._host.append(sequence, layer, start, count, at, at, dtype=kind)

    def discard(self, staged: StagedPrefill) -> None:
        """See `StageAttention`; nothing is kept here."""
