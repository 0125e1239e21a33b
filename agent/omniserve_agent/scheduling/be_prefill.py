"""How much of BE's prompts an iteration computes: rows of the batch, and row-layers apart from it.

A prompt on the device shares the batch's dense calls; one for the host is computed layer by layer
in calls of its own, which draw from a pool of row-layers in the order of their rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Protocol

from omniserve_agent.scheduling.budget import SHORTEST_S, largest_fitting
from omniserve_agent.scheduling.costs import Costs, Load
from omniserve_agent.scheduling.jobs import Job
from omniserve_agent.scheduling.latency import pairs
from omniserve_agent.scheduling.plan import STAGED_CHUNK_ROWS, Caps


class Allowance(Protocol):
    """What one iteration grants to BE's prompts."""

    def together(self, staged: Sequence[Job]) -> Sequence[Job]:
        """Of the prefills under way for the host, in order, those that draw from the pool."""

    def device_rows(self, ls_prefill_rows: int, staged: Sequence[Job], wanted: int) -> int:
        """Of `wanted` prompt rows on the device, how many. Prefills for the host keep a quarter, so
        that neither kind starves the other: a prompt on the device brings tokens (layers + 1)
        times as fast."""

    def row_layers(self, ls_prefill_rows: int, device_rows: int, staged: Sequence[Job]) -> int:
        """The pool beside so many rows on the device."""


@dataclass(frozen=True, slots=True)
class RowLayers:
    """A fixed amount, shared with LS prefill but for a floor."""

    caps: Caps

    def together(self, staged: Sequence[Job]) -> Sequence[Job]:
        """See `Allowance`."""
        return staged[: self.caps.staged_jobs]

    def device_rows(self, ls_prefill_rows: int, staged: Sequence[Job], wanted: int) -> int:
        """See `Allowance`."""
        rows = self._rows(ls_prefill_rows)
        return min(wanted, rows - rows // 4 if staged else rows)

    def row_layers(self, ls_prefill_rows: int, device_rows: int, staged: Sequence[Job]) -> int:
        """See `Allowance`."""
        return self.caps.layers * (self._rows(ls_prefill_rows) - device_rows) if staged else 0

    def _rows(self, ls_prefill_rows: int) -> int:
        most = self.caps.be_prefill_rows
        return max(most - ls_prefill_rows, min(self.caps.be_prefill_floor_rows, most))


@dataclass(frozen=True, slots=True)
class Seconds:
    """What fits into `seconds` (uncorrected and without a margin) on top of `load`, of prompts for
    the host into `host_s` at most."""

    caps: Caps
    costs: Costs
    load: Load
    seconds: float
    host_s: float = inf
    context: int = 0  # tokens before the rows of prompts on the device
    device: bool = True  # whether prompts on the device may have any

    def together(self, staged: Sequence[Job]) -> Sequence[Job]:
        """The first ones that are no dearer per row than those before them.

        What a prefill leaves of the pool goes to the next one, whose short remainder (a prompt
        whose prefix was found) would cost many times what its rows were priced at.
        """
        staged = staged[: self.caps.staged_jobs]
        for place in range(1, len(staged)):
            if _chunk(staged[place]) < _chunk(staged[place - 1]):
                return staged[:place]
        return staged

    def device_rows(self, ls_prefill_rows: int, staged: Sequence[Job], wanted: int) -> int:
        """See `Allowance`."""
        if not self.device:
            return 0
        share = 0.75 if staged and self.host_s else 1.0
        limit_s = self.costs.predicted(self.load) + self.seconds * share
        most = min(wanted, self.caps.be_prefill_rows)
        fitting = largest_fitting(0, most, lambda rows: self._with(rows) <= limit_s)
        return self.costs.worthwhile(self.load.rows, fitting, self._with)

    def row_layers(self, ls_prefill_rows: int, device_rows: int, staged: Sequence[Job]) -> int:
        """See `Allowance`.

        How far the first has come is not known: it is taken as untouched, and where the next ones'
        rows are dearer (a prompt's short remainder), all are priced as theirs.
        """
        left_s = self.seconds
        if device_rows:
            left_s -= self._with(device_rows) - self.costs.predicted(self.load)
        left_s = min(left_s, self.host_s)
        layers, pool = self.caps.layers, 0
        for job in staged:
            chunk, context = _chunk(job), job.tokens // 2
            layer_s = self.costs.staged_s(job.remaining, chunk, context)  # with its cut chunk
            whole = min(layers, int(left_s / max(layer_s, SHORTEST_S)))
            pool += whole * job.remaining
            left_s -= whole * layer_s
            if whole < layers:
                pool += min(job.remaining, self.costs.staged_pool(left_s, chunk, context))
                break
        pool = int(pool * self._dearer(staged))
        return min(pool, layers * (self.caps.be_prefill_rows - device_rows))

    def _dearer(self, staged: Sequence[Job]) -> float:
        """The price of the first one's rows over the dearest, which may draw what it leaves."""
        prices = [
            self.costs.staged_s(rows, _chunk(job), job.tokens // 2) / rows
            for job in staged
            if (rows := max(1, job.remaining))
        ]
        return prices[0] / max(prices) if prices and prices[0] > 0.0 else 1.0

    def _with(self, rows: int) -> float:
        return self.costs.predicted(self.load.plus(rows, 0, 0, pairs(self.context, rows)))


def _chunk(job: Job) -> int:
    return max(1, min(job.remaining, STAGED_CHUNK_ROWS))
