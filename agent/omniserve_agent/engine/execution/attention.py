"""The executor's seams: attention of a batch's layers, and of layer-major prefill chunks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from omniserve_agent.engine.execution.iteration import (
    ExchangeFigures,
    Int32s,
    Iteration,
    StagedPrefill,
)
from omniserve_agent.engine.execution.rows import Rows


class BatchAttention(Protocol):
    """Attention of both kinds of rows, one call per layer."""

    @property
    def tail_slots(self) -> Int32s:
        """Slots whose rows are the tail of the batch now."""

    @property
    def positions(self) -> torch.Tensor:
        """int64 [capacity] on the CPU: joined rows' positions lie behind the device rows."""

    def begin(self, iteration: Iteration, rows: Rows) -> None:
        """A new batch: its device segments and its entries, which are the first tail."""

    def layer(
        self,
        layer: int,
        qkv: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None,
        lanes: int,
        wait_ns: int,
    ) -> int:
        """The tail leaves for the host; device rows attend; then `pick`. `qkv` None: no rows.

        Fills the o buffer for device rows. Returns the rows that joined.
        """

    def pick(self, layer: int, lanes: int, wait_ns: int) -> int:
        """At most `lanes` rows whose attention came back become the tail: x, o and positions
        behind the device rows. Returns how many."""

    def open_slot(self, sequence: int) -> int:
        """A slot for a row of this host sequence."""

    def close_slot(self, slot: int) -> bool:
        """Whether it was freed at once."""

    def reap(self) -> Sequence[int]:
        """Slots freed since the last call."""

    def figures(self) -> ExchangeFigures:
        """Counters."""


class StageAttention(Protocol):
    """Causal attention of layer-major prefill chunks over the request's whole KV of one layer."""

    def attend(
        self,
        layer: int,
        staged: StagedPrefill,
        qkv: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    ) -> torch.Tensor:
        """The chunk starts at row `staged.row`. Returns o [rows, Hq D]."""

    def finish_layer(self, layer: int, staged: StagedPrefill) -> None:
        """All rows of this layer are done: its KV belongs to the host from here on."""

    def discard(self, staged: StagedPrefill) -> None:
        """Cancelled."""
