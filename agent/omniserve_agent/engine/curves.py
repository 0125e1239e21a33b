"""Seconds by row count from a timer, with the steps where they are.

    a grid of row counts, in rounds ──► noise ──► tolerance
    neighbours that differ by more, below the largest count ──► the count after the roundest between
    them, until a step lies between two adjacent counts, the rest is flat or on a line, or the time
    for it is over; first within the grid, small row counts first

Steps come after round counts (tiles), so a step costs one or two further counts; one that is
elsewhere is bisected. Pure: the timer is all it knows of the device.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from omniserve_agent.scheduling.latency import Curve

Timer = Callable[[int], float]  # seconds of one run of so many rows
Seconds = dict[int, float]  # by rows

GRID = (1, 2, 4, 6, 7, 8, 12, 13, 16, 17, 24, 32, 33, 48, 64, 65, 96, 128, 129, 192, 256)
FAR_STEP, MOST_ROWS = 128, 2048  # beyond the grid: doubling, up to a multiple of FAR_STEP
REPEATS, FEW_REPEATS = 7, 3  # few where times hardly differ, and of runs that are long
LONG_RUN_S = 0.1
QUIET = 0.0075  # standard deviation over median
TOLERANCES, LEAST_TOLERANCE = 4.0, 0.01  # in standard deviations; of a time
MOST_ALIKE = 0.05  # however much times scatter: points that differ by more are kept apart
NORMAL_QUARTILES = 1.35  # from the first to the third, in standard deviations
GROWTH = 1.5  # all may take that much longer than the grid with all repeats


def measured_rows(largest: int) -> int:
    """Up to how many rows is measured for iterations of up to `largest`; few different values."""
    return min(max(-(-largest // FAR_STEP) * FAR_STEP, GRID[-1]), MOST_ROWS)


def plain_curve(timer: Timer, rows: Sequence[int]) -> Curve:
    """Just these row counts."""
    seconds = _medians(sample(timer, rows))
    return Curve(tuple(seconds), tuple(seconds.values()))


def stepped_curve(timer: Timer, largest: int, progress: Callable[[float], None]) -> Curve:
    """From 1 to `largest` rows (see `measured_rows`). Progress goes from 0 to 1."""
    progress(0.0)
    grid, spent = [*GRID, *_beyond(largest)], _Spent(timer)
    taken = sample(spent, grid, progress=lambda share: progress(share / GROWTH))
    seconds = _medians(taken)
    limit_s = GROWTH * (1 + REPEATS) * sum(seconds[rows] for rows in GRID)
    scatter = noise(taken)
    repeats = FEW_REPEATS if scatter <= QUIET else REPEATS
    search = _Search(seconds, max(LEAST_TOLERANCE, TOLERANCES * scatter), 1 + repeats)
    done = 1 / GROWTH
    while wave := search.probes(limit_s - spent.seconds):
        rows = [*wave, search.anchor(wave)]
        search.take_in(wave, _medians(sample(spent, rows, repeats)))
        done = max(done, min(1.0, spent.seconds / limit_s))
        progress(done)
    return search.curve()


def _beyond(largest: int) -> list[int]:
    doubled = [rows for rows in (512, 1024) if GRID[-1] < rows < largest]
    return [*doubled, largest] if largest > GRID[-1] else []


@dataclass
class _Spent:
    """A timer that adds up what it measured."""

    timer: Timer
    seconds: float = 0.0

    def __call__(self, rows: int) -> float:
        taken = self.timer(rows)
        self.seconds += taken
        return taken


def sample(
    timer: Timer,
    rows: Sequence[int],
    repeats: int = REPEATS,
    progress: Callable[[float], None] = lambda _: None,
) -> dict[int, list[float]]:
    """Runs in rounds over all row counts, so that a slow spell hits all alike; the first is left
    out."""
    taken: dict[int, list[float]] = {count: [] for count in rows}
    for number in range(1 + repeats):
        wanted = list(taken) if number <= FEW_REPEATS else _again(taken)
        for place, count in enumerate(wanted):
            taken[count].append(timer(count))
            progress((number + place / len(wanted)) / (1 + repeats))
    return {count: seconds[1:] for count, seconds in taken.items()}


def _again(taken: Mapping[int, Sequence[float]]) -> list[int]:
    """Short runs whose times differ, or all of them where times do in general."""
    measured = {count: seconds[1:] for count, seconds in taken.items()}
    loud = noise(measured) > QUIET
    return [
        count
        for count, seconds in measured.items()
        if seconds[-1] < LONG_RUN_S and (loud or _scatter(seconds) > QUIET)
    ]


def _scatter(seconds: Sequence[float]) -> float:
    """Where there are enough of them, outliers do not count: the medians are free of them too."""
    if len(seconds) <= FEW_REPEATS:
        return statistics.stdev(seconds) / statistics.median(seconds)
    low, middle, high = statistics.quantiles(seconds, method="inclusive")
    return (high - low) / NORMAL_QUARTILES / middle


def noise(taken: Mapping[int, Sequence[float]]) -> float:
    """Standard deviation over median, of the middle row count."""
    return statistics.median(_scatter(seconds) for seconds in taken.values())


def _medians(taken: Mapping[int, Sequence[float]]) -> Seconds:
    return {count: statistics.median(seconds) for count, seconds in taken.items()}


@dataclass
class _Search:
    """What is known, and between which row counts a step may hide."""

    seconds: Seconds
    tolerance: float  # of a time; what differs by less is the same
    runs: int  # that a probe takes
    settled: set[tuple[int, int]] = field(default_factory=set)  # on a line as far as was probed

    def probes(self, left_s: float) -> list[int]:
        """Row counts to measure next, as many as the time is enough for."""
        chosen: list[int] = []
        wide = self._open()
        near = [interval for interval in wide if interval[1] <= GRID[-1]]
        for low, high in near or wide:
            wanted = [n for n in _after_roundest(low, high) if n not in self.seconds]
            left_s -= self.runs * self.seconds[high] * (len(wanted) + (not chosen))  # an anchor
            if left_s <= 0:
                break
            chosen += wanted
        return chosen

    def anchor(self, wave: Sequence[int]) -> int:
        """A known row count like those of the wave: whether the machine has slowed down."""
        middle = statistics.median(wave)
        return min(self.seconds, key=lambda rows: abs(rows - middle))

    def take_in(self, wave: Iterable[int], measured: Seconds) -> None:
        """New times, at the pace of the old ones; intervals that turn out straight are settled."""
        anchor = self.anchor(list(wave))
        pace = self.seconds[anchor] / measured[anchor]
        if abs(pace - 1.0) <= self.tolerance:
            pace = 1.0
        before, new = self._open(), {rows: pace * measured[rows] for rows in wave}
        known = self.seconds | new
        for low, high in before:
            inside = sorted(rows for rows in new if low < rows < high)
            if inside and inside[0] > low + 1 and self._straight(low, high, inside, known):
                self.settled |= set(pairwise([low, *inside, high]))
        self.seconds = known

    def curve(self) -> Curve:
        """All that was measured, but of adjacent counts only those beside a step."""
        rows = sorted(self.seconds)
        kept = [*rows[:1], *(n for n in rows[1:-1] if not self._dull(n)), *rows[1:][-1:]]
        return Curve(tuple(kept), tuple(self.seconds[count] for count in kept))

    def _dull(self, rows: int) -> bool:
        """Whether it is as the count before it, with no step after."""
        before, after = rows - 1, rows + 1
        alike = min(self.tolerance, MOST_ALIKE)
        starts = after in self.seconds and self._rises(rows, after, alike)
        return before in self.seconds and not starts and not self._rises(before, rows, alike)

    def _open(self) -> list[tuple[int, int]]:
        return [
            (low, high)
            for low, high in pairwise(sorted(self.seconds))
            if high > low + 1
            and (low, high) not in self.settled
            and self._rises(low, high, self.tolerance)
        ]

    def _rises(self, low: int, high: int, tolerance: float) -> bool:
        return self.seconds[high] > (1 + tolerance) * self.seconds[low]

    def _straight(self, low: int, high: int, inside: Iterable[int], known: Seconds) -> bool:
        return all(
            abs(known[rows] / self._line(low, high, rows) - 1.0) <= self.tolerance
            for rows in inside
        )

    def _line(self, low: int, high: int, rows: int) -> float:
        share = (rows - low) / (high - low)
        return self.seconds[low] + share * (self.seconds[high] - self.seconds[low])


def _after_roundest(low: int, high: int) -> tuple[int, int]:
    """The roundest count in [low, high), by its powers of two, and the one after it."""
    roundest = max(range(low, high), key=lambda rows: rows & -rows)
    return roundest, roundest + 1
