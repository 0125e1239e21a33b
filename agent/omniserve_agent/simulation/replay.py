"""What would have become of requests that admission refused: the same run with one let in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TypeVar

from omniserve_agent.simulation.experiment import Experiment
from omniserve_agent.simulation.workload import Arrival

T = TypeVar("T")
SAMPLE = 8  # refused requests that are tried, spread over the run


def would_attain(done: Experiment, backlog: Callable[[], Iterator[Arrival] | None]) -> float | None:
    """Share of the sampled refusals of a finished run that would have attained; None: none.

    `backlog` makes the run's BE requests anew. The run is the same up to the refusal.
    """
    return would_attain_on([done], lambda _: backlog())


def would_attain_on(
    engines: Sequence[Experiment], backlog: Callable[[int], Iterator[Arrival] | None]
) -> float | None:
    """The same of several engines' runs; `backlog` makes the BE requests of the one of a number."""
    refused = [
        (number, arrival)
        for number, done in enumerate(engines)
        for arrival in done.refused
        if arrival.arrival_s >= done.setting.warm_up_s
    ]
    chosen = _spread(refused, SAMPLE)
    if not chosen:
        return None
    again = [_attains(engines[number], arrival, backlog(number)) for number, arrival in chosen]
    return sum(again) / len(again)


def _attains(done: Experiment, arrival: Arrival, backlog: Iterator[Arrival] | None) -> bool:
    setting = done.setting
    longest_s = setting.ttft_slo_s + arrival.output_tokens * setting.tpot_slo_s
    seconds = arrival.arrival_s + longest_s + 1.0
    setting = replace(setting, seconds=seconds, to_the_end=False)
    again = Experiment(done.hardware, setting, done.arrivals, backlog, let_in=arrival)
    again.run()
    return again.let_in_attained


def _spread(items: Sequence[T], most: int) -> list[T]:
    step = max(1, len(items) // most)
    return list(items[::step])[:most]
