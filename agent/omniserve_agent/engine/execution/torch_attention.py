"""Batch attention for torch devices: device rows by torch, offloaded rows through the exchange.

q, k, v of the tail go to pinned host memory on the device's stream; an event tells when they are
there, and only then are they submitted. Nothing waits for an event while an LS row is in the batch.
Residuals stay on the device, in rows of the slot.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np
import torch

from omniserve_agent.engine.exchange.figures import exchange_figures
from omniserve_agent.engine.execution.buffers import RowBuffers
from omniserve_agent.engine.execution.iteration import ExchangeFigures, Int32s, Iteration
from omniserve_agent.engine.execution.rows import Rows
from omniserve_agent.engine.kv.torch_store import TorchKv
from omniserve_native import Exchange

MAX_Q_LEN = 8


@dataclass(slots=True, eq=False)
class _Outbound:
    """Tail rows on their way to the host."""

    layer: int
    iteration: int
    slots: Int32s
    rows: torch.Tensor  # [T, (Hq + 2 Hkv) D] on the host
    event: torch.cuda.Event | None

    def arrived(self) -> bool:
        """Whether the copy is done."""
        return self.event is None or bool(self.event.query())  # type: ignore[no-untyped-call]


class TorchBatchAttention:
    """See `BatchAttention` and the module."""

    def __init__(self, kv: TorchKv, exchange: Exchange, slots: int, buffers: RowBuffers) -> None:
        self.kv, self.exchange, self._buffers = kv, exchange, buffers
        self.device, self.dtype = kv.device, buffers.x.dtype
        self.positions = torch.zeros(buffers.capacity, dtype=torch.int64)
        self._residual = buffers.x.new_empty(slots * MAX_Q_LEN, buffers.x.shape[1])
        self._q_lens = np.zeros(slots, np.int64)
        self._outbound: deque[_Outbound] = deque()
        self.tail_slots: Int32s = np.empty(0, np.int32)
        self._slots_out = np.empty(slots, np.int32)

    def begin(self, iteration: Iteration, rows: Rows) -> None:
        """See `BatchAttention`."""
        self._number, self._device_rows = iteration.number, rows.device_rows
        self.tail_slots = rows.entry_slots
        for entry in iteration.entries:
            self.exchange.begin(entry.slot, entry.position, len(entry.token_ids))
            self._q_lens[entry.slot] = len(entry.token_ids)
        self.kv.begin(rows)

    def layer(
        self,
        layer: int,
        qkv: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None,
        lanes: int,
        wait_ns: int,
    ) -> int:
        """See `BatchAttention`."""
        if qkv is not None:
            n = self._device_rows
            if len(self.tail_slots):
                self._send(layer, torch.cat([part[n:] for part in qkv], dim=1))
            if n:
                q, k, v = (part[:n] for part in qkv)
                self.kv.attend(layer, q, k, v, self._buffers.o)
        return self.pick(layer, lanes, wait_ns)

    def _send(self, layer: int, tail: torch.Tensor) -> None:
        rows = self._slot_rows(self.tail_slots)
        start = self._device_rows
        self._residual[rows] = self._buffers.x[start : start + len(tail)]
        event = None
        host = tail
        if self.device.type == "cuda":
            host = torch.empty(tail.shape, dtype=tail.dtype, pin_memory=True)
            host.copy_(tail, non_blocking=True)
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record()
        self._outbound.append(_Outbound(layer, self._number, self.tail_slots, host, event))
        self.tail_slots = np.empty(0, np.int32)

    def _slot_rows(self, slots: Int32s) -> torch.Tensor:
        """Rows of the residual store, in batch order."""
        runs = [np.arange(s * MAX_Q_LEN, s * MAX_Q_LEN + self._q_lens[s]) for s in slots.tolist()]
        return torch.from_numpy(np.concatenate(runs)).to(self.device, non_blocking=True)

    def _submit_arrived(self, wait: bool) -> None:
        while self._outbound and (wait or self._outbound[0].arrived()):
            item = self._outbound.popleft()
            if item.event is not None:
                item.event.synchronize()
            config, stride = self.kv.config, item.rows.stride(0)
            q_size, kv_size = (
                heads * config.head_size for heads in (config.q_heads, config.kv_heads)
            )
            at, size = item.rows.data_ptr(), item.rows.element_size()
            self.exchange.submit(
                item.layer,
                item.iteration,
                item.slots,
                at,
                stride,
                at + q_size * size,
                stride,
                at + (q_size + kv_size) * size,
                stride,
            )

    def pick(self, layer: int, lanes: int, wait_ns: int) -> int:
        """See `BatchAttention`."""
        self._submit_arrived(wait=wait_ns > 0)
        if lanes == 0 or self.exchange.waiting(layer) == 0:
            self.tail_slots = np.empty(0, np.int32)
            return 0
        on_cuda = self.device.type == "cuda"
        o = torch.empty(lanes, self._buffers.o.shape[1], dtype=self.dtype, pin_memory=on_cuda)
        start = self._device_rows
        picked, rows = self.exchange.pick(
            layer,
            self._number,
            lanes,
            wait_ns,
            self._slots_out,
            o.data_ptr(),
            o.stride(0),
            positions=self.positions[start:].data_ptr(),
        )
        self.tail_slots = self._slots_out[:picked].copy()
        if picked:
            self._buffers.o[start : start + rows].copy_(o[:rows], non_blocking=True)
            self._buffers.x[start : start + rows] = self._residual[self._slot_rows(self.tail_slots)]
        return rows

    # ---- slots -----------------------------------------------------------------------------

    def open_slot(self, sequence: int) -> int:
        """See `BatchAttention`."""
        return self.exchange.open_slot(sequence)

    def close_slot(self, slot: int) -> bool:
        """See `BatchAttention`."""
        if any(slot in item.slots for item in self._outbound):
            self._submit_arrived(wait=True)
        return self.exchange.close_slot(slot)

    def reap(self) -> list[int]:
        """See `BatchAttention`."""
        return self.exchange.reap()

    def figures(self) -> ExchangeFigures:
        """See `BatchAttention`."""
        return exchange_figures(self.exchange)
