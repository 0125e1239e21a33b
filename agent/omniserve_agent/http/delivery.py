"""How long a first token takes from the engine's choice to the client's socket.

An SLO is judged where events are written, and between the two lie a message, a wake-up on cores
that others use too, detokenising and a write. The engine must be done so much earlier: how much is
measured here and told it with every request.
"""

from __future__ import annotations

from collections import deque

from omniserve_agent.http.tally import nearest_rank

FIRST_GUESS_S = 0.003
LEAST_SAMPLES, SAMPLES = 20, 256
PERCENT = 95  # of first tokens come within the allowance


class Deliveries:
    """The last first tokens of LS requests, of all services of one API process."""

    def __init__(self) -> None:
        self._seconds: deque[float] = deque(maxlen=SAMPLES)
        self.allowance_s = FIRST_GUESS_S

    def delivered(self, seconds: float) -> None:
        """A first token was written so long after the engine had chosen it."""
        self._seconds.append(max(0.0, seconds))
        if len(self._seconds) >= LEAST_SAMPLES:
            self.allowance_s = nearest_rank(self._seconds, PERCENT) or FIRST_GUESS_S
