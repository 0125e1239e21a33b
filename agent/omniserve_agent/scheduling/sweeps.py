"""Whether a pass without LS rows waits at every layer for its offloaded rows (a sweep).

A sweep brings every row that joins a whole token and takes as long as the host does; without
waiting, rows on the device get their tokens sooner and each offloaded row advances a layer.
"""

from __future__ import annotations

from dataclasses import dataclass

from omniserve_agent.scheduling.budget import SHORTEST_S
from omniserve_agent.scheduling.latency import LatencyModel, Work

ALPHA = 0.2  # weight of the newest sweep
FORGETTING = 0.999  # per pass that did not wait: after a while waiting is tried again


@dataclass(slots=True)
class Sweeps:
    """`row_s`: what the host adds per joined row and layer, as seen; 0 until a sweep was seen."""

    layers: int
    row_s: float = 0.0
    _seen: bool = False

    def observed(self, work: Work, seconds: float, model: LatencyModel) -> None:
        """A pass took this long; one that was cut short tells nothing."""
        rows = sum(work.joined_rows)
        if not work.waited or not rows or len(work.joined_rows) < self.layers:
            return
        added_s = max(0.0, seconds - model.predict(work)) / rows
        self.row_s += (ALPHA if self._seen else 1.0) * (added_s - self.row_s)
        self._seen = True

    def host_s(self, rows: int) -> float:
        """What the host adds to a sweep of so many rows."""
        return rows * self.layers * self.row_s

    def pay(self, device_rows: int, in_flight: int, joining: int, swept_s: float, s: float) -> bool:
        """Whether a sweep in which `joining` rows join, `swept_s` for the device, brings more
        tokens per second than a pass of `s` seconds that does not wait."""
        swept = (device_rows + joining) / max(SHORTEST_S, swept_s + self.host_s(joining))
        passed = (device_rows + in_flight / (self.layers + 1)) / max(SHORTEST_S, s)
        if swept >= passed:
            return True
        self.row_s *= FORGETTING
        return False
