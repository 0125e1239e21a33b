"""The layer loop: one iteration over all layers, the same on every device.

x = embed(device rows; offloaded rows that start a token)
for each layer:
    q, k, v = pre_attention(x)            every row
    the tail leaves for the host; device rows attend; returned rows join
    post_attention(o, x)                  device rows and joined rows
    layer-major prefills that are at this layer advance
logits of the rows that need them
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from omniserve_agent.engine.execution.attention import BatchAttention, StageAttention
from omniserve_agent.engine.execution.buffers import RowBuffers
from omniserve_agent.engine.execution.choices import Chooser
from omniserve_agent.engine.execution.iteration import (
    Entry,
    ExchangeFigures,
    Iteration,
    Launched,
    Outcome,
    StagedPrefill,
)
from omniserve_agent.engine.execution.rows import Rows, device_work, lay_out
from omniserve_agent.engine.execution.staged import StagedRunner
from omniserve_agent.engine.kv.copies import TierCopies
from omniserve_agent.engine.model.model import Model
from omniserve_agent.scheduling.latency import Work


@dataclass(slots=True, eq=False)
class _Pass:
    """State of the pass through the layers."""

    iteration: Iteration
    rows: int  # in the batch now
    device_rows: int
    pool: int  # row-layers left for staged prefills
    work: Work
    interrupted: bool = False  # a sweep that gives way to new work: nothing waits any more

    @property
    def stopped(self) -> bool:
        """Without device rows it ends where it is: all its rows are parked."""
        return self.interrupted and self.device_rows == 0


class LayerLoopExecutor:
    """An `Executor` over a model, an attention for batches and one for staged prefills."""

    def __init__(
        self,
        model: Model,
        attention: BatchAttention,
        stage: StageAttention,
        copies: TierCopies,
        buffers: RowBuffers,
        *,
        max_sequences: int,
        depth: int,
        close: Callable[[], None],
    ) -> None:
        self.model = model
        self.attention = attention
        self.copies = copies
        self.depth = depth
        self._stage = stage
        self._staged = StagedRunner(model, stage)
        self._chooser = Chooser(model, max_sequences)
        self._entries: dict[int, Entry] = {}
        self._buffers = buffers
        self.close = close

    # ---- iterations ------------------------------------------------------------------------

    @torch.inference_mode()
    def launch(self, iteration: Iteration) -> Launched:
        """See `Executor`."""
        rows = lay_out(iteration)
        self._entries.update((entry.slot, entry) for entry in iteration.entries)
        self._embed(rows)
        self.attention.begin(iteration, rows)
        pool, work = iteration.prefill_row_layers, device_work(rows)
        work.waited = iteration.wait_ns > 0
        state = _Pass(iteration, rows.count, rows.device_rows, pool, work)
        for layer in range(self.model.config.layers):
            self._layer(layer, state)
            if state.stopped and state.rows == 0:
                break
        return self._choose(rows, state)

    def _embed(self, rows: Rows) -> None:
        if rows.count == 0:
            return
        device = self.model.device
        ids = torch.from_numpy(rows.token_ids).to(device, non_blocking=True)
        if len(rows.seats):
            self._chooser.fill_seated(ids, rows)
        positions = torch.from_numpy(rows.positions).to(device, non_blocking=True)
        self._buffers.x[: rows.count] = self.model.embed(ids)
        self._buffers.rope[: rows.count] = self.model.rope(positions)

    def _layer(self, layer: int, state: _Pass) -> None:
        module, buffers, n = self.model.layers[layer], self._buffers, state.rows
        qkv = module.pre_attention(buffers.x[:n], buffers.rope[:n]) if n else None
        joined = self._attend(layer, qkv, state)
        finished = state.device_rows if state.iteration.overlaps else 0
        state.rows = n = state.device_rows + joined
        state.work.joined_rows.append(joined)
        if joined:
            tail = self.attention.positions[state.device_rows : n].to(self.model.device)
            buffers.rope[state.device_rows : n] = self.model.rope(tail)
        if n > finished:
            module.post_attention(buffers.o[finished:n], buffers.x[finished:n])
        self._advance_staged(layer, state)

    def _attend(
        self,
        layer: int,
        qkv: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None,
        state: _Pass,
    ) -> int:
        """In a sweep, staged prefills run while the host attends; then the layer may wait."""
        iteration = state.iteration
        if iteration.wait_ns == 0:
            return self.attention.layer(layer, qkv, iteration.join_rows, 0)
        if not state.interrupted and iteration.interrupted():
            state.interrupted, state.pool = True, 0
        self.attention.layer(layer, qkv, 0, 0)
        if state.stopped:
            return 0
        if iteration.overlaps and state.device_rows:
            ready, x = self._buffers.o[: state.device_rows], self._buffers.x[: state.device_rows]
            self.model.layers[layer].post_attention(ready, x)
        self._advance_staged(layer, state)
        wait_ns = 0 if state.interrupted else iteration.wait_ns
        return self.attention.pick(layer, iteration.join_rows, wait_ns)

    def _advance_staged(self, layer: int, state: _Pass) -> None:
        if state.pool > 0:
            prefills = state.iteration.staged
            state.pool = self._staged.advance(layer, prefills, state.pool, state.work)

    def _choose(self, rows: Rows, state: _Pass) -> Launched:
        finished = [s for s in state.iteration.staged if s.layer == self.model.config.layers]
        tail_rows = state.rows - state.device_rows
        slots = self.attention.tail_slots.tolist() if tail_rows else []
        hops = [self._entries.pop(slot) for slot in slots]
        chosen = self._chooser.choose(
            self._buffers.x,
            rows,
            hops,
            [(staged.sample, self._staged.last_row(staged)) for staged in finished],
        )
        for staged in finished:
            staged.work = None
        state.work.logit_rows = len(chosen.samples)
        return Launched(finished, chosen, state.work)

    def collect(self, launched: Launched) -> Outcome:
        """See `Executor`."""
        return self._chooser.collect(launched.chosen)

    # ---- slots and moves -------------------------------------------------------------------

    def open_slot(self, sequence: int) -> int:
        """See `Executor`."""
        return self.attention.open_slot(sequence)

    def close_slot(self, slot: int) -> bool:
        """See `Executor`."""
        self._entries.pop(slot, None)
        return self.attention.close_slot(slot)

    def reap(self) -> Sequence[int]:
        """See `Executor`."""
        return self.attention.reap()

    def discard_prefill(self, staged: StagedPrefill) -> None:
        """See `Executor`."""
        self._stage.discard(staged)
        staged.work = None

    def copy_to_host(self, device: int, host: int, start: int, count: int) -> None:
        """See `Executor`."""
        self.copies.to_host(device, host, start, count)

    def copy_to_device(self, host: int, device: int, start: int, count: int) -> None:
        """See `Executor`."""
        self.copies.to_device(host, device, start, count)

    def figures(self) -> ExchangeFigures:
        """See `Executor`."""
        return self.attention.figures()
