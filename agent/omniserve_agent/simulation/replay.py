"""What would have become of requests that admission refused: the same run with one let in."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import sqrt
from multiprocessing import get_context
from typing import TypeVar

from omniserve_agent.simulation.experiment import Experiment
from omniserve_agent.simulation.workload import Arrival

T = TypeVar("T")
SAMPLE = 20  # refused requests that are tried, spread over the run
Z_95 = 1.96  # standard errors to either side of 95 %
FORK = get_context("fork")
ATTAINED, MISSED = 10, 11  # exit statuses that no error has


@dataclass(frozen=True, slots=True)
class Tried:
    """Refused requests that were let in after all, each in a run of its own."""

    attained: int
    tried: int

    @property
    def share(self) -> float:
        """Of them that attained."""
        return self.attained / self.tried

    @property
    def interval(self) -> tuple[float, float]:
        """Where the share of all refused lies, at 95 % (Wilson's score interval)."""
        n, z = self.tried, Z_95
        centre = (self.share + z * z / (2 * n)) / (1 + z * z / n)
        reach = sqrt(self.share * (1 - self.share) / n + (z / (2 * n)) ** 2) * z / (1 + z * z / n)
        return max(0.0, centre - reach), min(1.0, centre + reach)


def would_attain(
    done: Experiment, backlog: Callable[[], Iterator[Arrival] | None], sample: int = SAMPLE
) -> Tried | None:
    """Of the refusals of a finished run, how many of a sample would have attained; None: none.

    `backlog` makes the run's BE requests anew. The run is the same up to the refusal.
    """
    return would_attain_on([done], lambda _: backlog(), sample)


def would_attain_on(
    engines: Sequence[Experiment],
    backlog: Callable[[int], Iterator[Arrival] | None],
    sample: int = SAMPLE,
) -> Tried | None:
    """The same of several engines' runs; `backlog` makes the BE requests of the one of a number."""
    refused = [
        (number, arrival)
        for number, done in enumerate(engines)
        for arrival in done.refused
        if arrival.arrival_s >= done.setting.warm_up_s
    ]
    chosen = _spread(refused, sample)
    if not chosen:
        return None
    attained = 0
    for number, done in enumerate(engines):
        attained += _attained(done, backlog(number), [a for n, a in chosen if n == number])
    return Tried(attained, len(chosen))


def _attained(
    done: Experiment, backlog: Iterator[Arrival] | None, chosen: Sequence[Arrival]
) -> int:
    """How many of these attain. The run is repeated once; a copy of this process goes on from each
    refusal with that one let in, until its fate is known."""
    again, found = Experiment(done.hardware, done.setting, done.arrivals, backlog), 0
    for arrival in chosen:
        again.run_until(arrival.arrival_s)
        copy = FORK.Process(target=_tell, args=(again, arrival))
        copy.start()
        copy.join()
        if copy.exitcode not in (ATTAINED, MISSED):
            raise RuntimeError(f"the replay of a refused request ended with {copy.exitcode}")
        found += copy.exitcode == ATTAINED
    return found


def _tell(again: Experiment, arrival: Arrival) -> None:
    sys.exit(ATTAINED if again.would_attain(arrival) else MISSED)


def _spread(items: Sequence[T], most: int) -> list[T]:
    """At most so many, evenly over all of them."""
    count = min(most, len(items))
    return [items[place * len(items) // count] for place in range(count)]
