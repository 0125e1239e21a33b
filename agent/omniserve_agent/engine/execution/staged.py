"""Layer-major BE prefill: all rows of one layer, then the next; hidden states stay here.

Only one layer's KV is ever on the device; each layer's goes to the host once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from omniserve_agent.engine.execution.attention import StageAttention
from omniserve_agent.engine.execution.iteration import StagedPrefill
from omniserve_agent.engine.model.model import Model
from omniserve_agent.scheduling.latency import Work, pairs
from omniserve_agent.scheduling.plan import STAGED_CHUNK_ROWS


@dataclass(slots=True, eq=False)
class StagedWork:
    """What a prefill keeps between iterations: x [rows, H] after `layer` layers, rope rows."""

    x: torch.Tensor
    rope: torch.Tensor


@dataclass(eq=False)
class StagedRunner:
    """Advances prefills by what the iteration's pool allows."""

    model: Model
    attention: StageAttention

    def advance(self, layer: int, prefills: Sequence[StagedPrefill], pool: int, done: Work) -> int:
        """Run chunks of every prefill that is at `layer`, noting them in `done`; what is left of
        the pool. One that ranks lower draws only what those before it will not need."""
        reserved, layers = 0, len(self.model.layers)
        for staged in prefills:
            if staged.layer == layer and pool > reserved:
                pool -= self._advance(layer, staged, pool - reserved, done)
            elif staged.layer > layer:
                reserved += staged.row_layers_left(layers)
        return pool

    def _advance(self, layer: int, staged: StagedPrefill, pool: int, done: Work) -> int:
        work = self._work(staged)
        total, drawn = len(staged.token_ids), 0
        while staged.row < total and drawn < pool:
            count = min(total - staged.row, pool - drawn, STAGED_CHUNK_ROWS)
            self._chunk(layer, staged, work, count)
            done.chunk_rows.append(count)
            done.staged_pairs += pairs(staged.start + staged.row, count)
            staged.row += count
            drawn += count
        if staged.row == total:
            self.attention.finish_layer(layer, staged)
            staged.layer, staged.row = layer + 1, 0
        return drawn

    def _chunk(self, layer: int, staged: StagedPrefill, work: StagedWork, count: int) -> None:
        rows = slice(staged.row, staged.row + count)
        module = self.model.layers[layer]
        qkv = module.pre_attention(work.x[rows], work.rope[rows])
        module.post_attention(self.attention.attend(layer, staged, qkv), work.x[rows])

    def _work(self, staged: StagedPrefill) -> StagedWork:
        if staged.work is None:
            device = self.model.device
            ids = torch.tensor(staged.token_ids, dtype=torch.int64, device=device)
            positions = torch.arange(staged.start, staged.start + len(ids), device=device)
            staged.work = StagedWork(self.model.embed(ids), self.model.rope(positions))
        work: StagedWork = staged.work
        return work

    def last_row(self, staged: StagedPrefill) -> torch.Tensor:
        """x [1, H] of the last token after the last layer."""
        return self._work(staged).x[-1:]
