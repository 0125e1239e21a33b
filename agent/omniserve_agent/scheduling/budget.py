"""Budgets instead of headroom: how much BE work an iteration has time for.

LS rows set deadlines; the latency model says what an iteration costs; what is left is BE's, as far
as it helps BE: an iteration stretched by prefill slows every offloaded row, which advances about
one layer per iteration.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

SHORTEST_S = 1e-6  # no iteration is free, whatever a profile says


def largest_fitting(low: int, high: int, fits: Callable[[int], bool]) -> int:
    """The largest value in [low, high] that fits, by bisection; `low` where none does.

    The largest is tried first: mostly everything fits.
    """
    if low < high and fits(high):
        return high
    while high - low > 1:  # high is known not to fit
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


class Choice(NamedTuple):
    """One way to use the slack: its BE progress and what the iteration then takes."""

    amount: int
    progress: float  # layer-steps
    seconds: float

    @property
    def rate(self) -> float:
        """Progress per second."""
        return self.progress / max(self.seconds, SHORTEST_S)


def best(choices: list[Choice]) -> Choice:
    """The highest rate; of equal ones the smaller amount. Slack is a limit, never a target."""
    return max(choices, key=lambda one: (one.rate, -one.amount))
