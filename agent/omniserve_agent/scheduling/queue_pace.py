"""When a full queue will have room: by the pace at which requests lately left it. Pure.

A queue gets long where KV lacks, which admission's projection does not foresee of admitted ones.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from omniserve_agent.scheduling.retry import LEAST_RETRY_S, MOST_RETRY_S

KEPT = 8  # turns


@dataclass(slots=True)
class QueuePace:
    """Of one queue. A turn is how long somebody is next in line."""

    _turns_s: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT))
    _next_since_s: float | None = None  # None: nobody waits

    def came(self, now_s: float, waiting: int) -> None:
        """A request came to `waiting` others."""
        if not waiting or self._next_since_s is None:
            self._next_since_s = now_s

    def left(self, now_s: float, waiting: int) -> None:
        """A request left it to run, `waiting` others did not."""
        if self._next_since_s is not None:
            self._turns_s.append(now_s - self._next_since_s)
        self._next_since_s = now_s if waiting else None

    def room_s(self, now_s: float) -> float:
        """Until one is expected to have left: a mean turn, or as long again as this one has lasted,
        within bounds; the shortest before any has."""
        mean_s = sum(self._turns_s) / max(1, len(self._turns_s))
        lasted_s = 0.0 if self._next_since_s is None else now_s - self._next_since_s
        return min(max(mean_s, lasted_s, LEAST_RETRY_S), MOST_RETRY_S)
