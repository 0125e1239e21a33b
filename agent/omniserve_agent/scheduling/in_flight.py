"""Offloaded rows by layer, as a policy can know them: from how many are in flight and what joined.

A row that starts a token is parked at layer 0; a row that joined at layer l is parked at l + 1. The
executor tells what joined where (`Work.joined_rows`); how many there are is known exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from omniserve_agent.scheduling.costs import Runs

SMOOTHING = 0.05  # weight of the newest iteration


@dataclass(slots=True)
class InFlight:
    """See the module. `ready` is the share of parked rows that were back when their layer came."""

    layers: int
    ready: float = 1.0
    total: int = 0
    parked: NDArray[np.float64] = field(init=False)
    _ready: list[tuple[int, int]] = field(default_factory=list)  # rows that would join: layers

    def __post_init__(self) -> None:
        self.parked = np.zeros(self.layers)

    def settle(self, total: int) -> None:
        """So many rows are in flight: new ones are at layer 0, lost ones could be anywhere."""
        self.total = total
        known = float(np.add.reduce(self.parked))
        if total == 0:
            self.parked[:] = 0.0
        elif total > known:
            self.parked[0] += total - known
        elif known > total:
            self.parked *= total / known
        layers = np.bincount(np.rint(self.parked * self.ready).astype(np.int64))
        rows = layers.nonzero()[0]
        self._ready = list(zip(rows.tolist(), layers[rows].tolist(), strict=True))

    def observed(self, joined_rows: Sequence[float], lanes: int) -> None:
        """An iteration joined so many rows at each layer (fewer layers where it was cut short)."""
        joined = np.zeros(self.layers)
        joined[: len(joined_rows)] = joined_rows
        could = float(np.minimum(self.parked, lanes).sum())
        if could >= 1.0:
            share = min(1.0, float(joined.sum()) / could)
            self.ready += SMOOTHING * (share - self.ready)
        np.minimum(joined, self.parked, out=joined)
        self.parked -= joined
        self.parked[1:] += joined[:-1]

    @property
    def most_ready(self) -> int:
        """Rows that would join at the fullest layer."""
        return self._ready[-1][0] if self._ready else 0

    def runs(self, lanes: int) -> Runs:
        """Joins to expect, as runs of layers with equally many: at most `lanes` a layer."""
        if self.total == 0 or lanes <= 0:
            return ((0, self.layers),)
        within = [run for run in self._ready if run[0] < lanes]
        beyond = sum([layers for _, layers in self._ready[len(within) :]])
        return (*within, (lanes, beyond)) if beyond else tuple(within)


def steps(runs: Runs) -> int:
    """Layer-steps these joins make together."""
    return sum([rows * layers for rows, layers in runs])
