"""What BE prompts cost an iteration: in dense calls of their own, or as rows of the batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from omniserve_agent.scheduling.budget import largest_fitting
from omniserve_agent.scheduling.costs import Costs, Load
from omniserve_agent.scheduling.latency import pairs


class PrefillCosts(Protocol):
    """Amounts are row-layers; seconds are predicted ones, uncorrected and without a margin."""

    def most(self, seconds: float) -> int:
        """How much fits."""

    def seconds(self, row_layers: int) -> float:
        """What it takes."""


@dataclass(frozen=True, slots=True)
class Apart:
    """Layer-major prefill for the host: chunks as large as they come, behind `context` tokens."""

    costs: Costs
    chunk: int
    context: int

    def most(self, seconds: float) -> int:
        """See `PrefillCosts`."""
        return self.costs.staged_pool(seconds, self.chunk, self.context)

    def seconds(self, row_layers: int) -> float:
        """See `PrefillCosts`."""
        return self.costs.staged_s(row_layers, self.chunk, self.context)


@dataclass(frozen=True, slots=True)
class Merged:
    """Chunks of prompts on the device: rows beside those of `load`, through the same weights."""

    costs: Costs
    load: Load
    context: int
    layers: int
    most_rows: int

    def most(self, seconds: float) -> int:
        """See `PrefillCosts`."""
        limit_s = self.costs.predicted(self.load) + seconds
        return self.layers * largest_fitting(
            0, self.most_rows, lambda rows: self.costs.predicted(self._with(rows)) <= limit_s
        )

    def seconds(self, row_layers: int) -> float:
        """See `PrefillCosts`."""
        with_rows = self._with(row_layers // self.layers)
        return self.costs.predicted(with_rows) - self.costs.predicted(self.load)

    def _with(self, rows: int) -> Load:
        return self.load.plus(rows, 0, 0, pairs(self.context, rows))
