"""Which engine gets which requests in `omniserve-agent simulate`: made up, or from a trace."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from math import floor
from pathlib import Path

from omniserve_agent.scheduling.jobs import ServiceClass
from omniserve_agent.simulation import workload
from omniserve_agent.simulation.workload import Arrival

LS, BE = ServiceClass.LS, ServiceClass.BE
LS_RATE, ARRIVALS, BE_DEFAULT, SECONDS = 3.0, "poisson", "dailymails", 300.0
LEAST_S, DAY_S = 2, 86_400
WARM_UP = 1 / 5  # of the time: what comes then is not counted


class LoadError(ValueError):
    """Flags or a trace that cannot be what the caller meant; one line that names them."""


@dataclass(frozen=True, slots=True)
class Made:
    """What the caller said of the load; None: nothing."""

    ls_rate: float | None
    arrivals: str | None
    be: str | None
    seconds: float | None
    seed: int


@dataclass(frozen=True, slots=True)
class Load:
    """Requests of each engine that is simulated, and a line about them for the screen."""

    requests: Sequence[Sequence[Arrival]]
    seconds: float
    told: str
    be: str | None  # BE without end, of this workload; None: BE is among the requests
    seed: int

    def backlog(self, number: int) -> Iterator[Arrival] | None:
        """BE without end for the engine of this number, each request for one engine alone."""
        if self.be is None:
            return None
        made = workload.backlog(self.seed, workload.BE_WORKLOADS[self.be])
        return islice(made, number, None, len(self.requests))


def generated(made: Made, engines: int) -> Load:
    """LS at a rate and BE without end: one engine stands for all, with its share of the rate."""
    rate, seconds = made.ls_rate or LS_RATE, made.seconds or SECONDS
    requests = workload.latency_sensitive(
        rate / engines, seconds, made.seed, made.arrivals or ARRIVALS
    )
    told = _not_counted(seconds)
    if engines > 1:
        told = (
            f"LS figures are those of one engine of {engines}, with its share of {rate:g} "
            f"requests/s; BE tok/s of all; {told}"
        )
    return Load([requests], seconds, told, made.be or BE_DEFAULT, made.seed)


def traced(path: Path, made: Made, engines: int) -> Load:
    """A trace's requests, dealt to the engines in turn, each class apart. LoadError."""
    try:
        found = workload.read_trace(path)
    except ValueError as error:
        raise LoadError(f"--trace: {error}") from error
    _refuse_conflicts(path, made, found)
    seconds = made.seconds or _seconds_of(path, found)
    within = [arrival for arrival in found if arrival.arrival_s < seconds]
    has_be = any(arrival.service_class is BE for arrival in found)
    return Load(
        dealt(within, engines),
        seconds,
        _told(path, found, within, engines, seconds),
        None if has_be else made.be or BE_DEFAULT,
        made.seed,
    )


def dealt(requests: Sequence[Arrival], engines: int) -> list[list[Arrival]]:
    """Each request to exactly one engine, in turn, each class apart: no engine has more than one
    request of a class more than another, and every policy sees the same."""
    hands: list[list[Arrival]] = [[] for _ in range(engines)]
    turns: Counter[ServiceClass] = Counter()
    for request in requests:
        hands[turns[request.service_class] % engines].append(request)
        turns[request.service_class] += 1
    return hands


def _refuse_conflicts(path: Path, made: Made, found: Sequence[Arrival]) -> None:
    for flag, value in (("--ls-rate", made.ls_rate), ("--arrivals", made.arrivals)):
        if value is not None:
            raise LoadError(
                f"{flag} {value} and --trace {path}: the trace says when requests arrive; "
                f"leave out {flag}"
            )
    if made.be is not None and any(arrival.service_class is BE for arrival in found):
        raise LoadError(
            f"--be {made.be} and --trace {path}: the trace has BE requests of its own; leave out "
            "--be, or them"
        )


def _seconds_of(path: Path, found: Sequence[Arrival]) -> float:
    """Whole seconds, so many that the last request arrives within them."""
    last_s = found[-1].arrival_s
    seconds = max(LEAST_S, floor(last_s) + 1)
    if seconds > DAY_S:
        raise LoadError(
            f"--trace: {path}: the last request arrives at {last_s:g} s; begin with arrival_s 0 "
            f"and end within {DAY_S} s, or say with --seconds how much of it to simulate"
        )
    return float(seconds)


def _told(
    path: Path,
    found: Sequence[Arrival],
    within: Sequence[Arrival],
    engines: int,
    seconds: float,
) -> str:
    of_class = Counter(arrival.service_class for arrival in within)
    told = f"{path.name}: {of_class[LS]} LS and {of_class[BE]} BE requests"
    if engines > 1:
        told += f", dealt in turn to {engines} engines, each class apart"
    if beyond := len(found) - len(within):
        told += f"; {beyond} of {len(found)} arrive after {seconds:g} s and are left out"
    return f"{told}; {_not_counted(seconds)}"


def _not_counted(seconds: float) -> str:
    return f"the first {WARM_UP * seconds:g} s are a warm-up and not counted"
