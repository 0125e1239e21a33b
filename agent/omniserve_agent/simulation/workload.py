"""Requests over time: seeded generators with the paper's length statistics, and CSV traces."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from omniserve_agent.scheduling.jobs import ServiceClass

USUAL_MAX_TOKENS = 1024  # of BE in a trace, which does not say it
COLUMNS = ("arrival_s", "class", "prompt_tokens", "output_tokens")


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request."""

    arrival_s: float
    service_class: ServiceClass
    prompt_tokens: int
    output_tokens: int
    service: str = ""
    max_tokens: int | None = None  # what it was limited to; None: to just what it outputs
    prompt: int | None = None  # names its whole prompt where others have the same one


@dataclass(frozen=True, slots=True)
class Lengths:
    """Log-normal token counts with this mean; `sigma` is that of the logarithm."""

    mean: float
    sigma: float
    least: int
    most: int

    def draw(self, random: np.random.Generator, count: int) -> NDArray[np.int64]:
        """`count` lengths whose expected value, before clipping, is `mean`."""
        mu = np.log(self.mean) - self.sigma**2 / 2
        drawn = np.rint(random.lognormal(mu, self.sigma, count)).astype(np.int64)
        return np.clip(drawn, self.least, self.most)


@dataclass(frozen=True, slots=True)
class Workload:
    """Prompt and output lengths of one kind of request."""

    name: str
    prompt: Lengths
    output: Lengths


# Means after clipping are those of the paper's data sets (OmniServe, SIGMOD 2026); spreads are
# those of the public ones, to the eye.
SHAREGPT = Workload("sharegpt", Lengths(163, 1.1, 4, 2048), Lengths(372, 0.9, 4, 1024))
LONGBENCH = Workload(
    "longbench-v2", Lengths(10_110, 0.45, 2_000, 12_000), Lengths(137, 0.6, 8, 512)
)
DAILYMAILS = Workload("dailymails", Lengths(1_970, 0.35, 256, 4_096), Lengths(397, 0.25, 64, 1024))
DECODE_HEAVY = Workload("decode-heavy", Lengths(768, 0.2, 512, 1024), Lengths(768, 0.2, 512, 1024))
BE_WORKLOADS = {work.name: work for work in (LONGBENCH, DAILYMAILS, DECODE_HEAVY)}


def poisson(rate: float, seconds: float, random: np.random.Generator) -> NDArray[np.float64]:
    """Arrival times of a Poisson process of `rate` per second."""
    gaps = random.exponential(1.0 / rate, int(rate * seconds * 1.5) + 50)
    times = np.cumsum(gaps)
    return times[times < seconds]


def bursty(
    rate: float, seconds: float, random: np.random.Generator, cv: float = 3.0
) -> NDArray[np.float64]:
    """Gamma-distributed gaps of mean 1 / rate whose coefficient of variation is `cv`."""
    shape = 1.0 / cv**2
    gaps = random.gamma(shape, 1.0 / (rate * shape), int(rate * seconds * 2) + 200)
    times = np.cumsum(gaps)
    return times[times < seconds]


ARRIVALS = {"poisson": poisson, "bursty": bursty}


def latency_sensitive(
    rate: float, seconds: float, seed: int, arrivals: str = "poisson", work: Workload = SHAREGPT
) -> list[Arrival]:
    """LS requests of one service in the order of their arrival."""
    random = np.random.default_rng((seed, 1))
    times = ARRIVALS[arrivals](rate, seconds, random)
    prompts, outputs = work.prompt.draw(random, len(times)), work.output.draw(random, len(times))
    return [
        Arrival(float(t), ServiceClass.LS, int(p), int(o), work.name)
        for t, p, o in zip(times, prompts, outputs, strict=True)
    ]


def backlog(seed: int, work: Workload) -> Iterator[Arrival]:
    """BE requests without end, all there from the start."""
    random = np.random.default_rng((seed, 2))
    while True:
        prompts, outputs = work.prompt.draw(random, 256), work.output.draw(random, 256)
        for p, o in zip(prompts, outputs, strict=True):
            yield Arrival(0.0, ServiceClass.BE, int(p), int(o), work.name, work.output.most)


def read_trace(path: Path) -> list[Arrival]:
    """A CSV with COLUMNS and optionally `service`. ValueError names file, line, field and value."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            found = _arrivals(path, csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: {error}; write a CSV with {','.join(COLUMNS)}") from error
    if not found:
        raise ValueError(f"{path}: no request; write a line for each below {','.join(COLUMNS)}")
    return sorted(found, key=lambda arrival: arrival.arrival_s)


def _arrivals(path: Path, reader: csv.DictReader[str]) -> list[Arrival]:
    missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
    if missing:
        raise ValueError(f"{path}: column {missing[0]} is missing; write {','.join(COLUMNS)}")
    return [_arrival(path, reader.line_num, row) for row in reader]


def _arrival(path: Path, line: int, row: dict[str, str]) -> Arrival:
    def number(name: str, kind: type[int] | type[float], least: float) -> float:
        text = row[name] or ""
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not least <= value < 1e9:
            what = "an integer" if kind is int else "a number"
            raise ValueError(f"{path}:{line}: {name} is {text!r}; write {what} from {least:g} on")
        return value

    if row["class"] not in tuple(ServiceClass):
        raise ValueError(f"{path}:{line}: class is {row['class']!r}; write LS or BE")
    output = int(number("output_tokens", int, 1))
    return Arrival(
        number("arrival_s", float, 0),
        ServiceClass(row["class"]),
        int(number("prompt_tokens", int, 1)),
        output,
        row.get("service") or "",
        max(output, USUAL_MAX_TOKENS) if row["class"] == ServiceClass.BE else None,
    )
