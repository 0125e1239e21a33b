"""Whether a pass without LS rows waits at every layer for its offloaded rows (a sweep).

A sweep brings every row that joins a whole token and takes as long as the host does; without
waiting, rows on the device get their tokens sooner and each offloaded row advances a layer. While
the host attends, the device computes prompts, so that these cost a sweep nothing up to there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from omniserve_agent.scheduling.budget import SHORTEST_S
from omniserve_agent.scheduling.latency import LatencyModel, Work

ALPHA = 0.2  # weight of the newest sweep
HIDDEN_SHARE = 0.9  # of what a sweep took longer: prompts that took as much hid the host
FORGETTING = 0.999  # per pass that did not wait: after a while waiting is tried again


@dataclass(slots=True)
class Sweeps:
    """`row_s`: what the host adds per joined row and layer, as seen; 0 until a sweep was seen."""

    layers: int
    row_s: float = 0.0
    _seen: bool = False

    def observed(self, work: Work, seconds: float, model: LatencyModel) -> None:
        """A pass took this long; one that was cut short tells nothing, and one as long as its
        prompts only that the host takes no longer."""
        rows = sum(work.joined_rows)
        if not work.waited or not rows or len(work.joined_rows) < self.layers:
            return
        alone_s = model.predict(replace(work, chunk_rows=[], staged_pairs=0))
        prompts_s, added_s = model.predict(work) - alone_s, max(0.0, seconds - alone_s)
        if prompts_s > HIDDEN_SHARE * added_s and added_s >= rows * self.row_s:
            return
        self.row_s += (ALPHA if self._seen else 1.0) * (added_s / rows - self.row_s)
        self._seen = True

    def host_s(self, rows: int) -> float:
        """What the host adds to a sweep of so many rows."""
        return rows * self.layers * self.row_s

    def pay(
        self,
        device_rows: int,
        in_flight: int,
        joining: int,
        swept_s: float,
        seconds: float,
        token_s: float = 0.0,
    ) -> bool:
        """Whether a sweep in which `joining` rows join, `swept_s` for the device, brings more
        tokens per second than a pass of `seconds` that does not wait.

        `token_s`: of prompts, what has to be computed per token to keep as many rows decoding.
        """
        swept = device_rows + joining
        passed = device_rows + in_flight / (self.layers + 1)
        swept_s += max(self.host_s(joining), token_s * swept)
        if swept * (seconds + token_s * passed) >= passed * max(SHORTEST_S, swept_s):
            return True
        self.row_s *= FORGETTING
        return False
