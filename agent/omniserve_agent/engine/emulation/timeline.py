"""When an emulated device is done with what it was given.

The timeline is a deadline: work moves it on by the profile's seconds and sleeps until then, so that
late wake-ups do not add up and the core is free meanwhile. A host that is late by at most OVERLAP_S
costs nothing: that much planning and delivery a device hides that is launched one iteration ahead.
A later one costs all of its time.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable

OVERLAP_S = 0.010  # half of the shortest iteration of the profile `gpu-emulated`
SHORTEST_SLEEP_S = 50e-6  # a sleep takes that much longer than it should: the next one makes up
WIDEST_NOISE = 3.0  # standard deviations


class Timeline:
    """One device; one thread calls it. `noise` is the standard deviation of an iteration's time."""

    def __init__(
        self,
        noise: float = 0.0,
        seed: int = 0,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._noise, self._random = noise, random.Random(seed)
        self._clock, self._sleep = clock, sleep
        self._factor = 1.0
        self.end_s = clock()  # of all work given so far

    def begin(self) -> float:
        """A new iteration draws its noise; when it starts."""
        if self._noise:
            drawn = self._random.gauss(0.0, 1.0)
            self._factor = 1.0 + self._noise * min(max(drawn, -WIDEST_NOISE), WIDEST_NOISE)
        self._catch_up()
        return self.end_s

    def spend(self, seconds: float) -> None:
        """The device works for so long; returns when it is done."""
        self._catch_up()
        self.end_s += seconds * self._factor
        ahead_s = self.end_s - self._clock()
        if ahead_s > SHORTEST_SLEEP_S:
            self._sleep(ahead_s)

    def stall(self) -> None:
        """The device itself has waited until now."""
        self.end_s = max(self.end_s, self._clock())

    def _catch_up(self) -> None:
        now_s = self._clock()
        if now_s - self.end_s > OVERLAP_S:
            self.end_s = now_s
