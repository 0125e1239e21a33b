"""When a status is written. Pure."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

FIGURES_S = 15.0
JITTER = 0.2
LONGEST_RETRY_S = 30.0


@dataclass
class Pacing:
    """State and reason changes at once, figures at most every 15 s (and up to a fifth later, so
    that a cluster's agents do not write together); after a failure doubling waits."""

    draw: Callable[[], float] = random.random
    _edges: object = None
    _figures_at: float = 0.0
    _retry_at: float = 0.0
    _failures: int = field(default=0)

    def due(self, now_s: float, edges: object) -> bool:
        """Whether to write now. `edges`: what is reported at once when it differs."""
        if now_s < self._retry_at:
            return False
        return edges != self._edges or now_s >= self._figures_at

    def written(self, now_s: float, edges: object) -> None:
        """A write with these `edges` has succeeded."""
        self._edges, self._failures, self._retry_at = edges, 0, 0.0
        self._figures_at = now_s + FIGURES_S * (1 + JITTER * self.draw())

    def hurry(self) -> None:
        """The server is there again, or the object is another one: do not wait."""
        self._edges, self._retry_at = None, 0.0

    def failed(self, now_s: float) -> None:
        """A write has failed: nothing is known to be there."""
        self._edges = None
        self._failures += 1
        wait_s = min(LONGEST_RETRY_S, 2.0 ** min(self._failures - 1, 10))
        self._retry_at = now_s + wait_s * (1 - 0.5 * self.draw())
