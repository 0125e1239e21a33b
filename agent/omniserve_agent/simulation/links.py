"""Links between a device and its hosts in virtual time, each direction for itself.

Rows on their way to attention or back go first, in their order; KV has what they leave of the link,
in the order in which it was queued. How much of it has crossed is computed when a link is told the
time: nothing happens per packet.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from omniserve_agent.simulation.runs import Run

Floats = NDArray[np.float64]


def in_order(free_s: float, submitted_s: Floats, service_s: Floats) -> Floats:
    """Completion times of one server that is free at `free_s`: c_k = max(c_k-1, s_k) + w_k."""
    if len(submitted_s) == 1:  # mostly; the same, but quicker
        return np.maximum(submitted_s, free_s) + service_s
    work = np.cumsum(service_s)
    starts = np.maximum.accumulate(np.maximum(submitted_s, free_s) - (work - service_s))
    return starts + work


@dataclass(slots=True, eq=False)
class Link:
    """One direction. Bytes of KV are counted since the beginning."""

    bytes_per_s: float
    queued_bytes: float = 0.0
    crossed_bytes: float = 0.0
    waiting: list[tuple[float, int, Run]] = field(default_factory=list)  # heap: bytes, number
    _now_s: float = 0.0
    _rows_s: float = 0.0  # so long it still carries rows that are known
    _rows_until_s: float = 0.0

    def rows(self, at_s: Floats, row_bytes: float) -> Floats:
        """When rows that are sent at these times, in their order, are across."""
        across = in_order(
            self._rows_until_s, at_s, np.full_like(at_s, row_bytes / self.bytes_per_s)
        )
        self._rows_until_s = float(across[-1])
        self.give_way(len(at_s), row_bytes)
        return across

    def give_way(self, rows: float, row_bytes: float) -> None:
        """KV waits until so many more rows are across."""
        self._rows_s += rows * row_bytes / self.bytes_per_s

    def send(self, kv_bytes: float) -> float:
        """Queue KV; it is across once `crossed_bytes` has come to what is returned."""
        self.queued_bytes += kv_bytes
        return self.queued_bytes

    @property
    def backlog_bytes(self) -> float:
        """Of KV."""
        return self.queued_bytes - self.crossed_bytes

    def advance(self, now_s: float) -> None:
        """It is later."""
        passed_s = now_s - self._now_s
        rows_s = min(self._rows_s, passed_s)
        self._rows_s -= rows_s
        crossed = self.crossed_bytes + (passed_s - rows_s) * self.bytes_per_s
        self.crossed_bytes = min(self.queued_bytes, crossed)
        self._now_s = now_s
